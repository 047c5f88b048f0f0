"""One image, one question: what the model answers before and after tuning. Research and teaching, not clinical use."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from lightbox.backbones.attended import attended
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import UNLIMITED
from lightbox.eval.attention_map import attention_map
from lightbox.paper import learner as learners
from lightbox.paper.conditions import picture
from lightbox.paper.entries import PICTURES
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruned import pruned
from lightbox.report.kept_tokens import TINT, TINT_SHARE
from lightbox.report.trace_pictures import Panel, draw_rows
from lightbox.runs import folders
from mmedpo.config import START, Config
from mmedpo.noise import noised
from mmedpo.train import open_arm

ATTENTION = "attention"
SHOWN_PATCH_PX = 16


def predict(
    image: Path | np.ndarray,
    question: str,
    *,
    folder: Path,
    options: Sequence[str] = (),
    opened: Any = None,
    attention: bool = False,
) -> dict[str, object]:
    """Answer one question with the shipped weights, those of the start, and those that the run tuned.

    Args:
        image: PNG, JPEG or DICOM file, or pixels; it is letterboxed to the tower's size.
        question: words that the model knows, or one of the prompts for a report, as "describe the image .".
        folder: a finished run of `mmedpo train` that kept its model.
        options: not used; the model was taught questions that name their options.
        opened: what `load_run` gave for the folder, where several questions follow one another; None loads it.
        attention: also draw where the run's model looked while it answered, which is another forward; not where it is
            pruned.

    Returns:
        answer of the run's model; answer of the start, where the run began from one; answer of the shipped weights; and
        answer of the run's model to an image of noise in the place of this one, which looking should change. As
        pictures, its attention, and which tokens it read where `pruning.method` takes some away.

    Raises:
        RequestError: a run that is not finished or kept no model.
    """
    cfg, learner = opened or load_run(folder)
    most = cfg.eval.report_tokens
    seen = [picture(image, cfg.model.image_px)]
    pixels = np.asarray(seen[0].convert("L"))[None]
    noise = noised(pixels, np.ones_like(pixels, bool), cfg.eval.noise_step, [0])[0]
    pictures: dict[str, Image.Image] = {}
    with pruned(learner.backbone, cfg.pruning, seed=cfg.run.seed) as pruning:
        answers = {"answer": learner.answer([question], seen, most)[0]}
        if pruning is not None:
            kept = pruning.report().kept[0][0].cpu().numpy()
            pictures["kept tokens"] = _kept_tokens(seen[0], kept)
            answers["tokens read"] = f"{int(kept.sum())} of {kept.size}, chosen by {cfg.pruning.method}"
        answers["answer to noise"] = learner.answer([question], [picture(noise, cfg.model.image_px)], most)[0]
    for name, weights in earlier_weights(cfg).items():  # one after another: three large models would not fit
        answers[f"answer of the {name}"] = _opened(cfg, weights).answer([question], seen, most)[0]
    if attention and pruning is None and answers["answer"]:
        pictures[ATTENTION] = _attention(learner.backbone, seen[0], question, answers["answer"])
    return {**answers, "note": "research and teaching only, not for clinical use", PICTURES: pictures}


def _attention(backbone: Backbone, seen: Image.Image, question: str, answer: str) -> Image.Image:
    """Where the model looked in the image while it wrote an answer."""
    row = attended(backbone, backbone.prepare([seen], [question], [answer], max_tokens=UNLIMITED).to(backbone.device))
    (grid,) = backbone.grids(backbone.read_images([seen]))
    own = attention_map(row.attention, row.turns[0], row.images[0], grid).cpu().numpy()
    panel = Panel(np.asarray(seen.convert("RGB")), "the image, while it answers", f"says {answer}", attention=own)
    return Image.open(io.BytesIO(draw_rows([[panel]], title=f"{question} {answer}")))


def _kept_tokens(seen: Image.Image, kept: np.ndarray) -> Image.Image:
    """The image with a tint over the patches whose tokens went; `kept` is bool, rows and columns of patches."""
    sides = kept.shape[1] * SHOWN_PATCH_PX, kept.shape[0] * SHOWN_PATCH_PX
    pixels = np.asarray(seen.convert("RGB").resize(sides, Image.Resampling.NEAREST)).astype(np.float64)
    goes = ~kept.repeat(SHOWN_PATCH_PX, axis=0).repeat(SHOWN_PATCH_PX, axis=1)
    pixels[goes] = (1 - TINT_SHARE) * pixels[goes] + TINT_SHARE * 255 * np.array(to_rgb(TINT))
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def load_run(folder: Path) -> tuple[Config, learners.Learner]:
    """What `mmedpo train` left in a run folder; see `lightbox.paper.learner.load_run`."""
    return learners.load_run(folder, Config, lambda cfg, base, _: open_arm(cfg, base))


def earlier_weights(cfg: Config) -> dict[str, str]:
    """What a run's model was before: the shipped weights, and those of the start where it is still there."""
    starts = [Path(folder) for folder in cfg.needs if (Path(folder) / folders.MODEL).is_dir()]
    weights = {"start": str(starts[0] / folders.MODEL)} if starts and cfg.objective.method != START else {}
    return weights | {"shipped weights": cfg.model.backbone}


def _opened(cfg: Config, backbone: str) -> learners.Learner:
    model = replace(cfg.model, backbone=backbone)
    asked = replace(cfg, model=model, objective=replace(cfg.objective, is_trained=False))
    return open_arm(asked, find_pretrained(backbone))
