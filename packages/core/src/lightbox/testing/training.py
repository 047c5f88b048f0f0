"""A training that takes milliseconds: a recurrent tagger with dropout over random token rows of unequal lengths."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightbox.config import OptimConfig, RunConfig
from lightbox.losses.language import IGNORED, token_cross_entropy
from lightbox.train.batches import BatchSource
from lightbox.train.driver import History, fit

VOCABULARY = 17


class Tagger(nn.Module):
    """Predicts each next token; embedding and output weights may be tied, and one layer may be frozen."""

    def __init__(self, *, width: int = 12, dropout: float = 0.1, is_tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, VOCABULARY)
        if is_tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits b t v of token ids b t."""
        return self.head(self.drop(self.norm(self.mix(self.embed(ids))[0])))


class Counting(nn.Module):
    """A tagger whose normalisation keeps running statistics, which a forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tagger = Tagger(dropout=0.3)
        self.statistics = nn.BatchNorm1d(VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits b t v of token ids b t."""
        logits = self.tagger(ids)
        return self.statistics(logits.flatten(0, 1)).view_as(logits)


def make_tagger(seed: int = 0, **options: Any) -> Tagger:
    """A tagger with initial weights from a seed."""
    torch.manual_seed(seed)
    return Tagger(**options)


def make_rows(n_items: int = 22, seed: int = 3) -> list[np.ndarray]:
    """Random token rows of 3 to 12 tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, size=rng.integers(3, 13)) for _ in range(n_items)]


def collate_rows(rows: list[np.ndarray]) -> dict[str, Tensor]:
    """Pad rows; the label of each position is the next token."""
    length = max(len(row) for row in rows)
    ids, labels = np.zeros((len(rows), length), dtype=np.int64), np.full((len(rows), length), IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        labels[index, : len(row) - 1] = row[1:]
    return {"ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def make_source(*, batch_size: int = 4, seed: int = 0, is_bucketed: bool = False, n_items: int = 22) -> BatchSource:
    """Batches of random rows, named row-0, row-1, ..."""
    rows = make_rows(n_items)
    return BatchSource(
        len(rows),
        lambda indices: collate_rows([rows[index] for index in indices]),
        batch_size=batch_size,
        seed=seed,
        lengths=[len(row) for row in rows] if is_bucketed else None,
        ids=[f"row-{index}" for index in range(len(rows))],
    )


def tagger_step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, float | Tensor]]:
    """Summed next-token loss, tokens, and the share of them predicted right."""
    logits = model(batch["ids"])
    loss_sum, tokens = token_cross_entropy(logits, batch["labels"])
    right = (logits.argmax(-1) == batch["labels"]).sum() / tokens.clamp(min=1)
    return loss_sum, tokens, {"accuracy": right.detach()}


def fit_tagger(
    out: Path,
    *,
    model: nn.Module | None = None,
    source: BatchSource | None = None,
    step: Any = tagger_step,
    evaluate: Any = None,
    optim: dict[str, Any] | None = None,
    extras: dict[str, Any] | None = None,
    **run: Any,
) -> tuple[nn.Module, History]:
    """Train a tagger for 12 steps of 4 rows, unless told otherwise, and return it with its history.

    `optim` and `run` change settings, `extras` are further arguments of `fit`.
    """
    model = make_tagger() if model is None else model
    settings = OptimConfig(**({"lr": 0.01, "max_steps": 12, "batch_size": 4, "warmup_frac": 0.2} | (optim or {})))
    history = fit(
        model,
        step,
        make_source(batch_size=settings.batch_size) if source is None else source,
        optim=settings,
        run=RunConfig(**({"seed": 0, "log_every_steps": 3} | run)),
        out=out,
        evaluate=evaluate,
        **(extras or {}),
    )
    return model, history
