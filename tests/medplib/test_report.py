"""What the pages draw of MedPLIB: kinds of prompts by size of region, Dice by modality and class; made up by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lightbox.claims.document import Level
from lightbox.paper.drawn_regions import MASK, PRESENCE, Asked
from lightbox.paper.samples import Sample, Split
from lightbox.report import figures, run_masks, run_routing
from lightbox.report.claim_view import ClaimView
from lightbox.report.run_items import CORRECT, DICE, RunItems
from lightbox.runs.folders import Run
from lightbox.testing.fake_results import fake_claims, fake_results
from medplib.claims import FORMS, PAPER


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return fake_results(tmp_path_factory.mktemp("report"), n_items=60)


def drawn(monkeypatch, document, claim_id, levels):
    calls = []

    def keep(kinds, lines, *, unit, is_ordered):
        calls.append((kinds, lines, unit, is_ordered))
        return "<svg/>"

    monkeypatch.setattr(figures, "by_kind", keep)
    entry = replace(document.claims[0], paper="medplib", id=claim_id, arms=levels, unit="points of accuracy")
    return ClaimView(entry, document, claim_id, PAPER).by_condition, calls


def means(metric, *conditions, start=50.0):
    """Levels under conditions as `claim_entry` names them, each a point higher than the one before."""
    values = {condition: (start + k, start + k + 2) for k, condition in enumerate(conditions)}
    return {f"vl [{name}] {metric}": Level(metric, sum(own) / 2, own) for name, own in values.items()}


def test_kinds_of_prompts_stand_side_by_side_for_large_and_for_small_regions(monkeypatch, document):
    levels = means("region_large", *FORMS, start=70.0) | means("region_small", *FORMS[1:], start=30.0)
    figure, [(kinds, lines, unit, is_ordered)] = drawn(monkeypatch, document, "E4-forms", levels)
    assert set(kinds) == set(FORMS)
    assert not is_ordered
    by_label = {line.label: dict(zip(kinds, line.points, strict=True)) for line in lines}
    assert by_label.keys() == {"vl, region large", "vl, region small"}
    assert by_label["vl, region large"]["point"][0] == 71.0
    assert by_label["vl, region small"]["point"] is None
    mean, low, high = by_label["vl, region small"]["mask"]
    assert low < mean < high
    assert unit == "points of accuracy"
    assert "vl, region large 75.0 mask, 71.0 point" in figure[1]


def test_what_was_shown_as_the_region_is_one_line_that_begins_with_its_own(monkeypatch, document):
    others = {name.removesuffix(" region"): own for name, own in means("region", "whole", "other", *FORMS).items()}
    levels = {"vl region": Level("region", 80.0, (80.0,))} | others
    _, [(kinds, [line], unit, _)] = drawn(monkeypatch, document, "E4", levels)
    assert kinds[:3] == ("image", "whole", "other")
    assert (line.label, line.points[0]) == ("vl", (80.0, None, None))
    assert unit.startswith("region (")


def test_two_conditions_are_no_figure(monkeypatch, document):
    assert drawn(monkeypatch, document, "E4-forms", means("region_large", *FORMS[:2])) == (None, [])
    assert ClaimView(document.claims[0], document, "T1", fake_claims()).by_condition is None
    assert ClaimView(document.claims[0], document, "T1").by_condition is None


def run_items(tmp_path, dices):
    """Items of a run that asked for masks and once for an answer."""
    mask = np.ones((4, 4), dtype=bool)
    samples = [
        Sample(f"{k}", Asked(f"{k}", "outline", "present", task=MASK, modality=modality, name=name, mask=mask), "c", 0)
        for k, (modality, name) in enumerate(dices)
    ]
    samples.append(Sample("q", Asked("q", "does it ?", "present", task=PRESENCE, modality="ct", name="liver"), "c", 0))
    values = {
        CORRECT: {"image": {"q": 1.0}, "blank": {"q": 0.0}},
        DICE: {"image": {f"{k}": dice for k, dice in enumerate(dices.values())}, "blank": {"0": 0.0}},
    }
    return RunItems(
        Run(tmp_path, "k", "medplib"),
        {},
        values,
        {},
        scored=Split("test", samples, [np.zeros((4, 4), np.uint8)], ["c"]),
    )


def test_dice_stands_by_modality_and_below_it_by_class(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(figures, "levels", lambda groups, *, unit: calls.append((groups, unit)) or "<svg/>")
    dices = {("pet", "brain"): 0.5, ("ct", "liver"): 1.0, ("ct", "cyst"): 0.0}
    _, text = run_masks.mask_figure(run_items(tmp_path, dices))
    [(groups, unit)] = calls
    assert [(group.label, group.per_seed, group.is_baseline) for group in groups] == [
        ("ct (2)", (100.0, 0.0), False),
        ("cyst (1)", (0.0,), True),
        ("liver (1)", (100.0,), True),
        ("pet (1)", (50.0,), False),
        ("brain (1)", (50.0,), True),
    ]
    assert unit == "Dice of what is there, %"
    assert "ct (2): 50.0" in text


def test_a_run_without_masks_has_no_such_figure(tmp_path):
    items = run_items(tmp_path, {("ct", "liver"): 1.0})
    assert run_masks.mask_figure(replace(items, values={CORRECT: items.values[CORRECT], DICE: {}})) is None
    assert run_masks.mask_figure(replace(items, scored=None)) is None


def test_each_task_and_type_of_token_has_its_share_of_one_expert_in_each_layer(monkeypatch):
    calls = []
    monkeypatch.setattr(figures, "by_kind", lambda *of, **how: calls.append((*of, how)) or "<svg/>")

    def shares(first):
        return {"grounding": first, "vl": 1 - first}

    by_task = {"0": {"mask": shares(0.75), "region": shares(0.25)}, "10": {"mask": shares(1.0), "region": shares(0.0)}}
    by_type = {"0": {"picture": shares(0.5)}}
    routing = {
        "task": {"shares": by_task, "bits": {"0": 0.1887, "10": 1.0}},
        "token type": {"shares": by_type, "bits": {"0": 0.0}},
    }
    _, text = run_routing.routing_figure({"routing": routing})
    [(layers, lines, how)] = calls
    assert layers == ("layer 0", "layer 10")
    assert how == {"unit": "tokens that go to grounding, %", "is_ordered": True}
    assert {line.label: [point and point[0] for point in line.points] for line in lines} == {
        "task: mask": [75.0, 100.0],
        "task: region": [25.0, 0.0],
        "token type: picture": [50.0, None],
    }
    assert "task: mask 75.0 in layer 0, 100.0 in layer 10" in text
    assert "task tells 0.189 in layer 0, 1 in layer 10 bits about the expert" in text
    assert run_routing.routing_figure({}) is None
