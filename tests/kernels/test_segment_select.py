"""Selection per segment: exact equality with the sorted oracle, ties, signed zeros, NaN; budgets that sum exactly."""

import math
import random

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.segment_select import op
from lightbox.kernels.segment_select.op import allocate_budget, segment_select
from lightbox.kernels.segment_select.reference import allocate_budget_reference, segment_select_reference
from lightbox.testing.packed import SIZED, counts, normal, offsets


def check(lane, scores, lengths, numbers):
    cu, k = offsets(lengths), counts(numbers)
    got = lane.pick(op.eager, op.launch)(scores, cu, k, int(k.sum()))
    want = segment_select_reference(scores, cu, k)
    assert got[0].dtype == torch.int64
    assert got[1].dtype == torch.int32
    assert got[0].tolist() == want[0].tolist()
    assert got[1].tolist() == want[1].tolist()


@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_selection_equals_the_oracle_at_every_size(lane, n, dtype):
    for k in {0, 1, n // 3, n - 1, n}:
        check(lane, normal(n, seed=n).to(dtype), [n], [k])


def test_segments_are_independent_and_may_be_empty(lane):
    check(lane, normal(1200), [0, 65, 0, 1, 1000, 134, 0], [0, 64, 0, 1, 577, 0, 0])


def test_equal_scores_keep_the_lowest_indices(lane):
    check(lane, torch.ones(200), [70, 130], [33, 100])
    check(lane, torch.tensor([2.0, 1, 2, 1, 2, 1, 2]), [7], [2])


def test_few_distinct_scores_tie_by_index(lane):
    check(lane, normal(577).mul(2).round(), [577], [200])


def test_signed_zeros_tie(lane):
    check(lane, torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0]), [5], [3])


def test_infinite_scores_have_their_place(lane):
    check(lane, torch.tensor([-math.inf, math.inf, 0.0, -math.inf, math.inf, -3e38]), [6], [4])


def test_nan_comes_after_everything_else(lane):
    nan = math.nan
    scores = torch.tensor([nan, -math.inf, 1.0, -nan, 0.0])
    check(lane, scores, [5], [3])
    check(lane, scores, [5], [4])


def test_denormal_and_huge_scores_keep_their_order(lane):
    check(lane, torch.tensor([1e-45, 0.0, -1e-45, 3e38, -3e38, 1e-38]), [6], [3])


def test_scores_that_are_not_contiguous_are_read_right(lane):
    check(lane, normal(300, 3)[:, 1], [100, 200], [10, 50])


def test_no_segments_give_nothing(lane):
    check(lane, torch.zeros(0), [], [])
    check(lane, torch.zeros(0), [0, 0], [0, 0])


def test_more_than_a_block_of_tokens(lane):
    check(lane, normal(5476).mul(50).round(), [5476], [1369])


def test_many_segments(lane):
    check(lane, normal(70 * 3), [3] * 70, [s % 4 for s in range(70)])


def test_twenty_runs_are_bitwise_equal(lane):
    scores, cu, k = normal(600).mul(3).round(), offsets([577, 23]), counts([100, 5])
    run = lane.pick(op.eager, op.launch)
    first = run(scores, cu, k, 105)
    assert all(torch.equal(first[0], run(scores, cu, k, 105)[0]) for _ in range(20))


