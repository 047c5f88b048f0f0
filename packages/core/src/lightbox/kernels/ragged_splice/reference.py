"""What `ragged_splice` means, one output row after another; for tests and walkthroughs only."""

import torch
from torch import Tensor


def ragged_splice_reference(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor | None = None,
    newline: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take each row from where `layout` says; autograd gives all gradients.

    Args:
        vis: [T, D].
        idx: [K].
        text_ids: [L], -1 for the newline row.
        table: [V, D].
        layout: [Ltot], v >= 0 is text row v, v < 0 kept row -v - 1.
        pos: [P, T].
        text_pos: [P, L].
        labels: [L].
        newline: [D].
        gate: [K].

    Returns:
        Rows [Ltot, D], positions [P, Ltot], labels [Ltot].
    """
    rows, places, targets = [], [], []
    for code in layout.tolist():
        if code < 0:
            kept = -code - 1
            token = int(idx[kept])
            rows.append(vis[token] if gate is None else vis[token] * gate[kept])
            places.append(pos[:, token])
            targets.append(-100)
        else:
            word = int(text_ids[code])
            rows.append(newline if word == -1 else table[word])
            places.append(text_pos[:, code])
            targets.append(-100 if labels is None else int(labels[code]))
    emb = torch.stack(rows) if rows else vis[:0]
    place = torch.stack(places, dim=1) if places else pos[:, :0]
    return emb, place, torch.tensor(targets, dtype=torch.int64)
