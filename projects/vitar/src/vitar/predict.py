"""One image, one question: the whole trace, turn by turn. For research and teaching, not for clinical use."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightbox.backbones.attended import attended
from lightbox.eval.attention_map import attention_map
from lightbox.paper import learner as learners
from lightbox.paper.conditions import picture
from lightbox.paper.entries import PICTURES
from lightbox.paper.image_tools import Task
from lightbox.paper.overlay import in_image
from lightbox.paper.pruned import tokens_read
from lightbox.readers.images import load_image
from lightbox.report.trace_pictures import Panel, draw_rows
from vitar.config import Config
from vitar.looking import LOOKS
from vitar.model import Policy, codec_of, open_policy
from vitar.rollout import Episode, learning_batch

ATTENTION = "attention"
LOOK_TITLES = {
    "first": "the view, while it acts",
    "again": "the view again, while it answers",
    "second": "what it was shown, while it answers",
}
"""The looks of `looking.LOOKS` in words."""


def predict(
    image: Path | np.ndarray,
    question: str,
    *,
    folder: Path,
    options: Sequence[str] = (),
    opened: Any = None,
    attention: bool = False,
) -> dict[str, object]:
    """Play one episode about an image, as the evaluation does.

    Args:
        image: PNG, JPEG or DICOM file, or pixels; it becomes a square of at most `data.original_px`, from which crops
            are cut.
        question: in words as in training, such as "what is seen in the left hilum ?".
        folder: a finished run of `vitar train` that kept its model.
        options: choices, written behind the question; the tiny model learns questions without.
        opened: what `load_run` gave for the folder, where several questions follow one another; None loads it.
        attention: also draw where it looked in both turns, which is another forward.

    Returns:
        answer ("" where there is none); for each turn what the policy said, and why it failed where it did; boxes that
        it wrote, as `xyxy` fractions of the image, with labels; failures of the episode; how many tokens of the last
        image it read, where `pruning.method` takes some away; and what it was shown, as pictures by turn, with the
        attention among them if asked for, if it looked twice and if it read all tokens.

    Raises:
        RequestError: a file that is no image, a run that is not finished or kept no model.
    """
    height, width = load_image(image).shape[:2]  # a file that cannot be read is refused before a model is loaded
    policy = opened or load_run(folder)
    cfg = policy.cfg
    asked = f"{question} {', '.join(options)}?" if options else question
    task = Task(picture(image, cfg.data.original_px), asked, "")
    with policy.pruned() as pruning:
        (episode,) = policy.play([task], [0])["own"]
        read = tokens_read(pruning, cfg.pruning)
    # a box in the margin around the image is no place in it
    boxes = [own for own in (in_image(box, (height, width)) for box in episode.result.boxes) if own.area > 0]
    pictures = pictures_of(episode, cfg.objective.feedback)
    maps = look_maps(policy, episode) if attention and pruning is None else {}
    why = "it did not look twice" if pruning is None else "it reads some of an image's tokens"
    if maps:
        drawn = draw_rows([look_panels(episode, maps)], title=f"{asked} {episode.answer or 'no answer'}")
        pictures[ATTENTION] = Image.open(io.BytesIO(drawn))
    return {
        "answer": (episode.answer or "").strip(),
        **told(episode),
        "boxes": [tuple(round(side, 4) for side in own) for own in boxes],
        "labels": ["looked at"] * len(boxes),
        "failures": ", ".join(episode.failures),
        **read,
        **({"attention is not drawn": why} if attention and not maps else {}),
        PICTURES: pictures,
        "note": "research and teaching only, not for clinical use",
    }


def load_run(folder: Path) -> Policy:
    """What `vitar train` left in a run folder.

    Raises:
        RequestError: a run that is not finished or kept no model.
    """
    cfg, learner = learners.load_run(folder, Config, lambda cfg, base, _: open_policy(cfg, base).learner)
    return Policy(cfg, learner, codec_of(cfg, learner.backbone))


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


def look_maps(policy: Policy, episode: Episode) -> dict[str, np.ndarray]:
    """Where the policy looked, by the names of `looking.LOOKS`; empty where it was not shown one image in two turns.

    Each is (rows, columns) of the image's tokens, by that of evenly spread attention, see `attention_map`.
    """
    if len(episode.images) != 2:
        return {}
    backbone = policy.learner.backbone
    row = attended(backbone, learning_batch(backbone, [episode]).to(backbone.device))
    if (len(row.turns), len(row.images)) != (2, 2):
        return {}
    grids = backbone.grids(backbone.read_images(episode.images))
    return {
        name: attention_map(row.attention, row.turns[turn], row.images[image], grids[image]).cpu().numpy()
        for name, turn, image in LOOKS
    }


def look_panels(episode: Episode, maps: Mapping[str, np.ndarray]) -> list[Panel]:
    """Both images of an episode under what was looked at, with its box and the true one where they lie in the view."""
    panels = []
    for name, turn, image in LOOKS:
        is_whole = image == 0 or episode.feedback.tool in ("mark", "same")  # a crop has other fractions
        boxes = {"true": episode.task.true_boxes, "drawn": episode.result.boxes} if is_whole else {}
        pixels = np.asarray(episode.images[image])
        said = f"says {episode.texts[turn].strip()}"
        panels.append(Panel(pixels, LOOK_TITLES[name], said, attention=maps[name], **boxes))
    return panels