def test_permuting_segments_permutes_the_picks():
    parts = [normal(50, seed=s) for s in range(3)]
    one, _ = segment_select(torch.cat(parts), offsets([50] * 3), counts([5, 6, 7]), 18)
    other, _ = segment_select(torch.cat(parts[::-1]), offsets([50] * 3), counts([7, 6, 5]), 18)
    assert (other[:7]).tolist() == (one[11:] - 100).tolist()
    assert (other[13:] - 100).tolist() == one[:5].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.tensor([1.0, math.nan, 2.0])}, r"scores with NaN at \[1\]"),
        ({"scores": torch.zeros(3, dtype=torch.float64)}, "scores of float64"),
        ({"scores": torch.zeros(3, 1)}, r"scores of shape \[3, 1\]"),
        ({"cu": offsets([2])}, r"cu=\[0, 2\] for 3 rows"),
        ({"cu": torch.tensor([0, 3])}, "cu of int64"),
        ({"cu": torch.tensor([0, 4, 3], dtype=torch.int32), "k": counts([1, 1])}, r"cu=\[0, 4, 3\]"),
        ({"k": counts([4]), "total": 4}, r"k\[0\]=4 for a segment of 3 tokens"),
        ({"k": counts([-1]), "total": -1}, "total=-1"),
        ({"k": counts([1, 1])}, r"k of shape \[2\]"),
        ({"total": 3}, "total=3 and k that sums to 2"),
        ({"scores": torch.zeros(3, device="meta")}, "scores on 'meta', cu on 'cpu'"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(changes, message):
    given = {"scores": torch.zeros(3), "cu": offsets([3]), "k": counts([2]), "total": 2} | changes
    with pytest.raises(RequestError, match=message) as caught:
        op._check(**given)
    assert all((caught.value.given, caught.value.why, caught.value.do))


def test_the_operator_itself_refuses_nan():
    with pytest.raises(RequestError, match="scores with NaN"):
        segment_select(torch.tensor([math.nan]), offsets([1]), counts([1]), 1)


def test_the_operator_passes_opcheck_and_compiles(compiled):
    given = (normal(65), offsets([60, 5]), counts([7, 2]), 9)
    torch.library.opcheck(op._segment_select, given)
    call = compiled(segment_select, dynamic=True)
    assert torch.equal(call(*given)[0], segment_select(*given)[0])
    longer = (normal(70), offsets([60, 10]), counts([7, 2]), 9)
    assert torch.equal(call(*longer)[0], segment_select(*longer)[0])


def test_budgets_equal_the_oracle_and_sum_exactly():
    draw = random.Random(0)
    for _ in range(300):
        n = draw.randint(1, 12)
        weights = [draw.choice([0.0, 1.0, 1.0, 2.5, draw.random(), 100 * draw.random()]) for _ in range(n)]
        cap = [draw.randint(0, 30) for _ in range(n)]
        total = draw.randint(0, sum(cap))
        got = allocate_budget(torch.tensor(weights), total, counts(cap))
        assert got.tolist() == allocate_budget_reference(torch.tensor(weights), total, counts(cap)).tolist()
        assert int(got.sum()) == total
        assert all(0 <= one <= most for one, most in zip(got.tolist(), cap, strict=True))


@pytest.mark.parametrize(
    ("weights", "total", "cap", "given_out"),
    [
        ([1.0, 1.0, 1.0], 10, [9, 9, 9], [4, 3, 3]),  # equal remainders: the lowest index gets the one left
        ([3.0, 1.0], 8, [4, 9], [4, 4]),  # what a full segment cannot take goes on
        ([0.0, 1.0], 9, [9, 5], [4, 5]),  # weight 0 takes only what the others cannot
        ([0.0, 0.0], 3, [5, 5], [2, 1]),
        ([0.1, 0.2, 0.7], 10, [10, 10, 10], [1, 2, 7]),  # whole quotas stay whole in spite of rounding
        ([5.0], 0, [7], [0]),
        ([1.0, 1.0], 14, [7, 7], [7, 7]),
    ],
)
def test_budgets_by_hand(weights, total, cap, given_out):
    assert allocate_budget(torch.tensor(weights), total, counts(cap)).tolist() == given_out


@pytest.mark.parametrize(
    ("weights", "total", "cap", "message"),
    [
        ([1.0, -1.0], 1, [1, 1], "value of -1.0"),
        ([1.0, math.nan], 1, [1, 1], "value of nan"),
        ([1.0, math.inf], 1, [1, 1], "value of inf"),
        ([1.0], 3, [2], "total=3. The segments have room for 2"),
        ([1.0], -1, [2], "total=-1"),
        ([1.0, 1.0], 1, [2], r"cap of shape \[1\]"),
    ],
)
def test_impossible_budgets_are_refused(unchecked, weights, total, cap, message):
    with pytest.raises(RequestError, match=message):
        allocate_budget(torch.tensor(weights), total, counts(cap))


def test_no_segments_share_nothing():
    assert allocate_budget(torch.zeros(0), 0, counts([])).tolist() == []
