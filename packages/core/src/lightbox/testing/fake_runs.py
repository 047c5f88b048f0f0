"""Finished run folders with made-up scores, for tests of what reads them. Deterministic, no torch."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lightbox.records import Box
from lightbox.runs.examples import BoxMark, Example, MaskMark, Picture, Step

KINDS = ("presence", "side", "zone", "count")


def write_job(
    out: Path,
    arm: str,
    seed: int,
    *,
    accuracy: float = 0.7,
    paper: str = "medthink",
    preset: str = "quick",
    lr: float = 1e-3,
    n_items: int = 120,
    text: str = "",
    place: str = "jobs",
    key: str = "",
) -> Path:
    """Write one finished job as a worker would, and return its folder.

    Args:
        out: output folder.
        arm: name of the arm.
        seed: of the run; items and answers differ by seed, and are shared by the arms of one seed.
        accuracy: expected share of correct answers under condition "image", in [0, 1].
        paper: name of the paper.
        preset: name of the preset.
        lr: learning rate in the recorded configuration.
        n_items: test items.
        text: put into every text field, for example a script tag.
        place: "jobs" or "runs".
        key: job key; "" makes one from the arm and seed.
    """
    key = key or hashlib.sha256(f"{paper} {preset} {arm} {seed}".encode()).hexdigest()
    folder = out / place / key
    (folder / "examples").mkdir(parents=True)
    _write_scores(folder, arm=arm, seed=seed, accuracy=accuracy, n_items=n_items)
    _write_examples(folder, arm=arm, seed=seed, text=text)
    steps = range(0, 200, 10)
    curve = [[step, 2.5 * math.exp(-step / 60) + 0.2 + 0.02 * math.sin(step + seed)] for step in steps]
    history = {"train/loss": curve, "val/accuracy": [[step, accuracy * (1 - math.exp(-step / 50))] for step in steps]}
    _write(folder / "history.json", history)
    _write(folder / "card.json", {"parameters": 830_000, "device": "cpu", "dtype": "fp32", "wall_s": 31.5, "notes": []})
    config = {"run": {"seed": seed, "preset": preset}, "optim": {"lr": lr}, "objective": {"target": arm}}
    record = {"key": key, "paper": paper, "arm": arm, "seed": seed, "preset": preset, "config": config}
    record |= {"overrides": [f"objective.target={arm}"], "inputs": {"phantom": "v1"}, "needs": {}, "source": "5" * 64}
    _write(folder / "job.json", record | {"commit": "0123456789ab", "wall_s": 31.5, "finished": True})
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_scores(folder: Path, *, arm: str, seed: int, accuracy: float, n_items: int) -> None:
    difficulty = np.random.default_rng(seed).random(n_items)  # shared by the arms of a seed, hence paired
    own = np.random.default_rng([seed, *arm.encode()]).random(n_items)
    items = [f"case-{seed}-{index:04d}" for index in range(n_items)]
    columns: dict[str, list[Any]] = {name: [] for name in ("item", "condition", "kind", "correct", "bleu4")}
    for condition, level in (("blank", 0.45), ("image", accuracy), ("shuffled", 0.48)):
        columns["item"] += items
        columns["condition"] += [condition] * n_items
        columns["kind"] += [KINDS[index % len(KINDS)] for index in range(n_items)]
        columns["correct"] += (0.5 * difficulty + 0.5 * own < level).astype(np.float64).tolist()
        columns["bleu4"] += (own * 50).tolist() if arm != "answer_only" else [None] * n_items
    schema = pa.schema([(name, pa.string()) for name in ("item", "condition", "kind")])
    schema = schema.append(pa.field("correct", pa.float64())).append(pa.field("bleu4", pa.float64()))
    pq.write_table(pa.table(columns, schema=schema), folder / "scores.parquet", compression="zstd")


def _write_examples(folder: Path, *, arm: str, seed: int, text: str) -> None:
    """Six items, each with two pictures; every arm but answer_only marks a region and has a trace."""
    rows = []
    for index in range(6):
        is_right = (len(arm) + index) % 3 != 0
        item, side = f"case-{seed}-{index:04d}", "left" if is_right else "right"
        paths = [f"examples/{item}{part}.png" for part in ("", "-wide", "-mask")]
        film, (row, col) = _film(seed * 100 + index)
        for path, picture in zip(paths, (film, film.crop((0, 12, 64, 52)), _disc(row, col)), strict=True):
            picture.save(folder / path)
        true_box = Box((col - 5) / 64, (row - 5) / 64, (col + 6) / 64, (row + 6) / 64)
        near = Box(true_box.x0 + 0.08, true_box.y0 + 0.05, true_box.x1 + 0.08, true_box.y1 + 0.05)
        marked = [BoxMark(true_box, "truth", f"nodule{text}")]
        answer = Example(
            item=item + text,
            pictures=(Picture(paths[0], f"frontal{text}", tuple(marked)), Picture(paths[1], "detail")),
            task=(
                (f"question{text}", f"on which side is the nodule ?{text}"),
                ("options", f"left{text} | right{text}"),
                ("truth", f"left{text}: a nodule lies in the left upper zone .{text}"),
            ),
            output=(("answer", f"{side}{text}"),),
            score=0.5 + 0.05 * index,
            is_right=is_right,
        )
        if arm != "answer_only":
            boxes = (*marked, BoxMark(near, "predicted", f"{arm}{text}"))
            masks = (MaskMark(paths[2], "predicted", "nodule"),)
            steps = (Step(f"look closer{text}", Picture(paths[1], "crop")), Step("a bright disc, so a nodule"))
            answer = replace(
                answer,
                pictures=(Picture(paths[0], f"frontal{text}", boxes, masks), *answer.pictures[1:]),
                output=(*answer.output, ("rationale", f"a nodule lies in the {side} lung .{text}")),
                trace=steps,
            )
        rows.append(answer.to_row())
    _write(folder / "examples.json", rows)


def _disc(row: int, col: int) -> Image.Image:
    """A 64-px mask of the nodule, 255 inside."""
    rows, cols = np.mgrid[0:64, 0:64]
    return Image.fromarray((((cols - col) ** 2 + (rows - row) ** 2 < 20) * 255).astype(np.uint8))


def _film(seed: int) -> tuple[Image.Image, tuple[int, int]]:
    """A 64-px grey picture of two dark fields and a bright disc, and the row and column of the disc."""
    rows, cols = np.mgrid[0:64, 0:64]
    rng = np.random.default_rng(seed)
    pixels = np.full((64, 64), 150.0)
    for centre in (20, 44):
        pixels[((cols - centre) / 10) ** 2 + ((rows - 32) / 22) ** 2 < 1] = 70
    at_row, at_col = rng.integers(18, 46), rng.integers(15, 26)
    pixels[(cols - at_col) ** 2 + (rows - at_row) ** 2 < 14] = 170
    noisy = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy), (int(at_row), int(at_col))
