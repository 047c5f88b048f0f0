import dataclasses
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from lightbox.claims.gate import gate_result
from lightbox.claims.spec import BEST, Claim, Contrast, Gate, Kind, Measure, Role, Verdict, difference
from lightbox.claims.statistics import Scores, agreement, contrast_effect, effect_of, paired_differences
from lightbox.claims.verdicts import MIN_SEEDS, decide, family
from lightbox.errors import RequestError, WorkError

LINK = difference("a minus b", "a", "b")
SECOND = difference("c minus a", "c", "a")
CONTROL = difference("a minus shuffled", "a", "s", Role.CONTROL)
PREMISE = replace(difference("seen minus unseen", "t", "u", Role.PREMISE), min_effect=0.1)


def claim(kind=Kind.DIRECTIONAL, contrasts=(LINK, CONTROL), **options):
    settings = {"paper": "p", "id": "X1", "statement": "s", "location": "l", "paper_numbers": "n", "gate": None}
    return Claim(kind=kind, contrasts=contrasts, **settings | options)


def effect(contrast, centre, half, *, seeds=5, items=500, min_effect=0.02):
    """An effect whose 95 % t interval is centre +- half."""
    d = np.linspace(-1, 1, seeds)
    d *= half / (2.7764451051977987 * d.std(ddof=1) / np.sqrt(5)) if seeds == 5 and half else 0
    return effect_of(contrast, centre + d, seeds=range(seeds), items=items, min_effect=min_effect)


def verdict(*effects, kind=Kind.DIRECTIONAL, gate=None, planned=5, **options):
    return decide(claim(kind, **options), effects, gate, planned_seeds=planned).verdict


HELD = effect(CONTROL, 0.05, 0.02)


@pytest.mark.parametrize(
    ("centre", "half", "expected"),
    [
        (0.05, 0.02, Verdict.REPRODUCED),
        (0.02, 0.01, Verdict.REPRODUCED),  # exactly the minimum is enough
        (0.02, 0.0, Verdict.REPRODUCED),  # every seed the same
        (0.019, 0.01, Verdict.INCONCLUSIVE),  # above 0 and under the minimum
        (0.05, 0.06, Verdict.INCONCLUSIVE),  # includes 0
        (0.0, 0.015, Verdict.ABSENT),
        (0.01, 0.005, Verdict.ABSENT),  # above 0 and still too small to count
        (0.0, 0.0, Verdict.ABSENT),
        (0.0, 0.0201, Verdict.INCONCLUSIVE),  # reaches past the minimum
        (-0.05, 0.02, Verdict.CONTRADICTED),
        (-0.02, 0.01, Verdict.CONTRADICTED),
        (-0.019, 0.01, Verdict.INCONCLUSIVE),
        (-0.05, 0.06, Verdict.INCONCLUSIVE),
    ],
)
def test_directional_verdict_follows_the_interval_and_the_minimum(centre, half, expected):
    assert verdict(effect(LINK, centre, half), HELD) is expected


@pytest.mark.parametrize(
    ("centre", "half", "expected"),
    [
        (0.001, 0.0005, Verdict.REPRODUCED),  # above 0 is enough for a control
        (0.0, 0.01, Verdict.CONTROL_FAILED),
        (-0.05, 0.01, Verdict.CONTROL_FAILED),  # the control is even better
        (0.01, 0.03, Verdict.INCONCLUSIVE),  # merely wide
        (0.01, 0.0101, Verdict.INCONCLUSIVE),  # includes 0, and the minimum too
    ],
)
def test_control_must_be_beaten_and_a_wide_one_leaves_it_open(centre, half, expected):
    assert verdict(effect(LINK, 0.05, 0.02), effect(CONTROL, centre, half)) is expected


def test_one_failed_control_among_two_fails_the_claim():
    other = replace(CONTROL, name="a minus filler")
    both = [effect(LINK, 0.05, 0.02), HELD, effect(other, 0.0, 0.01)]
    assert verdict(*both, contrasts=(LINK, CONTROL, other)) is Verdict.CONTROL_FAILED


