"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import importlib.util
from pathlib import Path

import pytest

from k2sight.config import resolve
from k2sight.data import Target, load_splits
from k2sight.descriptions import phantom_classes
from k2sight.prompts import write_texts
from lightbox.backbones.box_text import Phrases
from lightbox.backbones.codecs import FlorenceBins
from lightbox.eval.boxes import score_boxes
from lightbox.paper.samples import Sample
from lightbox.records import Box

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "k2sight"
BOXES = (Box(0.5, 0.5, 0.75, 1.0), Box(0.0, 0.25, 0.5, 0.5), Box(0.2, 0.25, 0.21, 0.27))


def load_file(name):
    spec = importlib.util.spec_from_file_location(f"k2sight_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def items():
    """Training items of the phantom, with true definitions."""
    return load_splits(resolve(["preset=smoke", "data.n_train=200", "run.seed=2"]))[0].samples


def check_write_boxes(write_boxes, items):
    cfg = resolve(["preset=smoke", "experiment=name", "data.writes_names=true"])
    for n_bins in (64, 1000):
        form = Phrases(FlorenceBins(n_bins))
        for boxes in ((), BOXES[:1], BOXES, *(item.record.boxes for item in items)):
            sample = Sample("a", Target("zexa", bool(boxes), {}, tuple(boxes)), "c", 0)
            assert write_boxes("zexa", boxes, n_bins=n_bins) == write_texts(cfg, [sample], form)[0][1]


def check_with_wrong_shape(with_wrong_shape, items):
    classes, before = phantom_classes(2), list(items)
    changed = with_wrong_shape(items, classes, seed=0)
    assert items == before
    assert with_wrong_shape(items, classes, seed=0) == changed
    assert with_wrong_shape(items, classes, seed=1) != changed
    shapes = {}
    for value, words in zip(classes.values, classes.words, strict=True):
        shapes.setdefault(words["shape"], value[0])
    for new, old in zip(changed, items, strict=True):
        said, meant = (sample.record.definition.split(", ") for sample in (new, old))
        assert said[1:] == meant[1:]
        assert shapes[said[0]] != old.record.attributes["shape"]
        assert new.with_record(definition=old.record.definition) == old


def check_draw_blindly(draw_blindly, items):
    boxes = draw_blindly()
    assert 0 < len(boxes) <= 400
    scores = [score_boxes(boxes, item.record.boxes) for item in items if item.record.present]
    assert sum(bool(score.acc30) for score in scores) / len(scores) > 0.8


CHECKS = {
    "write_boxes": check_write_boxes,
    "with_wrong_shape": check_with_wrong_shape,
    "draw_blindly": check_draw_blindly,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solution_is_right(name, items):
    CHECKS[name](getattr(load_file("solutions"), name), items)


@pytest.mark.parametrize("name", CHECKS)
def test_exercise_is_untouched_or_right(name, items):
    """For those who work on them; `test_exercises_are_shipped_as_stubs` then fails, as it should."""
    with contextlib.suppress(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name), items)


@pytest.mark.parametrize("name", CHECKS)
def test_exercises_are_shipped_as_stubs(name, items):
    with pytest.raises(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name), items)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("write_boxes", lambda name, boxes, n_bins: name),
        ("with_wrong_shape", lambda samples, classes, seed: list(samples)),
        ("draw_blindly", lambda: [Box(0.0, 0.0, 1.0, 1.0)]),
    ],
)
def test_a_wrong_answer_is_found(name, wrong, items):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong, items)
