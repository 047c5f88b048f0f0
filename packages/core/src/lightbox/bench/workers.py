"""Steps per second with workers that prepare batches ahead, against preparing them in line, on image files.

Each item is a grey PNG of `IMAGE_PX` on disk, drawn by the phantom, enlarged, with grain as a film has it; it is
decoded, made square, and goes through processor and tokenizer of the tiny LLaVA, which then trains as a whole.
"""

import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.loading import load
from lightbox.backbones.rows import UNLIMITED, VlmBatch
from lightbox.config import OptimConfig, RunConfig, TrainConfig
from lightbox.errors import WorkError
from lightbox.paper.conditions import picture
from lightbox.phantom import draw_cases, seed_range
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit

WORKERS, ITEMS, BATCH, IMAGE_PX = 2, 48, 4, 1024
SKIPPED = 6
"""First steps that are not timed: what was made ahead while the workers started would flatter them."""
PEER = "in line, train.workers=0"
_log = logging.getLogger(__name__)


def run(*, repeats: int = 7, steps: int = 30) -> list[dict]:
    """Measure the ratio.

    Args:
        repeats: pairs of trainings in alternating order, after a short pair; the median ratio counts.
        steps: timed steps in each.

    Returns:
        One row with case, peer, value (steps per second with workers), unit, ratio and notes.

    Raises:
        WorkError: where the two sides do not train to the same losses.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = draw_files(Path(folder))
        for workers in (0, WORKERS):
            rate(files, 2, workers=workers)  # imports, memory and caches
        pairs = []
        for number in range(repeats):
            order = (WORKERS, 0) if number % 2 == 0 else (0, WORKERS)
            taken = {workers: rate(files, steps, workers=workers) for workers in order}
            if taken[WORKERS][1] != taken[0][1]:
                raise WorkError(
                    "The losses with workers are not those in line",
                    "The two sides do not train the same thing, so their times cannot be compared",
                    "Find the difference before measuring",
                )
            pairs.append((taken[WORKERS][0], taken[0][0]))
            _log.info("pair %d: %.2f steps/s with workers, %.2f in line", number + 1, *pairs[-1])
    ratios = [ahead / in_line for ahead, in_line in pairs]
    notes = (
        f"{repeats} pairs of {steps} steps of {BATCH}, ratios {min(ratios):.3f} to {max(ratios):.3f}; grey PNGs of "
        f"{IMAGE_PX} px on disk; tiny/llava, all parameters, fp32, 1 thread; equal losses"
    )
    value = round(statistics.median(ahead for ahead, _ in pairs), 2)
    row = {"case": f"rows prepared by {WORKERS} workers", "peer": PEER, "value": value, "unit": "steps/s"}
    return [row | {"ratio": round(statistics.median(ratios), 3), "notes": notes}]


def draw_files(folder: Path) -> list[Path]:
    """Write `ITEMS` phantom radiographs as PNGs."""
    rng, files = np.random.default_rng(0), []
    for case in draw_cases(seed_range("development", 0, ITEMS)):
        large = np.asarray(Image.fromarray(case.images[0]).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 4, size=large.shape)
        files.append(folder / f"{case.id}.png")
        Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)).save(files[-1])
    return files


def rate(files: list[Path], steps: int, *, workers: int) -> tuple[float, list[list[float | None]]]:
    """Steps per second of a training, and its losses."""
    backbone, times = load("tiny/llava"), []
    backbone.model.register_forward_pre_hook(lambda module, arguments: times.append(time.perf_counter()))

    def collate(indices: list[int]) -> VlmBatch:
        pictures = [picture(files[index], IMAGE_PX) for index in indices]
        prompts, targets = (["Is there a nodule?"] * len(indices), ["yes"] * len(indices))
        return backbone.prepare(pictures, prompts, targets, max_tokens=UNLIMITED)

    def step(model: nn.Module, batch: VlmBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return Backbone.loss(backbone.with_model(model), batch)

    with tempfile.TemporaryDirectory() as folder:
        history = fit(
            backbone.model,
            step,
            BatchSource(len(files), collate, batch_size=BATCH, seed=0),
            # the last step is begun and not timed
            optim=OptimConfig(lr=1e-4, max_steps=SKIPPED + steps + 1, batch_size=BATCH),
            run=RunConfig(seed=0, log_every_steps=1),
            train=TrainConfig(workers=workers),
            out=Path(folder),
        )
    return steps / (times[-1] - times[SKIPPED]), history["train/loss"]
