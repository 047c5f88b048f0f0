"""One image, one question: what the model answers before and after tuning. Research and teaching, not clinical use."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightbox.paper import learner as learners
from lightbox.paper.conditions import picture
from lightbox.paper.pretrained import find_pretrained
from lightbox.runs import folders
from mmedpo.config import START, Config
from mmedpo.noise import noised
from mmedpo.train import open_arm


def predict(image: Path, question: str, *, folder: Path, options: Sequence[str] = ()) -> dict[str, object]:
    """Answer one question with the shipped weights, those of the start, and those that the run tuned.

    Args:
        image: PNG, JPEG or DICOM file; it is letterboxed to the tower's size.
        question: words that the model knows, or one of the prompts for a report, as "describe the image .".
        folder: a finished run of `mmedpo train` that kept its model.
        options: not used; the model was taught questions that name their options.

    Returns:
        answer of the run's model; answer of the start, where the run began from one; answer of the shipped weights; and
        answer of the run's model to an image of noise in the place of this one, which looking should change.

    Raises:
        RequestError: a run that is not finished or kept no model.
    """
    cfg, learner = learners.load_run(folder, Config, lambda cfg, base, _: open_arm(cfg, base))
    most = cfg.eval.report_tokens
    seen = [picture(image, cfg.model.image_px)]
    pixels = np.asarray(seen[0].convert("L"))[None]
    noise = noised(pixels, np.ones_like(pixels, bool), cfg.eval.noise_step, [0])[0]
    answers = {
        "answer": learner.answer([question], seen, most)[0],
        "answer to noise": learner.answer([question], [picture(noise, cfg.model.image_px)], most)[0],
    }
    for name, weights in earlier_weights(cfg).items():
        answers[f"answer of the {name}"] = _opened(cfg, weights).answer([question], seen, most)[0]
    return {**answers, "note": "research and teaching only, not for clinical use"}


def earlier_weights(cfg: Config) -> dict[str, str]:
    """What a run's model was before: the shipped weights, and those of the start where it is still there."""
    starts = [Path(folder) for folder in cfg.needs if (Path(folder) / folders.MODEL).is_dir()]
    weights = {"start": str(starts[0] / folders.MODEL)} if starts and cfg.objective.method != START else {}
    return weights | {"shipped weights": cfg.model.backbone}


def _opened(cfg: Config, backbone: str) -> learners.Learner:
    model = replace(cfg.model, backbone=backbone)
    asked = replace(cfg, model=model, objective=replace(cfg.objective, is_trained=False))
    return open_arm(asked, find_pretrained(backbone))