def test_control_does_not_matter_where_the_effect_is_absent_or_reversed():
    failed = effect(CONTROL, 0.0, 0.01)
    assert verdict(effect(LINK, 0.0, 0.01), failed) is Verdict.ABSENT
    assert verdict(effect(LINK, -0.05, 0.01), failed) is Verdict.CONTRADICTED


@pytest.mark.parametrize(
    ("centre", "half", "expected"),
    [
        (0.15, 0.05, Verdict.REPRODUCED),
        (0.09, 0.05, Verdict.NOT_TESTABLE),  # above 0, under its minimum
        (0.15, 0.20, Verdict.NOT_TESTABLE),
        (-0.2, 0.05, Verdict.NOT_TESTABLE),
    ],
)
def test_claim_whose_premise_is_missing_is_not_testable(centre, half, expected):
    premise = effect(PREMISE, centre, half, min_effect=0.1)
    decision = decide(claim(contrasts=(LINK, PREMISE)), [effect(LINK, 0.05, 0.02), premise], None, planned_seeds=5)
    assert decision.verdict is expected
    assert decision.controls == {PREMISE.name: "holds" if expected is Verdict.REPRODUCED else "missing"}
    assert (PREMISE.name in decision.reason) == (expected is Verdict.NOT_TESTABLE)


def test_secondary_contrast_decides_nothing():
    shown = effect(replace(SECOND, role=Role.SECONDARY), -0.3, 0.01)
    assert verdict(effect(LINK, 0.05, 0.02), HELD, shown) is Verdict.REPRODUCED


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.05, 0.02), (0.04, 0.01), Verdict.REPRODUCED),
        ((0.05, 0.02), (0.0, 0.01), Verdict.ABSENT),
        ((0.05, 0.02), (0.05, 0.09), Verdict.INCONCLUSIVE),
        ((0.05, 0.02), (-0.05, 0.02), Verdict.CONTRADICTED),
        ((-0.05, 0.02), (0.05, 0.09), Verdict.CONTRADICTED),
        ((-0.05, 0.02), (0.0, 0.01), Verdict.ABSENT),  # absent is tested first
    ],
)
def test_chain_holds_only_if_every_link_holds(first, second, expected):
    effects = effect(LINK, *first), effect(SECOND, *second), HELD
    assert verdict(*effects, kind=Kind.CHAIN, contrasts=(LINK, SECOND, CONTROL)) is expected


def test_chain_with_both_links_fails_on_its_control():
    effects = effect(LINK, 0.05, 0.02), effect(SECOND, 0.05, 0.02), effect(CONTROL, 0.0, 0.01)
    decision = decide(claim(Kind.CHAIN, (LINK, SECOND, CONTROL)), effects, None, planned_seeds=5)
    assert decision.verdict is Verdict.CONTROL_FAILED
    assert decision.links == {"a minus b": Verdict.REPRODUCED, "c minus a": Verdict.REPRODUCED}
    assert decision.controls == {"a minus shuffled": "failed"}


def test_link_with_its_own_minimum_is_judged_by_it():
    large = replace(LINK, min_effect=0.06)
    assert verdict(effect(large, 0.05, 0.02), HELD) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("centre", "half", "expected"),
    [
        (0.0, 0.01, Verdict.REPRODUCED),
        (0.0, 0.025, Verdict.REPRODUCED),  # the 90 % interval is inside, the 95 % one is not
        (0.0, 0.03, Verdict.INCONCLUSIVE),
        (0.019, 0.01, Verdict.INCONCLUSIVE),
        (0.06, 0.01, Verdict.CONTRADICTED),
        (-0.06, 0.01, Verdict.CONTRADICTED),
    ],
)
def test_equivalence_is_reproduced_if_the_90_percent_interval_is_inside_the_margin(centre, half, expected):
    assert verdict(effect(LINK, centre, half), kind=Kind.EQUIVALENCE, contrasts=(LINK,)) is expected


