"""ViTAR's side of the benchmark: its rollouts are the very conversations that the kit's own side has."""

import importlib
import sys
from pathlib import Path

import pytest

from lightbox.backbones import dialogue
from lightbox.backbones.loading import load
from lightbox.bench.rollout import by_converse
from lightbox.bench.rollout_scene import make_scene, scripted

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, BENCHMARKS)  # as for a script that lies there
    yield importlib.import_module("rollout")
    sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="module")
def scene(qwen_folder):
    own = make_scene(load(str(qwen_folder)), 2, 3, 8)
    with scripted(own.backbone.core, own.script):
        yield own


def test_roll_out_reads_and_chooses_what_the_kits_side_does(bench, scene):
    assert bench.by_roll_out(scene) == by_converse(scene)


def test_end_tokens_are_looked_up_once_and_not_for_each_row_and_turn(scene, monkeypatch):
    calls, settings_of = [], dialogue.settings_of
    monkeypatch.setattr(
        dialogue, "settings_of", lambda *args, **options: calls.append(0) or settings_of(*args, **options)
    )
    assert len(by_converse(scene)) == 6
    assert len(calls) == 1
