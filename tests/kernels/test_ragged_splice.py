"""The packed sequence: rows copied bit by bit, positions kept, labels, and gradients of everything that has one."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.kernels.ragged_splice import op
from lightbox.kernels.ragged_splice.op import IGNORED, NEWLINE, ragged_splice
from lightbox.kernels.ragged_splice.reference import ragged_splice_reference
from lightbox.testing.close import assert_close
from lightbox.testing.packed import SIZED, normal, offsets


def case(n_vis, n_kept, n_text, width, dtype=torch.float32, n_axes=1, *, has_newline=True):
    """Text before and after every run of kept rows, in an order that is no order."""
    draw = torch.Generator().manual_seed(n_vis + width)
    idx = torch.randperm(n_vis, generator=draw)[:n_kept].sort().values
    text_ids = torch.randint(NEWLINE if has_newline else 0, 11, (n_text,), generator=draw)
    codes = torch.cat([torch.arange(n_text), -torch.arange(n_kept) - 1])
    return {
        "vis": normal(n_vis, width, seed=1).to(dtype),
        "idx": idx,
        "text_ids": text_ids,
        "table": normal(11, width, seed=2).to(dtype),
        "layout": codes[torch.randperm(len(codes), generator=draw)].int(),
        "pos": torch.randint(0, 999, (n_axes, n_vis), generator=draw).int(),
        "text_pos": torch.randint(0, 999, (n_axes, n_text), generator=draw).int(),
        "labels": torch.randint(0, 11, (n_text,), generator=draw),
        "newline": normal(width, seed=3).to(dtype) if has_newline else None,
        "gate": None,
    }


def check(lane, given):
    """Bitwise without a gate; the gradients of visual rows and gate for a random upstream gradient."""
    got = lane.pick(op.eager, op.launch)(*given.values())
    want = ragged_splice_reference(*given.values())
    assert got[0].dtype == given["vis"].dtype
    if given["gate"] is None:
        assert torch.equal(got[0], want[0])
    else:
        assert_close(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])
    if not len(given["layout"]):
        return
    gate = given["gate"]
    wide = {**given, **{key: given[key].double() for key in ("vis", "table")}}
    wide["newline"] = None if given["newline"] is None else given["newline"].double()
    wide["vis"].requires_grad_()
    wide["gate"] = (torch.ones(len(given["idx"])) if gate is None else gate).double().requires_grad_()
    grad = normal(*got[0].shape, seed=9).to(given["vis"].dtype)
    whole = (ragged_splice_reference(*wide.values())[0] * grad).sum()
    if whole.requires_grad:  # not where text stands alone
        whole.backward()
    back = lane.pick(op.eager_backward, op.launch_backward)
    vis_grad, gate_grad = back(grad, given["vis"], given["idx"], given["layout"], gate)
    want_vis = torch.zeros_like(given["vis"]) if wide["vis"].grad is None else wide["vis"].grad
    assert_close(vis_grad, want_vis)
    if gate is not None:
        want_gate = torch.zeros(len(gate)) if wide["gate"].grad is None else wide["gate"].grad
        assert_close(gate_grad, want_gate, dtype="float32")


@pytest.mark.parametrize(("n", "dtype"), SIZED)
def test_the_sequence_equals_the_oracle_at_every_size(lane, n, dtype):
    check(lane, case(n, max(1, n // 5), 7, 24, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gate_scales_kept_rows_and_gets_its_gradient(lane, dtype):
    check(lane, case(65, 30, 7, 40, dtype) | {"gate": normal(30, seed=5)})


@pytest.mark.parametrize("width", [1, 1000, 2049])
def test_rows_narrower_and_wider_than_a_block(lane, width):
    check(lane, case(9, 4, 3, width) | {"gate": normal(4)})


def test_three_axes_of_positions_no_labels_no_newline(lane):
    check(lane, case(40, 13, 6, 8, n_axes=3, has_newline=False) | {"labels": None})


def test_text_alone_and_pictures_alone(lane):
    check(lane, case(5, 0, 4, 8))
    check(lane, case(5, 5, 0, 8))
    check(lane, case(5, 0, 0, 8))


def test_kept_rows_that_are_not_used_have_no_gradient(lane):
    given = case(30, 12, 6, 8) | {"gate": normal(12)}
    given["layout"] = given["layout"][:7]
    check(lane, given)


def test_strided_rows_table_and_positions(lane):
    given = case(30, 12, 6, 8, n_axes=3)
    given["vis"] = normal(30, 16)[:, ::2]
    given["table"] = normal(16, 11).T[:, ::2]
    given["pos"] = given["pos"].T.contiguous().T
    check(lane, given)


def test_long_positions(lane):
    given = case(30, 12, 6, 8)
    check(lane, given | {"pos": given["pos"].long() + 2**40, "text_pos": given["text_pos"].long()})


def test_a_sequence_by_hand(lane):
    """Words 5 and 6 around kept rows 1 and 3 with a newline between them; rows keep the positions they had."""
    got = lane.pick(op.eager, op.launch)(
        torch.tensor([[0.0], [1.0], [2.0], [3.0]]),
        torch.tensor([1, 3]),
        torch.tensor([5, NEWLINE, 6]),
        torch.arange(7.0)[:, None] * 10,
        torch.tensor([0, -1, 1, -2, 2], dtype=torch.int32),
        torch.tensor([[1, 2, 4, 5]]),
        torch.tensor([[0, 3, 7]]),
        torch.tensor([IGNORED, IGNORED, 4]),
        torch.tensor([-7.0]),
        None,
    )
    assert got[0][:, 0].tolist() == [50.0, 1.0, -7.0, 3.0, 60.0]
    assert got[1].tolist() == [[0, 2, 3, 5, 7]]
    assert got[2].tolist() == [IGNORED] * 4 + [4]


def test_twenty_runs_are_bitwise_equal(lane):
    given = case(65, 20, 7, 24) | {"gate": normal(20)}
    run, back = lane.pick(op.eager, op.launch), lane.pick(op.eager_backward, op.launch_backward)
    first = run(*given.values())[0]
    chosen = first, given["vis"], given["idx"], given["layout"], given["gate"]
    grads = back(*chosen)
    for _ in range(20):
        assert torch.equal(first, run(*given.values())[0])
        assert all(torch.equal(a, b) for a, b in zip(grads, back(*chosen), strict=True))


def test_lengths_become_offsets():
    given = case(9, 4, 3, 8)
    assert ragged_splice(**given)[3].tolist() == [0, 7]
    assert ragged_splice(**given, lengths=torch.tensor([3, 0, 4], dtype=torch.int32))[3].tolist() == [0, 3, 3, 7]


def test_keeping_every_row_is_the_unpruned_sequence():
    vis, table = normal(6, 5), normal(4, 5, seed=1)
    layout = torch.tensor([0, -1, -2, -3, -4, -5, -6, 1], dtype=torch.int32)
    places = torch.arange(8)[None]
    emb, pos, _, _ = ragged_splice(
        vis, torch.arange(6), torch.tensor([2, 3]), table, layout, places[:, 1:7], places[:, [0, 7]]
    )
    assert torch.equal(emb, torch.cat([table[2:3], vis, table[3:4]]))
    assert torch.equal(pos, places)


def test_all_gradients_of_the_operator_pass_gradcheck():
    given = case(9, 4, 6, 3)
    given["text_ids"] = torch.tensor([3, NEWLINE, 3, 0, NEWLINE, 5])  # a word and the newline twice
    leaves = [given[key].double().requires_grad_() for key in ("vis", "table", "newline")]
    leaves.append(normal(4).double().requires_grad_())

    def call(vis, table, newline, gate):
        return ragged_splice(**(given | {"vis": vis, "table": table, "newline": newline, "gate": gate}))[0]

    assert torch.autograd.gradcheck(call, leaves)


def test_no_gradient_is_made_for_a_frozen_table():
    given = case(9, 4, 3, 8)
    given["vis"].requires_grad_()
    ragged_splice(**given)[0].sum().backward()
    assert given["table"].grad is None
    assert (given["vis"].grad.sum(dim=1) != 0).nonzero()[:, 0].tolist() == given["idx"].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idx": torch.tensor([1, 1, 2, 3])}, "idx from 1 to 3"),
        ({"idx": torch.tensor([1, 2, 3, 9])}, "idx from 1 to 9 for 9 visual rows"),
        ({"text_ids": torch.tensor([0, 11, 2])}, "text_ids from 0 to 11"),
        ({"text_ids": torch.tensor([0, NEWLINE, 2]), "newline": None}, "which was not given"),
        ({"layout": torch.tensor([0, 3], dtype=torch.int32)}, "layout from 0 to 3"),
        ({"layout": torch.tensor([0, -5], dtype=torch.int32)}, "layout from -5 to 0"),
        ({"layout": torch.tensor([-1, -1], dtype=torch.int32)}, "named twice"),
        ({"layout": torch.tensor([0])}, "layout of int64"),
        ({"table": torch.zeros(11, 7)}, r"table of shape \[11, 7\]"),
        ({"table": torch.zeros(11, 8).half()}, "table of float16"),
        ({"text_pos": torch.zeros(2, 3, dtype=torch.int32)}, r"text_pos of shape \[2, 3\]"),
        ({"pos": torch.zeros(1, 9)}, "pos of float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels of shape \[2\]"),
        ({"gate": torch.ones(5)}, r"gate of shape \[5\]"),
        ({"newline": torch.ones(5)}, r"newline of shape \[5\]"),
        ({"lengths": torch.tensor([3, 3], dtype=torch.int32)}, "lengths that sum to 6"),
    ],
)
def test_what_cannot_work_is_refused_in_three_parts(unchecked, changes, message):
    with pytest.raises(RequestError, match=message) as caught:
        ragged_splice(**(case(9, 4, 3, 8) | changes))
    assert all((caught.value.given, caught.value.why, caught.value.do))


@pytest.mark.slow
def test_the_operator_passes_opcheck_and_compiles(compiled):
    given = case(20, 6, 5, 8) | {"gate": torch.ones(6)}
    leaves = [given[key].requires_grad_() for key in ("vis", "table", "newline", "gate")]
    torch.library.opcheck(op._ragged_splice, tuple(given.values()))

    def loss(vis, table, newline, gate):
        changed = given | {"vis": vis, "table": table, "newline": newline, "gate": gate}
        return ragged_splice(**changed, lengths=offsets([4, 7]).diff())[0].square().sum()

    grads = torch.autograd.grad(compiled(loss)(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(loss(*leaves), leaves), strict=True))