@pytest.mark.parametrize(
    ("per_seed", "is_upper", "expected"),
    [
        ([1.009, 1.004], True, Verdict.REPRODUCED),
        ([1.01, 1.01], True, Verdict.REPRODUCED),
        ([1.009, 1.02], True, Verdict.CONTRADICTED),  # one seed breaks the bound
        ([1.02, 1.03], False, Verdict.REPRODUCED),
        ([1.02, 0.99], False, Verdict.CONTRADICTED),
    ],
)
def test_exact_number_is_held_against_its_bound_in_every_seed(per_seed, is_upper, expected):
    """No interval, and neither five seeds nor many items are asked for."""
    number = effect_of(LINK, per_seed, seeds=range(2), items=1, min_effect=0.02)
    options = {"contrasts": (LINK,), "bound": 1.01, "is_upper_bound": is_upper}
    assert verdict(number, kind=Kind.EXACT, planned=2, **options) is expected


def test_exact_control_must_be_above_0_in_every_seed():
    number = effect_of(LINK, [1.0, 1.0], seeds=range(2), items=1, min_effect=0.02)
    control = effect_of(CONTROL, [0.5, 0.0], seeds=range(2), items=1, min_effect=0.02)
    assert verdict(number, control, kind=Kind.EXACT, planned=2, bound=1.0) is Verdict.CONTROL_FAILED


def test_fewer_than_five_seeds_give_numbers_and_no_verdict():
    four = effect_of(LINK, [0.05, 0.06, 0.05, 0.06], seeds=range(4), items=500, min_effect=0.02)
    decision = decide(claim(contrasts=(LINK,)), [four], None, planned_seeds=4)
    assert decision.verdict is Verdict.NONE
    assert "4 of the 5 seeds" in decision.reason
    assert four.ci95 is not None
    assert MIN_SEEDS == 5


def test_no_verdict_before_every_planned_seed_has_ended():
    decision = decide(claim(contrasts=(LINK,)), [effect(LINK, 0.05, 0.02)], None, planned_seeds=8)
    assert (decision.verdict, decision.reason) == (Verdict.NONE, "5 of 8 seeds have ended")


def test_smoke_draws_no_verdict_even_on_an_exact_number():
    number = effect_of(LINK, [2.0], seeds=[0], items=1, min_effect=0.02)
    exact = claim(Kind.EXACT, (LINK,), bound=1.0)
    assert decide(exact, [number], None, planned_seeds=1, preset="smoke").verdict is Verdict.NONE
    assert decide(exact, [number], None, planned_seeds=1, preset="full").verdict is Verdict.REPRODUCED


def test_test_set_smaller_than_the_claim_needs_is_an_error_that_says_both_sizes():
    small = effect(LINK, 0.05, 0.02, items=60)
    with pytest.raises(RequestError, match=r"60 test items.*at least 100"):
        verdict(small, HELD)
    assert decide(claim(), [small, HELD], None, planned_seeds=5, preset="smoke").verdict is Verdict.NONE
    assert verdict(small, HELD, min_items=50) is Verdict.REPRODUCED


def test_family_counts_verdicts_and_the_false_ones_to_expect():
    outcomes = [(Kind.DIRECTIONAL, Verdict.REPRODUCED)] * 3 + [(Kind.EQUIVALENCE, Verdict.ABSENT)]
    outcomes += [(Kind.EXACT, Verdict.REPRODUCED), (Kind.CHAIN, Verdict.NONE)]
    counted = family(outcomes)
    assert (counted.verdicts, counted.reproduced) == (5, 4)
    assert counted.expected_false == pytest.approx(3 * 0.025 + 0.05)
    assert counted.chance_of_any_false == pytest.approx(1 - 0.975**3 * 0.95)
    assert counted.share_false_at_most == pytest.approx(0.125 / 4)
    assert family([]).share_false_at_most == 0.0


def table(correct, *, items=None, condition="image", **columns):
    names = items or [f"i{k:03d}" for k in range(len(correct))]
    rest = {"condition": [condition] * len(names), "kind": ["side"] * len(names)}
    return pa.table({"item": names, **rest, "correct": pa.array(correct, pa.float64())} | columns)


def scored(tables, *, headline="correct", condition="image"):
    return Scores(tables, headline, condition)


