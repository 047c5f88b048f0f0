"""The operators themselves on CUDA: full sizes, against PyTorch on the CPU, and without a wait for the device."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.assign_merge.op import assign_merge
from lightbox.kernels.attn_colmean import op as colmean_op
from lightbox.kernels.attn_colmean.op import attn_colmean
from lightbox.kernels.few_query_scores import op as query_op
from lightbox.kernels.few_query_scores.op import few_query_scores
from lightbox.kernels.greedy_select.op import greedy_select
from lightbox.kernels.ragged_splice.op import ragged_splice
from lightbox.kernels.segment_select.op import allocate_budget, segment_select
from lightbox.kernels.temporal_keep.op import temporal_keep
from lightbox.testing.close import assert_close
from lightbox.testing.packed import counts, normal, offsets, sign_rows

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.fail("tests marked gpu need a CUDA device, and there is none")


@pytest.fixture
def no_wait():
    """From here on an operation that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def there(values):
    return [value.cuda() if isinstance(value, torch.Tensor) else value for value in values]


TILES = offsets([576] * 20)  # four images of LLaVA-NeXT, five tiles each


def test_selection_with_a_budget_at_full_size(no_wait):
    given = there([normal(20 * 576), TILES, normal(20).abs(), counts([576] * 20)])
    k = allocate_budget(given[2], 2304, given[3])
    got = segment_select(given[0], given[1], k, 2304)
    torch.cuda.set_sync_debug_mode("default")
    want = segment_select(normal(20 * 576), TILES, k.cpu(), 2304)
    assert [part.tolist() for part in got] == [part.tolist() for part in want]


@pytest.mark.parametrize("rule", ["maxmin", "dpp"])
@pytest.mark.parametrize("n", [576, 2880, 4096])
def test_greedy_selection_at_full_size(n, rule):
    feat, cu, k = sign_rows(n, 1024) if rule == "maxmin" else normal(n, 1024), offsets([n]), counts([64])
    relevance = normal(n, seed=1).sigmoid() if rule == "dpp" else None
    given = there([feat, cu, k, 64])
    on_device = None if relevance is None else relevance.cuda()
    torch.cuda.set_sync_debug_mode("error")
    got = greedy_select(*given, rule=rule, relevance=on_device, max_len=n)
    torch.cuda.set_sync_debug_mode("default")
    assert got.tolist() == greedy_select(feat, cu, k, 64, rule=rule, relevance=relevance).tolist()


