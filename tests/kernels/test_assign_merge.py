"""Dropped tokens folded into kept ones: assignment exactly, values and both gradients against float64 autograd."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.assign_merge import op
from lightbox.kernels.assign_merge.op import assign_merge
from lightbox.kernels.assign_merge.reference import assign_merge_reference
from lightbox.kernels.segment_select.op import segment_select
from lightbox.testing.close import assert_close
from lightbox.testing.packed import SIZED, counts, normal, offsets, sign_rows

MODES = ("mean", "sum_plus_target")


def kept_of(lengths, numbers, seed=0):
    cu = offsets(lengths)
    idx, cu_kept = segment_select(normal(sum(lengths), seed=seed), cu, counts(numbers), sum(numbers))
    return idx, cu, cu_kept


def check(lane, metric, x, kept, weight=None, mode="mean"):
    """Forward, and the gradients of x and weight for a random upstream gradient."""
    idx, cu, cu_kept = kept
    y, assign, whole = lane.pick(op.eager, op.launch)(metric, x, idx, cu, cu_kept, weight, mode)
    wide = x.double().requires_grad_()
    heavy = (torch.ones(len(x)) if weight is None else weight).double().requires_grad_()
    want, want_assign = assign_merge_reference(metric, wide, idx, cu, cu_kept, heavy, mode)
    assert y.dtype == x.dtype
    assert assign.dtype == torch.int32
    assert assign.tolist() == want_assign.tolist()
    assert_close(y, want)
    grad = normal(*y.shape, seed=7).to(x.dtype)
    (want * grad.double()).sum().backward()
    got = lane.pick(op.eager_backward, op.launch_backward)(grad, x, y, idx, assign, whole, weight, mode)
    assert_close(got[0], torch.zeros_like(x) if wide.grad is None else wide.grad, dtype=str(x.dtype)[6:])
    # the weight's gradient is a difference with the rounded mean, so it is as exact as the tokens are
    assert_close(got[1], torch.zeros(len(x)) if heavy.grad is None else heavy.grad, dtype=str(x.dtype)[6:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_values_and_gradients_agree_with_float64_at_every_size(lane, n, dtype, mode):
    """Likeness of signs in 16 axes is exact and ties nearly everywhere: the first kept token must win."""
    kept = kept_of([n], [max(1, min(n // 8, 20))])
    check(lane, sign_rows(n, 16, seed=n).to(dtype), normal(n, 24, seed=n).to(dtype), kept, None, mode)


@pytest.mark.parametrize("mode", MODES)
def test_weights_count(lane, mode):
    weight = normal(130, seed=4).abs() + 0.1
    check(lane, sign_rows(130, 64), normal(130, 40), kept_of([130], [11]), weight, mode)


@pytest.mark.parametrize("mode", MODES)
def test_segments_are_independent_empty_or_without_kept_tokens(lane, mode):
    kept = kept_of([0, 65, 20, 1, 0, 70], [0, 5, 0, 1, 0, 70])
    check(lane, sign_rows(156, 16), normal(156, 130), kept, normal(156, seed=2).abs() + 0.5, mode)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_kept_at_all(lane, mode):
    check(lane, sign_rows(9, 16), normal(9, 8), kept_of([9], [0]), None, mode)


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_zero_leave_the_kept_token_as_it_is(lane, mode):
    metric, x, kept = sign_rows(40, 16), normal(40, 8), kept_of([40], [4])
    check(lane, metric, x, kept, torch.zeros(40), mode)
    y = lane.pick(op.eager, op.launch)(metric, x, *kept, torch.zeros(40), mode)[0]
    assert torch.equal(y, x[kept[0]])


@pytest.mark.parametrize("mode", MODES)
def test_a_metric_of_zeros_goes_to_the_first_kept_token(lane, mode):
    check(lane, torch.zeros(70, 16), normal(70, 8), kept_of([70], [66]), None, mode)


def test_a_kept_twin_keeps_its_own_place(lane):
    """Two kept tokens alike: each stays itself though the first would win the tie."""
    metric = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    x = torch.tensor([[1.0], [2.0], [4.0]])
    y, assign, _ = lane.pick(op.eager, op.launch)(
        metric, x, torch.tensor([0, 1]), offsets([3]), offsets([2]), None, "mean"
    )
    assert assign.tolist() == [0, 1, 0]
    assert y.tolist() == [[2.5], [2.0]]


def test_norms_of_the_metric_do_not_count(lane):
    metric = torch.tensor([[100.0, 100.0], [0.0, 0.01], [0.0, 5.0]])
    assign = lane.pick(op.eager, op.launch)(
        metric, metric, torch.tensor([0, 1]), offsets([3]), offsets([2]), None, "mean"
    )[1]
    assert assign.tolist() == [0, 1, 1]


def test_sum_grows_norms_and_mean_does_not(lane):
    x = torch.ones(10, 4)
    kept = torch.tensor([0]), offsets([10]), offsets([1])
    run = lane.pick(op.eager, op.launch)
    assert run(x, x, *kept, None, "mean")[0].tolist() == [[1.0] * 4]
    assert run(x, x, *kept, None, "sum_plus_target")[0].tolist() == [[2.0] * 4]


def test_wide_rows_and_strided_input(lane):
    wide = normal(66, 2, 300)
    metric = sign_rows(66, 512)[:, ::2]
    check(lane, metric, wide[:, 1], kept_of([66], [9]), normal(132).abs()[::2])


def test_twenty_runs_are_bitwise_equal(lane):
    given = (normal(50, 16), normal(50, 8), *kept_of([30, 20], [4, 2]), None, "mean")
    run = lane.pick(op.eager, op.launch)
    first = run(*given)
    assert all(torch.equal(first[0], run(*given)[0]) for _ in range(20))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_the_operator_pass_gradcheck(mode):
    metric, kept = normal(12, 4), kept_of([5, 0, 7], [2, 0, 3])
    x, weight = normal(12, 3).double().requires_grad_(), (normal(12).abs() + 0.5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: assign_merge(metric, x, *kept, w, mode)[0], (x, weight))


def test_gradients_reach_every_token_of_a_segment_that_keeps_some():
    x = normal(12, 3).requires_grad_()
    y, assign = assign_merge(x.detach(), x, *kept_of([5, 7], [2, 0]))
    y.sum().backward()
    assert (x.grad[:5] != 0).all()
    assert (x.grad[5:] == 0).all()
    assert (assign[5:] == -1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "max"}, "mode='max'"),
        ({"metric": torch.full((4, 2), math.nan)}, "metric with NaN"),
        ({"metric": torch.zeros(3, 2)}, r"metric of shape \[3, 2\]"),
        ({"idx": torch.tensor([2, 0])}, "idx that does not rise"),
        ({"idx": torch.tensor([1, 1])}, "idx that does not rise"),
        ({"idx": torch.tensor([1, 4])}, "a token outside its segment"),
        ({"cu": offsets([1, 3]), "cu_kept": offsets([2, 0])}, "a token outside its segment"),
        ({"cu_kept": offsets([3])}, r"cu_kept=\[0, 3\] for 2 rows"),
        ({"cu_kept": offsets([1, 1])}, r"cu_kept of shape \[3\]"),
        ({"idx": torch.tensor([0, 2], dtype=torch.int32)}, "idx of int32"),
        ({"weight": torch.tensor([1.0, -2, 1, 1])}, "weight with a value of -2.0"),
        ({"weight": torch.ones(3)}, r"weight of shape \[3\]"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(unchecked, changes, message):
    given = {
        "metric": torch.ones(4, 2),
        "x": torch.ones(4, 3),
        "idx": torch.tensor([0, 2]),
        "cu": offsets([4]),
        "cu_kept": offsets([2]),
        **changes,
    }
    with pytest.raises(RequestError, match=message) as caught:
        assign_merge(**given)
    assert all((caught.value.given, caught.value.why, caught.value.do))


@pytest.mark.slow
def test_the_operator_passes_opcheck_and_compiles(compiled):
    x, kept = normal(20, 6).requires_grad_(), kept_of([12, 8], [3, 2])
    metric, weight = normal(20, 4), torch.ones(20).requires_grad_()
    torch.library.opcheck(op._assign_merge, (metric, x, *kept, weight, "mean"))
    call = compiled(lambda x, w: assign_merge(metric, x, *kept, w)[0].square().sum())
    (grad,) = torch.autograd.grad(call(x, weight), x)
    (want,) = torch.autograd.grad(assign_merge(metric, x, *kept, weight)[0].square().sum(), x)
    assert torch.equal(grad, want)