def coin(share, seed, *, n=200):
    return (np.random.default_rng(seed).random(n) < share).astype(float).tolist()


def test_effect_is_the_mean_over_seeds_of_the_mean_paired_difference():
    scores = {("a", 0): table([1, 1, 0, 1]), ("b", 0): table([0, 1, 0, 0]), ("a", 1): table([1, 0, 0, 0])}
    scores |= {("b", 1): table([1, 0, 0, 0])}
    result = contrast_effect(LINK, scored(scores), seeds=range(2), min_effect=0.02)
    assert result.per_seed == (0.5, 0.0)
    assert (result.effect, result.items, result.seeds) == (0.25, 4, (0, 1))
    assert result.seed_sd == pytest.approx(np.sqrt(0.125))
    assert result.between_sd == pytest.approx(np.sqrt(0.125 - (0.25 + 0.0) / 2 / 4))


def test_items_pair_by_id_and_not_by_place():
    shuffled = table([0, 0, 1], items=["z", "y", "x"])
    scores = {("a", 0): table([1, 0, 0], items=["x", "y", "z"]), ("b", 0): shuffled}
    assert paired_differences(LINK, scored(scores), seed=0).tolist() == [0.0, 0.0, 0.0]


def test_weights_make_a_difference_of_differences():
    bend = Contrast("bend", ((1.0, Measure("a")), (-1.0, Measure("b")), (-0.5, Measure("c"))))
    scores = {("a", 0): table([1, 1]), ("b", 0): table([0, 1]), ("c", 0): table([1, 0])}
    assert contrast_effect(bend, scored(scores), seeds=[0], min_effect=0.02).per_seed == (0.25,)


def test_terms_over_other_items_are_combined_as_means():
    scores = scored(
        {("a", 0): table(coin(0.8, 1)), ("b", 0): table(coin(0.5, 2, n=120), items=[f"j{k}" for k in range(120)])}
    )
    unpaired = replace(LINK, is_paired=False)
    result = contrast_effect(unpaired, scores, seeds=[0], min_effect=0.02)
    expected = np.mean(coin(0.8, 1)) - np.mean(coin(0.5, 2, n=120))
    assert (result.effect, result.items) == (pytest.approx(expected), 120)
    with pytest.raises(WorkError, match="share 0 items"):
        contrast_effect(LINK, scores, seeds=[0], min_effect=0.02)


def test_kinds_weigh_alike_where_the_paper_balances_by_kind():
    """Three items of one kind, one of the other; the mean of the kinds' means, whatever their counts."""
    kinds = {"kind": ["side", "side", "count", "side"]}
    scores = {("a", 0): table([1, 1, 0, 0], **kinds), ("b", 0): table([0, 0, 1, 0], **kinds)}
    tables = dataclasses.replace(scored(scores), balanced_by="kind")
    assert contrast_effect(LINK, tables, seeds=[0], min_effect=0.02).effect == pytest.approx((2 / 3 - 1) / 2)
    assert contrast_effect(LINK, scored(scores), seeds=[0], min_effect=0.02).effect == 0.25
    sides = [Measure(arm, where=(("kind", "side"),)) for arm in "ab"]
    alone = difference("side", *sides)
    assert contrast_effect(alone, tables, seeds=[0], min_effect=0.02).effect == pytest.approx(2 / 3)


def test_only_seeds_with_every_arm_count():
    scores = {("a", s): table([1, 0]) for s in range(5)} | {("b", s): table([0, 0]) for s in (1, 3)}
    assert contrast_effect(LINK, scored(scores), seeds=range(5), min_effect=0.02).seeds == (1, 3)


def test_no_seed_gives_an_effect_of_none():
    none = contrast_effect(LINK, scored({}), seeds=range(5), min_effect=0.02)
    assert (none.effect, none.ci95, none.boot95, none.seed_sd, none.items) == (None, None, None, None, 0)


def test_arms_with_different_items_are_refused_with_counts():
    scores = {("a", 0): table([1, 0, 1]), ("b", 0): table([1, 0], items=["i000", "other"])}
    with pytest.raises(WorkError, match=r"pairs 3 items of 'a' with 2 of 'b'\. They share 1 items"):
        contrast_effect(LINK, scored(scores), seeds=[0], min_effect=0.02)


