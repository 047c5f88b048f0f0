"""One training step of MedThink's tiny T5: what choosing positions before the head saves, and where the time is.

Three rows: the step against one whose head sees every position, pads included (same weights, batches and losses); the
time of matrix products as a share of the step; their speed against a bare product of the same size. The last two are
the floor: what products take at the speed of the core, the step cannot go below.

Run on an idle core: uv run python benchmarks/medthink_step.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import VlmBatch
from lightbox.bench import ledger
from lightbox.paper.pretrained import find_pretrained
from medthink import train
from medthink.config import resolve
from medthink.objective import target_loss

RESULTS = Path(__file__).parent / "results.csv"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
STEPS, TOLERANCE = 12, 1e-5


def full_loss(backbone: Backbone, batch: VlmBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss with logits of every position, as it was before."""
    return target_loss(backbone.model(**backbone.inputs_of(batch), use_cache=False).logits, batch.labels)


def main() -> None:
    """Measure and append three rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="pairs of measurements")
    parser.add_argument("--dry-run", action="store_true", help="print the rows and do not append them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        backbone, batches = prepare(Path(folder))
    sizes = f"T5 d96 2+2 layers, batch {len(batches[0].labels)}, explanation targets, fp32, 1 thread"
    rows = [compare(backbone, batches, options.repeats, sizes), *products(backbone, batches, sizes)]
    for row in rows:
        print(f"{row['case']}: {row['ratio']} x {row['peer']} ({row['value']} {row['unit']}; {row['notes']})")
    if not options.dry_run:
        ledger.append(RESULTS, "medthink_step", rows)


def prepare(cache: Path) -> tuple[Backbone, list[VlmBatch]]:
    """The model of arm explanation at `quick`, and the batches of a few steps."""
    cfg = resolve(["preset=quick", "experiment=explanation", "run.seed=900"])
    questions, scored = train.load_splits(cfg)
    learner = train.open_learner(cfg, find_pretrained(cfg.model.backbone), (questions, scored), cache=cache)
    collate, size = learner.collate(questions.samples, questions), cfg.optim.batch_size
    learner.backbone.model.train()
    return learner.backbone, [collate(list(range(start, start + size))) for start in range(0, STEPS * size, size)]


def compare(backbone: Backbone, batches: list[VlmBatch], repeats: int, sizes: str) -> dict[str, object]:
    """Steps a second with supervised positions chosen before the head, against all positions; the order alternates."""
    ours, theirs = train.fused_loss, full_loss
    for batch in batches:
        losses = [float(loss(backbone, batch)[0].detach()) for loss in (ours, theirs)]
        assert abs(losses[0] / losses[1] - 1) < TOLERANCE, f"the two sides lose {losses}"
    ratios, rates = [], []
    for repeat in range(repeats):
        pair = {loss: seconds(backbone, batches, loss) for loss in ((ours, theirs) if repeat % 2 else (theirs, ours))}
        ratios.append(pair[theirs] / pair[ours])
        rates.append(len(batches) / pair[ours])
    return {
        "case": "forward and backward, positions chosen before the head",
        "peer": "logits of every position",
        "value": round(statistics.median(rates), 2),
        "unit": "steps/s",
        "ratio": round(statistics.median(ratios), 3),
        "notes": f"{repeats} pairs of {len(batches)} steps, ratios {min(ratios):.3f} to {max(ratios):.3f}; {sizes}",
    }


def products(backbone: Backbone, batches: list[VlmBatch], sizes: str) -> list[dict[str, object]]:
    """Time of matrix products as a share of the step, and their speed against a bare product."""
    whole = seconds(backbone, batches, train.fused_loss)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        seconds(backbone, batches, train.fused_loss)
    within = sum(event.self_cpu_time_total for event in profiled.key_averages() if event.key in PRODUCTS) / 1e6
    with FlopCounterMode(display=False) as counter:
        seconds(backbone, batches, train.fused_loss)
    speed, bare = counter.get_total_flops() / within / 1e9, bare_speed()
    notes = f"{len(batches)} steps; {sizes}"
    shared = {"unit": "ms", "value": round(1000 * within / len(batches), 1), "ratio": round(within / whole, 3)}
    return [
        {"case": "matrix products in a step", "peer": "the whole step", "notes": notes, **shared},
        {
            "case": "speed of matrix products in a step",
            "peer": "a bare product, 672 x 96 by 96 x 288",
            "value": round(speed, 1),
            "unit": "GFLOP/s",
            "ratio": round(speed / bare, 3),
            "notes": f"bare {bare:.1f} GFLOP/s; {notes}",
        },
    ]


def bare_speed() -> float:
    """GFLOP/s of the product that most layers take, repeated on data that stays in the cache; best of some tries."""
    rows, columns, times, tries = torch.randn(672, 96), torch.randn(96, 288), [], 200
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(tries):
            torch.mm(rows, columns)
        times.append((time.perf_counter() - began) / tries)
    return 2 * 672 * 96 * 288 / min(times) / 1e9


def seconds(backbone: Backbone, batches: list[VlmBatch], loss: Callable) -> float:
    """Time of forward and backward over all batches."""
    began = time.perf_counter()
    for batch in batches:
        total, tokens, _ = loss(backbone, batch)
        (total / tokens).backward()
        backbone.model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
