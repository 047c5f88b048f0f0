"""Rows of attention for few queries: float64 agreement, shared key heads, ranges, given lse, and what rows sum to."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.few_query_scores import op
from lightbox.kernels.few_query_scores.op import REDUCTIONS, few_query_scores
from lightbox.kernels.few_query_scores.reference import few_query_lse_reference, few_query_scores_reference
from lightbox.testing.close import assert_close
from lightbox.testing.packed import SIZED, normal


def check(
    lane,
    n,
    heads=(2, 1),
    n_queries=1,
    width=16,
    dtype=torch.float32,
    *,
    batch=1,
    gives_lse=False,
    spread=1.0,
    **options,
):
    q = (normal(batch, heads[0], n_queries, width, seed=n) * spread).to(dtype)
    k, scale = normal(batch, heads[1], n, width, seed=n + 1).to(dtype), width**-0.5
    if gives_lse:
        options["lse"] = few_query_lse_reference(q, k, scale).float()
    got = lane.pick(op.eager, op.launch)(q, k, scale=scale, **options)
    assert got.dtype == torch.float32
    assert_close(got, few_query_scores_reference(q, k, scale=scale, **options))
    return got


@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_scores_agree_with_float64_at_every_size(lane, n, dtype):
    batch = 1 if n > 500 else 2
    got = check(lane, n, dtype=dtype, batch=batch)
    assert got.sum(dim=1).tolist() == pytest.approx([1] * batch, abs=1e-5)
    check(lane, n, (1, 1), n_queries=5, dtype=dtype)  # more rows than keep their logits


@pytest.mark.parametrize("width", [1, 64, 72, 80, 128, 256])
def test_every_width_of_a_head(lane, width):
    check(lane, 70, width=width)
    check(lane, 70, width=width, n_queries=width // 4 + 1, dtype=torch.float16)


@pytest.mark.parametrize("heads", [(3, 3), (7, 1), (8, 1), (6, 2)])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_heads_may_share_keys(lane, heads, n_queries):
    check(lane, 33, heads, n_queries, width=32, reduce="per_head")


@pytest.mark.parametrize("n_queries", [1, 70])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("gives_lse", [False, True])
def test_reductions_of_few_and_many_queries(lane, n_queries, reduce, gives_lse):
    got = check(lane, 35, (2, 2), n_queries, reduce=reduce, gives_lse=gives_lse)
    assert got.shape == ((1, 2, 35) if reduce == "per_head" else (1, 35))
    assert float(got.sum()) == pytest.approx({"mean": 1, "sum": 2 * n_queries, "per_head": 2}[reduce], rel=1e-5)


@pytest.mark.parametrize("key_range", [(1, 70), (35, 66), (64, 65), (7, 7)])
@pytest.mark.parametrize("gives_lse", [False, True])
@pytest.mark.parametrize("n_queries", [1, 9])
def test_a_range_of_keys_is_normalised_over_all_of_them(lane, key_range, gives_lse, n_queries):
    got = check(lane, 70, n_queries=n_queries, key_range=key_range, gives_lse=gives_lse)
    assert got.shape == (1, key_range[1] - key_range[0])
    assert (got.sum(dim=1) <= 1 + 1e-5).all()


def test_a_range_is_a_piece_of_the_whole(lane):
    q, k = normal(1, 2, 1, 16), normal(1, 2, 100, 16, seed=1)
    run = lane.pick(op.eager, op.launch)
    whole = run(q, k, scale=0.3)
    assert torch.equal(run(q, k, scale=0.3, key_range=(30, 90)), whole[:, 30:90])


@pytest.mark.parametrize("n_queries", [1, 9])
def test_a_given_lse_is_used(lane, n_queries):
    q, k = normal(1, 2, n_queries, 16), normal(1, 2, 70, 16, seed=1)
    lse = few_query_lse_reference(q, k, 0.25).float() - math.log(2)
    doubled = lane.pick(op.eager, op.launch)(q, k, scale=0.25, lse=lse)
    assert_close(doubled, 2 * few_query_scores_reference(q, k, scale=0.25), dtype="float32")


def test_words_of_causal_attention_rate_a_picture_before_them(lane):
    """With the lse of causal attention each word's row is normalised over what it sees, and the picture comes first."""
    q, k, picture = normal(1, 2, 6, 16), normal(1, 2, 46, 16, seed=1), 40
    logits = torch.einsum("bhmd,bhnd->bhmn", q, k).double() * 0.25
    is_later = torch.arange(46) > torch.arange(40, 46)[:, None]
    row = logits.masked_fill(is_later, -math.inf)
    got = lane.pick(op.eager, op.launch)(q, k, scale=0.25, key_range=(0, picture), lse=row.logsumexp(dim=3).float())
    assert_close(got, row.softmax(dim=3)[..., :picture].mean(dim=(1, 2)))


@pytest.mark.parametrize("n_queries", [1, 9])
def test_large_logits_do_not_overflow(lane, n_queries):
    check(lane, 70, n_queries=n_queries, spread=80.0)