def test_where_that_leaves_no_item_is_refused():
    empty = difference("none", Measure("a", where=(("kind", "count"),)), Measure("b", where=(("kind", "count"),)))
    with pytest.raises(WorkError, match="pairs 0 items"):
        contrast_effect(empty, scored({("a", 0): table([1.0]), ("b", 0): table([1.0])}), seeds=[0], min_effect=0.02)


def test_null_scores_do_not_apply_and_nan_is_an_error():
    scores = {("a", 0): table([1, None, 0]), ("b", 0): table([0, None, 0])}
    assert contrast_effect(LINK, scored(scores), seeds=[0], min_effect=0.02).items == 2
    scores["b", 0] = table([0, float("nan"), 0])
    with pytest.raises(WorkError, match="1 of 3 values of 'correct' are not finite"):
        contrast_effect(LINK, scored(scores), seeds=[0], min_effect=0.02)


def test_item_that_appears_twice_and_unknown_column_are_refused():
    twice = {("a", 0): table([1, 0], items=["x", "x"]), ("b", 0): table([1, 0])}
    with pytest.raises(WorkError, match="2 rows match .* only 1 items differ"):
        contrast_effect(LINK, scored(twice), seeds=[0], min_effect=0.02)
    bleu = difference("bleu", Measure("a", "bleu4"), Measure("b", "bleu4"))
    with pytest.raises(WorkError, match="no column 'bleu4'; the columns are item, condition, kind, correct"):
        contrast_effect(bleu, scored({("a", 0): table([1.0]), ("b", 0): table([1.0])}), seeds=[0], min_effect=0.02)


def gate_scores(levels, *, blank=0.4, n=200):
    scores = {}
    for arm, level in levels.items():
        for seed in range(5):
            image, dark = table(coin(level, seed, n=n)), table(coin(blank, seed, n=n), condition="blank")
            scores[arm, seed] = pa.concat_tables([image, dark])
    return scores


GATE = Gate((Measure("a"), Measure("b")), (Measure("majority"), Measure(BEST, condition="blank")))


def test_gate_compares_the_best_arm_with_the_strongest_baseline():
    result = gate_result(GATE, scored(gate_scores({"a": 0.6, "b": 0.8, "majority": 0.5})), seeds=range(5))
    assert (result.is_passed, result.best, result.baseline) == (True, "b", "majority")
    assert result.best_mean == pytest.approx(0.8, abs=0.03)


def test_gate_reads_the_blank_image_from_the_best_arm():
    scores = scored(gate_scores({"a": 0.6, "b": 0.8, "majority": 0.3}, blank=0.45))
    assert gate_result(GATE, scores, seeds=range(5)).baseline == "b [blank]"


@pytest.mark.parametrize(
    ("levels", "failure"),
    [
        ({"a": 0.5, "b": 0.52, "majority": 0.5}, "under the margin 0.05"),
        ({"a": 0.99, "b": 0.995, "majority": 0.5}, "within 0.02 of the ceiling 1"),
    ],
)
def test_gate_fails_near_the_baseline_and_at_the_ceiling(levels, failure):
    gate = gate_result(GATE, scored(gate_scores(levels)), seeds=range(5))
    assert gate.is_passed is False
    assert failure in "; ".join(gate.failures)
    decision = decide(claim(gate=GATE), [effect(LINK, 0.05, 0.02), HELD], gate, planned_seeds=5)
    assert decision.verdict is Verdict.NOT_TESTABLE
    assert failure in decision.reason


def test_gate_fails_where_the_lead_is_large_and_its_interval_reaches_0():
    scores = gate_scores({"a": 0.5, "b": 0.4, "majority": 0.5})
    for seed, level in enumerate((0.9, 0.55, 0.5, 0.9, 0.4)):
        scores["a", seed] = gate_scores({"a": level})["a", seed]
    gate = gate_result(GATE, scored(scores), seeds=range(5))
    assert gate.difference.effect > 0.05
    assert gate.failures == ("the interval of the lead of a over majority is not above 0",)


