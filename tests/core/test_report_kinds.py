"""What the page draws of kinds of items and of training by rewards, from levels and curves made up by hand."""

from dataclasses import replace

import pytest

from lightbox.claims.document import Level
from lightbox.claims.spec import Contrast, Measure, Role, difference
from lightbox.report import figures
from lightbox.report.claim_view import ClaimView
from lightbox.report.page import write_page
from lightbox.testing.fake_results import fake_claims, fake_results
from lightbox.testing.web_page import Page

SIZES = {"large": 8.0, "small": 2.0, "middle": 4.0}


def of_kind(arm, kind, metric="", condition=""):
    return Measure(arm, metric, condition, (("kind", kind),))


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return fake_results(tmp_path_factory.mktemp("kinds"), n_items=60)


def asked(document, *, has_size, seeds=(0.0, 1.0, 2.0)):
    """A claim that asks for three kinds of two arms, its declaration, and levels as `claim_entry` names them."""
    declared = fake_claims()
    headline = declared.headline
    contrasts = [
        difference(kind, of_kind("explanation", kind), of_kind("none", kind), Role.SECONDARY) for kind in SIZES
    ]
    contrasts.append(difference("shown", of_kind("explanation", "small", condition="random"), "none"))
    if has_size:
        contrasts += [
            Contrast(f"{kind} size", ((1.0, of_kind("none", kind, "size_px")),), Role.SECONDARY) for kind in SIZES
        ]
    claim = replace(declared.claims[0], contrasts=(*declared.claims[0].contrasts, *contrasts))
    levels = {}
    for kind, size in SIZES.items():
        for arm, base in (("explanation", 60.0), ("none", 50.0)):
            per_seed = tuple(base + size + seed for seed in seeds)
            label = f"{arm} [{kind}]" + f" {headline}" * (has_size and arm == "none")
            levels[label] = Level(headline, sum(per_seed) / len(per_seed), per_seed)
        levels[f"none [{kind}] size_px"] = Level("size_px", 100 * size, (100 * size,))
    levels["explanation [random, small]"] = Level(headline, 1.0, (1.0,))
    return replace(document.claims[0], arms=levels), replace(declared, claims=(claim,))


def drawn(monkeypatch, document, entry, declared):
    calls = []

    def keep(kinds, lines, *, unit, is_ordered):
        calls.append((kinds, lines, unit, is_ordered))
        return "<svg/>"

    monkeypatch.setattr(figures, "by_kind", keep)
    view = ClaimView(entry, document, "T1", declared)
    return view.by_kind, calls


def test_arms_are_drawn_by_kind_in_the_order_in_which_kinds_are_asked_for(monkeypatch, document):
    figure, [(kinds, lines, unit, is_ordered)] = drawn(monkeypatch, document, *asked(document, has_size=False))
    assert kinds == tuple(SIZES)
    assert not is_ordered
    assert {line.label: [point[0] for point in line.points] for line in lines} == {
        "explanation": [69.0, 63.0, 65.0],
        "none": [59.0, 53.0, 55.0],
    }
    low, high = lines[0].points[0][1:]
    assert low < 69.0 < high
    assert "points" in unit
    assert "explanation 69.0 on large, 63.0 on small" in figure[1]


def test_kinds_rise_with_another_metric_that_is_asked_for_of_each_and_say_it(monkeypatch, document):
    _, [(kinds, lines, _, is_ordered)] = drawn(monkeypatch, document, *asked(document, has_size=True))
    assert is_ordered
    assert kinds == ("small\nsize_px 2", "middle\nsize_px 4", "large\nsize_px 8")
    assert [point[0] for point in lines[0].points] == [63.0, 65.0, 69.0]


def test_one_seed_has_no_interval_and_other_claims_no_such_figure(monkeypatch, document):
    _, [(_, lines, *_)] = drawn(monkeypatch, document, *asked(document, has_size=False, seeds=(0.0,)))
    assert {point[1:] for line in lines for point in line.points} == {(None, None)}
    plain, calls = drawn(monkeypatch, document, document.claims[0], fake_claims())
    assert (plain, calls) == (None, [])
    assert ClaimView(document.claims[0], document, "T1").by_kind is None


def test_a_kind_without_a_seed_leaves_a_gap(monkeypatch, document):
    entry, declared = asked(document, has_size=False)
    entry = replace(entry, arms=entry.arms | {"none [small]": Level(declared.headline, None, ())})
    _, [(kinds, lines, *_)] = drawn(monkeypatch, document, entry, declared)
    assert lines[1].points[kinds.index("small")] is None
    monkeypatch.undo()
    joined, apart = (figures.by_kind(kinds, lines, unit="points", is_ordered=own) for own in (True, False))
    assert "<svg" in apart
    assert joined.count("<path") > apart.count("<path")


def test_a_mean_of_one_arm_is_no_row_among_the_effects(document):
    first, *rest = document.claims[0].contrasts
    mean = replace(first, name="a size", role=Role.SECONDARY, rival="", effect=900.0)
    view = ClaimView(replace(document.claims[0], contrasts=(first, mean, *rest)), document, "T1")
    assert [row.label for row in view.panel.rows] == [
        row.label for row in ClaimView(document.claims[0], document, "T1").panel.rows
    ]


def curve(*values):
    return [list(enumerate(values))]


@pytest.mark.slow
def test_curves_of_arms_that_learn_from_rewards_stand_apart_reward_first(document, tmp_path):
    curves = {
        "train/loss": {"imitates": curve(3.0, 1.0), "plays": curve(0.1, -0.1)},
        "train/acted": {"plays": curve(0.2, 0.9)},
        "train/reward_act": {"plays": curve(0.0, 0.2)},
        "train/failed_cut": {"plays": curve(0.0, 0.0)},
        "train/zero_variance": {"plays": curve(0.9, 0.5)},
        "train/reward": {"plays": curve(0.4, 1.2)},
    }
    write_page(replace(document, curves={"medthink": curves}), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    texts = [image["alt"] for image in page.all("img") if image["alt"].startswith("Learning curves")]
    assert len(texts) == 2
    assert "train/loss ends at imitates 1, plays −0.1" in texts[0]
    assert "train/acted" not in texts[0]
    order = [name.split(" ends at")[0] for name in texts[1].split("mean over seeds. ")[1].split(". ")]
    assert order == ["train/reward", "train/zero_variance", "train/reward_act", "train/acted"]
    assert "Not drawn: train/failed_cut." in page.text


def test_a_paper_without_rewards_has_its_curves_as_before(document, tmp_path):
    write_page(replace(document, curves={"medthink": {"train/loss": {"a": curve(1.0, 0.5)}}}), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert sum(image["alt"].startswith("Learning curves") for image in page.all("img")) == 1
