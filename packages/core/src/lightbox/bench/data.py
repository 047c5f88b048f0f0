"""Benchmark of phantom generation: labelled cases per second on one core."""

import statistics
import time

import numpy as np
from monai.data.synthetic import create_test_image_2d

from lightbox.phantom import Knobs, draw_cases, seed_range

GOAL = 1500.0
"""Labelled 64-px chest cases per second on one core that DESIGN asks for."""


def run(*, cases: int = 2000, repeats: int = 5) -> list[dict]:
    """Time phantom cases (scene, pixels, masks, boxes, facts, four questions, one report) and a named peer.

    The peer is MONAI's `create_test_image_2d` (64 px, one image with its label mask, no text). Repeats alternate.

    Args:
        cases: cases a repeat.
        repeats: repeats of each; the median counts.

    Returns:
        Rows with case, peer, value (per second), unit, ratio (ours / peer, or ours / goal) and notes.
    """
    knobs = Knobs()
    draw_cases(seed_range("development", 0, 256), knobs)  # tables are built once
    ours, text_only, peer = [], [], []
    for k in range(repeats):
        seeds = seed_range("development", k + 1, cases)
        ours.append(_rate(lambda seeds=seeds: draw_cases(seeds, knobs), cases))
        text_only.append(_rate(lambda seeds=seeds: draw_cases(seeds, knobs, with_pixels=False), cases))
        peer.append(_rate(lambda: _peer(cases), cases))
    rates = [statistics.median(values) for values in (ours, text_only, peer)]
    return [
        _row("phantom cases", "goal of 1500/s", rates[0], rates[0] / GOAL),
        _row("phantom cases", "monai create_test_image_2d (no text)", rates[0], rates[0] / rates[2]),
        _row("phantom texts only", "phantom cases", rates[1], rates[1] / rates[0]),
    ]


def _peer(cases: int) -> None:
    state = np.random.RandomState(0)
    for _ in range(cases):
        create_test_image_2d(64, 64, num_objs=3, rad_max=10, rad_min=3, num_seg_classes=3, random_state=state)


def _rate(work, n: int) -> float:
    started = time.perf_counter()
    work()
    return n / (time.perf_counter() - started)


def _row(case: str, peer: str, value: float, ratio: float) -> dict:
    shown = {"value": round(value, 1), "unit": "per second", "ratio": round(ratio, 2)}
    return {"case": case, "peer": peer, **shown, "notes": ""}
