"""Diverse picks: max-min and DPP against float64 without shortcuts, exact ties, rank exhaustion, batches."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.greedy_select import op
from lightbox.kernels.greedy_select.op import greedy_select
from lightbox.kernels.greedy_select.reference import greedy_select_reference
from lightbox.testing.packed import SIZED, counts, normal, offsets, sign_rows


def pick(lane, feat, cu, k, rule="maxmin", relevance=None, eps=1e-6, max_len=None):
    def eager(feat, cu, k, total, rule, relevance, eps, max_len):
        return op.eager(feat, cu, k, total, rule, relevance, eps)

    return lane.pick(eager, op.launch)(feat, cu, k, int(k.sum()), rule, relevance, eps, max_len)


def check(lane, feat, lengths, numbers, rule="maxmin", relevance=None, margin=0.0):
    cu, k = offsets(lengths), counts(numbers)
    got = pick(lane, feat, cu, k, rule, relevance, max_len=max([1, *lengths]))
    want, lead = greedy_select_reference(feat, cu, k, rule, relevance)
    assert lead >= margin, f"an instance with a lead of {lead} checks nothing"
    assert got.dtype == torch.int64
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_max_min_equals_the_oracle_where_cosines_are_exact(lane, n, dtype):
    """Signs in 16 axes: only 9 cosines occur, so nearly every pick is a tie, and the lowest index must win it."""
    check(lane, sign_rows(n, 16, seed=n).to(dtype), [n], [min(n, 40)])


@pytest.mark.parametrize("n", [1, 2, 63, 65])
@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
def test_no_token_and_every_token(lane, n, rule):
    feat = normal(n, 80, seed=n)
    check(lane, feat, [n], [0], rule)
    got = pick(lane, feat, offsets([n]), counts([n]), rule)
    assert got.tolist() == list(range(n))


def test_max_min_equals_the_oracle_on_real_numbers(lane):
    check(lane, normal(577, 24, seed=3), [577], [12], margin=1e-5)


def test_segments_are_independent_and_may_be_empty(lane):
    check(lane, sign_rows(240, 64), [0, 65, 1, 0, 130, 44], [0, 9, 1, 0, 12, 0])


def test_equal_tokens_are_picked_by_index(lane):
    check(lane, torch.ones(40, 16), [40], [7])
    check(lane, torch.zeros(40, 16), [40], [7])


def test_a_width_that_is_no_power_of_two_and_strided_rows(lane):
    wide = normal(130, 200, seed=5)
    check(lane, wide[:, ::2][:, :72], [130], [10], margin=1e-5)


def test_the_first_pick_is_farthest_from_its_nearest_neighbour(lane):
    angle = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.9, 3.0])
    feat = torch.stack([angle.cos(), angle.sin()], dim=1)
    got = pick(lane, feat, offsets([6]), counts([1]))
    assert got.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (63, 10), (64, 10), (65, 12), (577, 16)])
def test_dpp_equals_the_oracle_where_leads_are_clear(lane, n, k, dtype):
    relevance = normal(n, seed=n + 1).sigmoid()
    check(lane, normal(n, 96, seed=n).to(dtype), [n], [k], "dpp", relevance, margin=1e-4 if n > 2 else 0)


def test_dpp_without_relevance_takes_the_lowest_index_first(lane):
    """Without relevance every first pick is a tie among all tokens of the segment."""
    feat = normal(150, 40, seed=8)
    got = pick(lane, feat, offsets([0, 63, 87]), counts([0, 6, 9]), "dpp", max_len=87)
    one, _ = greedy_select_reference(feat[:63], offsets([63]), counts([6]), "dpp")
    other, _ = greedy_select_reference(feat[63:], offsets([87]), counts([9]), "dpp")
    assert 0 in one
    assert got.tolist() == [*one.tolist(), *(other + 63).tolist()]


def test_dpp_goes_on_by_relevance_when_the_rank_is_used_up(lane):
    """Four directions, so from the fifth pick on nothing is new; released code of CDPruner gives NaN there."""
    feat = torch.eye(4).repeat(5, 1)
    relevance = torch.linspace(0.1, 1.0, 20)
    got = pick(lane, feat, offsets([20]), counts([7]), "dpp", relevance)
    assert got.tolist() == [13, 14, 15, 16, 17, 18, 19]
    reversed_relevance = relevance.flip(0)
    got = pick(lane, feat, offsets([20]), counts([7]), "dpp", reversed_relevance)
    assert got.tolist() == [0, 1, 2, 3, 4, 5, 6]
    relevance = torch.full((20,), 0.5)
    relevance[[9, 18]] = 1.0
    got = pick(lane, feat, offsets([20]), counts([7]), "dpp", relevance)
    want, _ = greedy_select_reference(feat, offsets([20]), counts([7]), "dpp", relevance)
    assert got.tolist() == want.tolist()


def test_tokens_of_relevance_zero_come_last(lane):
    relevance = torch.ones(30)
    relevance[:15] = 0
    got = pick(lane, normal(30, 64), offsets([30]), counts([16]), "dpp", relevance)
    assert got.tolist() == [0, *range(15, 30)]


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
def test_nan_is_refused_where_values_can_be_read_and_harmless_elsewhere(lane, rule):
    feat = normal(50, 16)
    feat[[3, 30]] = math.nan
    if lane.name == "cpu":
        with pytest.raises(RequestError, match=r"feat with NaN at \[3, 0\]"):
            greedy_select(feat, offsets([50]), counts([20]), 20, rule=rule)
    else:
        got = pick(lane, feat, offsets([50]), counts([20]), rule)
        assert len(set(got.tolist()) & set(range(50))) == 20


def test_twenty_runs_are_bitwise_equal(lane):
    feat, cu, k = normal(40, 16), offsets([24, 16]), counts([3, 2])
    for rule in ("maxmin", "dpp"):
        first = pick(lane, feat, cu, k, rule)
        assert all(torch.equal(first, pick(lane, feat, cu, k, rule)) for _ in range(20))


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
def test_permuting_the_batch_permutes_the_picks(rule):
    """Relevance normalised over the whole batch, as in the released code of CDPruner, fails here."""
    parts = [normal(60, 48, seed=s) for s in range(3)]
    relevance = [normal(60, seed=9 + s).sigmoid() if rule == "dpp" else None for s in range(3)]

    def run(order):
        given = torch.cat([relevance[s] for s in order]) if rule == "dpp" else None
        picks = greedy_select(
            torch.cat([parts[s] for s in order]), offsets([60] * 3), counts([6] * 3), 18, rule=rule, relevance=given
        )
        return {s: (picks[6 * place : 6 * place + 6] - 60 * place).tolist() for place, s in enumerate(order)}

    assert run([0, 1, 2]) == run([2, 0, 1])


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
def test_segments_that_do_not_fit_at_once_give_the_same(monkeypatch, rule):
    given = normal(120, 24), offsets([50, 0, 30, 40]), counts([5, 0, 3, 9]), 17
    at_once = greedy_select(*given, rule=rule)
    monkeypatch.setattr(op, "_AT_ONCE", 1)
    assert torch.equal(greedy_select(*given, rule=rule), at_once)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "kmeans"}, "rule='kmeans'"),
        ({"relevance": torch.ones(4)}, "relevance with rule='maxmin'"),
        ({"rule": "dpp", "relevance": -torch.ones(4)}, "relevance with a value of -1.0"),
        ({"rule": "dpp", "relevance": torch.ones(3)}, r"relevance of shape \[3\]"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": math.nan}, "eps=nan"),
        ({"feat": torch.full((4, 2), math.nan)}, r"feat with NaN at \[0, 0\]"),
        ({"feat": torch.ones(4)}, r"feat of shape \[4\]"),
        ({"feat": torch.ones(4, 2, dtype=torch.int32)}, "feat of int32"),
        ({"k": counts([5]), "total": 5}, r"k\[0\]=5 for a segment of 4"),
        ({"max_len": 3}, "max_len=3. The longest segment has 4"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(unchecked, changes, message):
    given = {"feat": torch.ones(4, 2), "cu": offsets([4]), "k": counts([2]), "total": 2, **changes}
    with pytest.raises(RequestError, match=message) as caught:
        greedy_select(**given)
    assert all((caught.value.given, caught.value.why, caught.value.do))


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
def test_the_operator_passes_opcheck_and_compiles(compiled, rule):
    given = normal(30, 8), offsets([20, 10]), counts([4, 2]), 6
    torch.library.opcheck(op._greedy_select, (*given, rule, None, 1e-6, None))
    call = compiled(lambda feat, cu, k: greedy_select(feat, cu, k, 6, rule=rule))
    assert torch.equal(call(*given[:3]), greedy_select(*given, rule=rule))