def test_gate_goes_before_everything_else():
    gate = gate_result(GATE, scored(gate_scores({"a": 0.5, "b": 0.5, "majority": 0.5})), seeds=range(5))
    assert verdict(effect(LINK, 0.0, 0.01), HELD, gate=gate) is Verdict.NOT_TESTABLE


def test_gate_without_a_complete_seed_is_open():
    scores = gate_scores({"a": 0.6, "b": 0.7})
    gate = gate_result(GATE, scored(scores), seeds=range(5))
    assert gate.is_passed is None
    assert verdict(effect(LINK, 0.05, 0.02), HELD, gate=gate) is Verdict.NONE


def test_labels_name_the_condition_only_where_it_is_not_the_image():
    assert Measure("a").label == "a"
    assert Measure("a", condition="blank", where=(("kind", "side"),)).label == "a [blank, side]"


def test_a_measure_that_names_nothing_reads_what_the_paper_declares():
    """Headline and condition come from the paper: the spine knows neither an answer nor an image."""
    slices = table([1, 1], condition="slice", dice=pa.array([0.5, 0.75]))
    volumes = table([0, 0], condition="volume", dice=pa.array([0.25, 0.5]))
    scores = scored({("a", 0): pa.concat_tables([slices, volumes])}, headline="dice", condition="volume")
    assert scores.means(Measure("a"), [0]) == [0.375]
    assert scores.means(Measure("a", "correct", "slice"), [0]) == [1.0]
    assert scores.metric(Measure("a")) == "dice"


def run_of(values, first=0):
    return effect_of(LINK, values, seeds=range(first, first + len(values)), items=500, min_effect=0.02)


def test_runs_of_other_seeds_are_compared_by_welchs_test():
    ours, theirs = np.array([1.0, 2.0, 4.0, 3.0, 2.5]), np.array([2.0, 2.1, 2.2, 1.9, 2.0, 2.1, 2.3, 2.2])
    for shift in np.linspace(-3, 3, 25):
        expected = stats.ttest_ind(ours, theirs + shift, equal_var=False).pvalue >= 0.05
        assert agreement(run_of(ours), run_of(theirs + shift, first=100))[0] is bool(expected)


def test_runs_of_the_same_seeds_are_compared_in_pairs():
    """Seeds differ by 10 and the runs by 1 in every seed: only the pairs can tell."""
    ours = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    theirs = ours + np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    assert agreement(run_of(ours), run_of(theirs))[0] is False
    assert agreement(run_of(ours), run_of(theirs, first=100))[0] is True
    assert stats.ttest_rel(ours, theirs).pvalue < 0.05 <= stats.ttest_ind(ours, theirs, equal_var=False).pvalue


def test_equal_runs_agree_and_one_seed_is_no_test():
    assert agreement(run_of([1.0, 2.0]), run_of([1.0, 2.0])) == (True, 0.0)
    assert agreement(run_of([1.0, 1.0]), run_of([2.0, 2.0])) == (False, 0.0)
    assert agreement(run_of([1.0]), run_of([2.0, 3.0], first=5)) == (None, None)
    assert agreement(run_of([1.0, 2.0]), run_of([2.0, 3.0], first=1)) == (None, None)  # one shared seed


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 100])
def test_detectable_difference_is_detected_in_80_percent_of_runs(first):
    """Simulated at the mean of the announced differences, which vary with the spread that each run happens to have."""
    rng = np.random.default_rng(0)
    draws = [(rng.normal(0, 1, 8), rng.normal(0, 1, 8)) for _ in range(2000)]
    apart = np.mean([agreement(run_of(a), run_of(b, first))[1] for a, b in draws])
    agrees = [agreement(run_of(a), run_of(b + apart, first))[0] for a, b in draws]
    assert 0.77 < 1 - np.mean(agrees) < 0.83
    same = [agreement(run_of(a), run_of(b, first))[0] for a, b in draws]
    assert 0.935 < np.mean(same) < 0.965