@pytest.mark.parametrize(("n", "width"), [(4096, 72), (5476, 80), (577, 64), (1024, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_column_means_at_full_size(n, width, dtype):
    q, k, cu = normal(n, 4, width).to(dtype), normal(n, 4, width, seed=1).to(dtype), offsets([n])
    got = attn_colmean(*there([q, k, cu]), scale=width**-0.5)
    assert_close(got, colmean_op.eager(q, k, cu, None, width**-0.5, 1))


@pytest.mark.parametrize("n_queries", [1, 16, 64])
@pytest.mark.parametrize(("batch", "n", "heads", "width"), [(20, 577, (16, 16), 64), (1, 1400, (28, 4), 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_of_few_queries_at_full_size(batch, n, heads, width, n_queries, dtype):
    """The class token of four images in five tiles, and the last tokens of a prompt that heads share keys for."""
    q, k = normal(batch, heads[0], n_queries, width), normal(batch, heads[1], n, width, seed=1)
    q, k, lse = q.to(dtype), k.to(dtype), normal(batch, heads[0], n_queries, seed=2).abs() + 5
    given = there([q, k, lse])
    for reduce in query_op.REDUCTIONS:
        for row_lse in (None, lse):
            torch.cuda.set_sync_debug_mode("error")
            own = None if row_lse is None else given[2]
            got = few_query_scores(given[0], given[1], scale=width**-0.5, key_range=(1, n), lse=own, reduce=reduce)
            torch.cuda.set_sync_debug_mode("default")
            want = query_op.eager(q, k, scale=width**-0.5, key_range=(1, n), lse=row_lse, reduce=reduce)
            assert_close(got, want)


@pytest.mark.parametrize("mode", ["mean", "sum_plus_target"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_and_its_gradients_at_full_size(mode, dtype):
    metric, x = sign_rows(2880, 64), normal(2880, 1024).to(dtype)
    cu = offsets([576] * 5)
    idx, cu_kept = segment_select(normal(2880), cu, counts([58] * 5), 290)
    results = []
    for device in ("cpu", "cuda"):
        rows, heavy = x.to(device).requires_grad_(), torch.ones(2880, device=device).requires_grad_()
        y, assign = assign_merge(metric.to(device), rows, *(v.to(device) for v in (idx, cu, cu_kept)), heavy, mode)
        grads = torch.autograd.grad(y, (rows, heavy), normal(*y.shape, seed=3).to(device, dtype))
        results.append((y, assign, grads[0]))
    for here, over_there in zip(*results, strict=True):
        assert_close(over_there, here, dtype=str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_splicing_and_its_gradients_at_full_size(dtype):
    idx, _ = segment_select(normal(2304), offsets([2304]), counts([2000]), 2000)
    layout = torch.cat([torch.arange(600), -torch.arange(2000) - 1, torch.arange(600, 1200)]).int()
    results = []
    for device in ("cpu", "cuda"):
        leaves = [normal(n, 3584, seed=n).to(device, dtype).requires_grad_() for n in (2304, 500)]
        ids = (torch.arange(1200) * 7) % 500
        pos, text_pos = torch.arange(3 * 2304).view(3, -1), torch.arange(3 * 1200).view(3, -1)
        rest = [value.to(device) for value in (idx, ids, layout, pos, text_pos, ids)]
        emb, places, labels, _ = ragged_splice(
            leaves[0], rest[0], rest[1], leaves[1], rest[2], rest[3], rest[4], rest[5]
        )
        grads = torch.autograd.grad(emb, leaves, normal(*emb.shape, seed=3).to(device, dtype))
        results.append((emb, places, labels, grads[0]))
    for here, over_there in zip(*results, strict=True):
        assert torch.equal(here, over_there.cpu())


@pytest.mark.parametrize("metric", ["cos", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_changes_between_slices_at_full_size(metric, dtype):
    """Signs are exact in every dtype, so choices are compared exactly, ties included."""
    for x in (sign_rows(64 * 256, 1024).view(64, 256, 1024).to(dtype), normal(64, 256, 2560).to(dtype)):
        (on_device,) = there([x])
        torch.cuda.set_sync_debug_mode("error")
        mask, score = temporal_keep(on_device, metric=metric, k_total=4096)
        torch.cuda.set_sync_debug_mode("default")
        want_mask, want_score = temporal_keep(x, metric=metric, k_total=4096)
        assert torch.equal(score[0].cpu(), want_score[0])
        assert_close(score[1:], want_score[1:])
        assert int(mask.sum()) == 4096
        if x.shape[2] == 1024:
            assert torch.equal(mask.cpu(), want_mask)


def test_more_than_the_kernels_can_hold_is_refused_before_a_launch():
    with pytest.raises(RequestError, match="heads of width 257"):
        attn_colmean(*there([normal(4, 1, 257), normal(4, 1, 257), offsets([4])]), scale=1.0)
    with pytest.raises(RequestError, match="heads of width 257"):
        few_query_scores(*there([normal(1, 1, 1, 257), normal(1, 1, 4, 257)]), scale=1.0)
    with pytest.raises(RequestError, match="tokens of width 16385"):
        temporal_keep(*there([normal(2, 2, 16385)]), k_total=3)
    with pytest.raises(RequestError, match="A segment may have 16384 tokens"):
        greedy_select(*there([normal(17000, 2), offsets([17000]), counts([3])]), 3)
