"""Answers to one prompt under one image as one row, in which prompt and image are read once.

| tokens | prompt, image included | first answer | the prompt's last token again | second answer | .. |
|---|---|---|---|---|---|
| positions | 0 .. p-1 | p .. | p-1 | p .. | .. |

An answer does not see those before it, nor the prompt's last token, which it has a copy of. So each has the
log-probability that it has in a row of its own, up to rounding. An image is most of a row, so that two answers of a few
words cost little more than one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import IGNORED, Row, VlmBatch, padded, stacked

TAKES_A_MASK = ("sdpa",)
"""Attentions that read a mask of rows and columns. Flash attention reads none, and eager wants another kind."""


@dataclass(frozen=True)
class Answered:
    """Tokens of a prompt, at least one, and of the answers to it, at least one each, end tokens included."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]

    def __len__(self) -> int:
        """Tokens of the row."""
        return len(self.prompt) + sum(map(len, self.answers)) + len(self.answers) - 1


def answer_rows(answered: Sequence[Answered], pad_id: int) -> VlmBatch:
    """Rows without images, padded on the right; `answer_logps` reads them.

    Where a row has several answers, the attention of the model must take a mask, see `TAKES_A_MASK`.

    Args:
        answered: one a row.
        pad_id: fills the rows.
    """
    rows: list[Row] = []
    labels, copies = [], []
    for own in answered:
        last = len(own.prompt) - 1
        ids, positions, said, starts = list(own.prompt), list(range(last + 1)), [IGNORED] * (last + 1), []
        for answer in own.answers:
            if said[-1] != IGNORED:  # behind another answer
                starts.append(len(ids))
                ids.append(own.prompt[-1])
                positions.append(last)
                said.append(IGNORED)
            ids += answer
            positions += range(last + 1, last + 1 + len(answer))
            said += answer
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "position_ids": positions})
        labels.append(said)
        copies.append((last, starts))
    inputs = padded(rows, pad_id, side="right")
    if any(starts for _, starts in copies):
        inputs["attention_mask"] = _mask(inputs["input_ids"].shape[1], copies)
    else:
        del inputs["position_ids"]  # the model counts them so
    return VlmBatch(inputs, stacked(labels, IGNORED, side="right"))


def answer_logps(backbone: Backbone, batch: VlmBatch) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Log-probability of every answer, end token included, and its number of tokens, row after row.

    Args:
        backbone: a causal model.
        batch: on its device, of `answer_rows`.

    Returns:
        Log-probabilities in nats, with gradient.
    """
    assert batch.labels is not None, "there is no answer in rows that are to be answered"
    is_said = batch.labels != IGNORED
    is_first = is_said & ~torch.nn.functional.pad(is_said, (1, 0))[:, :-1]
    number = is_first.flatten().cumsum(dim=0).view(is_said.shape)[is_said] - 1
    n = int(is_first.sum())
    logps = backbone.token_logps(batch)[is_said]
    return logps.new_zeros(n).index_add(0, number, logps), torch.bincount(number, minlength=n)


def _mask(width: int, copies: Sequence[tuple[int, Sequence[int]]]) -> Bool[Tensor, "b 1 t t"]:
    """True where a token of a row (third axis) sees another one (last axis); padding is on the right, so none sees it.

    Args:
        width: t.
        copies: of each row, the place of the prompt's last token and those of its copies.
    """
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(copies), 1, 1, 1)
    for row, (last, starts) in enumerate(copies):
        for start in starts:
            mask[row, :, start:, last:start] = False
    return mask
