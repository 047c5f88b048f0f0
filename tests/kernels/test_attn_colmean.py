"""Column means of attention: float64 agreement, given and computed lse, strides, and that shares sum to 1."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.attn_colmean import op
from lightbox.kernels.attn_colmean.op import attn_colmean
from lightbox.kernels.attn_colmean.reference import attn_colmean_reference, lse_reference
from lightbox.testing.close import assert_close
from lightbox.testing.packed import SIZED, normal, offsets


def colmean(lane, q, k, cu, lse=None, scale=1.0, query_stride=1):
    def launch(q, k, cu, lse, scale, query_stride):
        return op.launch(q, k, cu, lse, scale=scale, query_stride=query_stride)

    return lane.pick(op.eager, launch)(q, k, cu, lse, scale, query_stride)


def check(lane, lengths, n_heads=2, width=16, dtype=torch.float32, query_stride=1, *, gives_lse=False, spread=1.0):
    n = sum(lengths)
    q = (normal(n, n_heads, width, seed=n) * spread).to(dtype)
    k, cu, scale = normal(n, n_heads, width, seed=n + 1).to(dtype), offsets(lengths), width**-0.5
    lse = lse_reference(q, k, cu, scale).float() if gives_lse else None
    got = colmean(lane, q, k, cu, lse, scale, query_stride)
    assert got.dtype == torch.float32
    assert_close(got, attn_colmean_reference(q, k, cu, lse, scale=scale, query_stride=query_stride))
    return got


@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_the_mean_agrees_with_float64_at_every_size(lane, n, dtype):
    check(lane, [n], dtype=dtype, n_heads=1 if n > 500 else 3)


@pytest.mark.parametrize("width", [1, 64, 72, 80, 128, 256])
def test_every_head_width(lane, width):
    check(lane, [70], width=width)
    check(lane, [70], width=width, dtype=torch.float16, gives_lse=True)


def test_segments_are_independent_and_may_be_empty(lane):
    got = check(lane, [0, 65, 1, 0, 130, 3, 0])
    for start, stop in ((0, 65), (65, 66), (66, 196), (196, 199)):
        assert float(got[start:stop].sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("stride", [2, 4, 100])
@pytest.mark.parametrize("gives_lse", [False, True])
def test_a_stride_uses_some_queries_of_each_segment(lane, stride, gives_lse):
    check(lane, [65, 1, 130], query_stride=stride, gives_lse=gives_lse)


def test_a_given_lse_is_used(lane):
    q, k, cu = normal(40, 2, 16), normal(40, 2, 16, seed=1), offsets([40])
    lse = lse_reference(q, k, cu, 0.25).float()
    assert_close(colmean(lane, q, k, cu, lse, 0.25), colmean(lane, q, k, cu, None, 0.25))
    doubled = colmean(lane, q, k, cu, lse - math.log(2), 0.25)
    assert_close(doubled, 2 * attn_colmean_reference(q, k, cu, scale=0.25), dtype="float32")


def test_large_logits_do_not_overflow(lane):
    check(lane, [130], spread=80.0)


def test_one_hot_attention_by_hand(lane):
    """Queries 0 and 1 look at key 1, query 2 at key 0: shares 1/3, 2/3, 0."""
    key = torch.eye(3)[:, None]
    query = 60 * torch.eye(3)[[1, 1, 0]][:, None]
    assert_close(colmean(lane, query, key, offsets([3])), torch.tensor([1 / 3, 2 / 3, 0.0]), dtype="float32")


def test_strided_queries_and_keys_as_a_tower_gives_them(lane):
    packed = normal(65, 3, 2, 24)  # one projection for q, k and v
    q, k, cu = packed[:, 0], packed[:, 1], offsets([65])
    assert_close(colmean(lane, q, k, cu, scale=0.2), attn_colmean_reference(q, k, cu, scale=0.2), dtype="float32")


def test_no_tokens_give_nothing(lane):
    assert colmean(lane, torch.zeros(0, 2, 16), torch.zeros(0, 2, 16), offsets([0])).shape == (0,)


def test_twenty_runs_are_bitwise_equal(lane):
    q, k, cu = normal(70, 1, 16), normal(70, 1, 16, seed=1), offsets([66, 4])
    first = colmean(lane, q, k, cu)
    assert all(torch.equal(first, colmean(lane, q, k, cu)) for _ in range(20))


def test_queries_in_several_pieces_give_the_same(monkeypatch):
    q, k, cu = normal(50, 2, 8), normal(50, 2, 8, seed=1), offsets([50])
    at_once = attn_colmean(q, k, cu, scale=0.3)
    monkeypatch.setattr(op, "_AT_ONCE", 7 * 2 * 50)
    assert_close(attn_colmean(q, k, cu, scale=0.3), at_once)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(4, 2)}, r"q of shape \[4, 2\]"),
        ({"k": torch.zeros(4, 1, 8)}, r"k of shape \[4, 1, 8\]. It must be \[T, H, d\] as q"),
        ({"k": torch.zeros(4, 2, 8).half()}, "k of float16"),
        ({"lse": torch.zeros(4, 2)}, r"lse of shape \[4, 2\]"),
        ({"lse": torch.zeros(2, 4).double()}, "lse of float64"),
        ({"query_stride": 0}, "query_stride=0"),
        ({"cu": offsets([5])}, r"cu=\[0, 5\] for 4 rows"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(unchecked, changes, message):
    given = {"q": torch.zeros(4, 2, 8), "k": torch.zeros(4, 2, 8), "cu": offsets([4]), "scale": 1.0, **changes}
    with pytest.raises(RequestError, match=message) as caught:
        attn_colmean(**given)
    assert all((caught.value.given, caught.value.why, caught.value.do))


def test_the_operator_passes_opcheck_and_compiles(compiled):
    q, k, cu = normal(30, 2, 8), normal(30, 2, 8, seed=1), offsets([20, 10])
    torch.library.opcheck(op._attn_colmean, (q, k, cu, None, 0.3, 2))
    call = compiled(lambda q, k, cu: attn_colmean(q, k, cu, scale=0.3), dynamic=True)
    assert torch.equal(call(q, k, cu), attn_colmean(q, k, cu, scale=0.3))