def test_more_keys_than_a_program_has_parts(lane):
    check(lane, 64 * 33 + 5, (1, 1), width=4)


def test_one_hot_attention_by_hand(lane):
    """Head 0 looks at key 1, head 1 at key 0, and they share their keys."""
    key, query = torch.eye(3)[None, None], 60 * torch.eye(3)[[1, 0]][None, :, None]
    run = lane.pick(op.eager, op.launch)
    assert_close(run(query, key, scale=1.0), torch.tensor([[0.5, 0.5, 0.0]]))
    by_head = run(query, key, scale=1.0, reduce="per_head")
    assert_close(by_head, torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]))


def test_strided_queries_and_keys_as_layers_give_them(lane):
    packed = normal(2, 30, 3, 2, 24)  # one projection for q, k and v: images, tokens, which, heads, width
    q, k = packed[:, -1:, 0].transpose(1, 2), packed[:, :, 1].transpose(1, 2)
    got = lane.pick(op.eager, op.launch)(q, k, scale=0.2)
    assert_close(got, few_query_scores_reference(q, k, scale=0.2))


def test_an_image_does_not_depend_on_its_neighbours(lane):
    q, k = normal(3, 2, 1, 16), normal(3, 1, 70, 16, seed=1)
    run = lane.pick(op.eager, op.launch)
    together = run(q, k, scale=0.25)
    assert torch.equal(run(q.flip(0), k.flip(0), scale=0.25), together.flip(0))
    alone = torch.cat([run(q[i : i + 1], k[i : i + 1], scale=0.25) for i in range(3)])
    if lane.name == "cpu":  # a product of another size may be summed in another order there
        assert_close(alone, together)
    else:
        assert torch.equal(alone, together)


def test_no_image_gives_nothing(lane):
    assert lane.pick(op.eager, op.launch)(normal(0, 2, 1, 8), normal(0, 2, 5, 8), scale=1.0).shape == (0, 5)


def test_twenty_runs_are_bitwise_equal(lane):
    q, k = normal(1, 2, 3, 16), normal(1, 1, 33, 16, seed=1)
    run = lane.pick(op.eager, op.launch)
    for n_queries in (1, 3):
        first = run(q[:, :, :n_queries], k, scale=0.25)
        assert all(torch.equal(first, run(q[:, :, :n_queries], k, scale=0.25)) for _ in range(20))


def test_the_oracle_has_gradients_for_a_soft_choice():
    q, k = normal(1, 4, 2, 3).double().requires_grad_(), normal(1, 2, 5, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: few_query_scores_reference(q, k, scale=0.5, key_range=(1, 4)), (q, k))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(2, 4, 8)}, r"q of shape \[2, 4, 8\]"),
        ({"q": torch.zeros(2, 4, 0, 8)}, r"q of shape \[2, 4, 0, 8\]. Without a query"),
        ({"q": torch.zeros(2, 3, 1, 8)}, "q with 3 heads and k with 2"),
        ({"k": torch.zeros(2, 0, 5, 8)}, "q with 4 heads and k with 0"),
        ({"k": torch.zeros(1, 2, 5, 8)}, r"k of shape \[1, 2, 5, 8\]. It must be \[B, Hkv, N, d\]"),
        ({"k": torch.zeros(2, 2, 5, 8).half()}, "k of float16"),
        ({"key_range": (2, 6)}, r"key_range=\(2, 6\) for 5 keys"),
        ({"key_range": (3, 2)}, r"key_range=\(3, 2\) for 5 keys"),
        ({"key_range": (-1, 2)}, r"key_range=\(-1, 2\) for 5 keys"),
        ({"lse": torch.zeros(2, 4)}, r"lse of shape \[2, 4\]"),
        ({"lse": torch.zeros(2, 4, 1).double()}, "lse of float64"),
        ({"reduce": "max"}, "reduce='max'. It knows mean, sum, per_head"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(unchecked, changes, message):
    given = {"q": torch.zeros(2, 4, 1, 8), "k": torch.zeros(2, 2, 5, 8), "scale": 1.0, **changes}
    with pytest.raises(RequestError, match=message) as caught:
        few_query_scores(**given)
    assert all((caught.value.given, caught.value.why, caught.value.do))


@pytest.mark.slow
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_operator_passes_opcheck_and_compiles(compiled, reduce):
    q, k = normal(2, 4, 1, 8), normal(2, 2, 30, 8, seed=1)
    torch.library.opcheck(op._few_query_scores, (q, k, 0.3, 5, 25, None, reduce))
    call = compiled(
        lambda q, k: few_query_scores(q, k, scale=0.3, key_range=(1, k.shape[2]), reduce=reduce), dynamic=True
    )
    assert torch.equal(call(q, k), few_query_scores(q, k, scale=0.3, key_range=(1, 30), reduce=reduce))
    longer = normal(2, 2, 41, 8, seed=2)
    assert torch.equal(call(q, longer), few_query_scores(q, longer, scale=0.3, key_range=(1, 41), reduce=reduce))
