"""The benchmark against trl's DPOTrainer: both sides train the same thing, and ours holds fewer bytes."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightbox.errors import WorkError

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
SMALLEST = {"questions": 40, "pairs": 8, "steps": 2}


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, BENCHMARKS)  # as for a script that lies there
    yield importlib.import_module("preferences")
    sys.path.remove(BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("vision", 0.7), ("text-only", 1.0)])
def test_both_sides_train_alike_and_ours_holds_fewer_bytes(bench, name, most):
    speed, memory = bench.measured(name, **SMALLEST, repeats=2)  # raises where losses or gradients differ
    assert speed["ratio"] > 0
    assert speed["unit"] == "pairs/s"
    assert memory["ratio"] <= most


def test_sides_that_train_different_things_are_not_timed(bench, monkeypatch):
    made = bench.trl_stepper
    monkeypatch.setattr(
        bench, "trl_stepper", lambda cfg, *rest: made(replace(cfg, objective=replace(cfg.objective, beta=0.9)), *rest)
    )
    with pytest.raises(WorkError, match="The two sides do not train the same thing"):
        bench.measured("text-only", **SMALLEST, repeats=1)


def test_fewer_pairs_than_the_batches_hold_are_refused(bench):
    with pytest.raises(WorkError, match="There are 15 pairs, and 2 batches hold 16"):
        bench.drawn(15, 8, 2)
    places = bench.drawn(20, 8, 2)
    assert len({place for batch in places for place in batch}) == 16
