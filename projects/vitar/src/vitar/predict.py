"""One image, one question: the whole trace, turn by turn. For research and teaching, not for clinical use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lightbox.paper import learner as learners
from lightbox.paper.conditions import picture
from lightbox.paper.entries import PICTURES
from lightbox.paper.image_tools import Task
from lightbox.paper.overlay import in_image
from lightbox.readers.images import load_image
from vitar.config import Config
from vitar.model import Policy, codec_of, open_policy
from vitar.rollout import Episode


def predict(
    image: Path, question: str, *, folder: Path, options: Sequence[str] = (), box: Any = None
) -> dict[str, object]:
    """Play one episode about an image, as the evaluation does.

    Args:
        image: PNG, JPEG or DICOM file; it becomes a square of at most `data.original_px`, from which crops are cut.
        question: words, such as "What is seen in the left hilum?".
        folder: a finished run of `vitar train` that kept its model.
        options: choices, written behind the question as in training.
        box: not used; where to look is the policy's to say.

    Returns:
        answer ("" where there is none); for each turn what the policy said, and why it failed where it did; boxes that
        it wrote, as `xyxy` fractions of the image, with labels; failures of the episode; and what it was shown, as
        pictures by turn.

    Raises:
        RequestError: a run that is not finished or kept no model.
    """
    cfg, learner = learners.load_run(folder, Config, lambda cfg, base, _: open_policy(cfg, base).learner)
    policy = Policy(cfg, learner, codec_of(cfg, learner.backbone))
    asked = f"{question} {', '.join(options)}?" if options else question
    task = Task(picture(image, cfg.data.original_px), asked, "")
    (episode,) = policy.play([task], [0])["own"]
    height, width = load_image(image).shape[:2]
    # a box in the margin around the image is no place in it
    boxes = [own for own in (in_image(box, (height, width)) for box in episode.result.boxes) if own.area > 0]
    return {
        "answer": (episode.answer or "").strip(),
        **told(episode),
        "boxes": [tuple(round(side, 4) for side in own) for own in boxes],
        "labels": ["looked at"] * len(boxes),
        "failures": ", ".join(episode.failures),
        PICTURES: pictures_of(episode, cfg.objective.feedback),
        "note": "research and teaching only, not for clinical use",
    }


def told(episode: Episode) -> dict[str, str]:
    """What was said in each turn, and what was wrong with it."""
    lines = {}
    turns = zip(episode.texts, episode.replies, episode.observations, strict=True)
    for place, (text, reply, seen) in enumerate(turns, start=1):
        failure = reply.failure or seen.failure
        lines[f"turn {place}"] = text.strip() + f" ({failure})" * bool(failure)
    return lines


def pictures_of(episode: Episode, feedback: str) -> dict[str, Image.Image]:
    """The view that the policy began with, and what it was shown after each turn."""
    shown = {"view": episode.images[0]}
    for place, seen in enumerate(episode.observations, start=1):
        shown |= {f"turn {place} {feedback}": own for own in seen.images}
    return shown
