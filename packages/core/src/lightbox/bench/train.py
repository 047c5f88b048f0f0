"""Training throughput: our driver against a plain Hugging Face Trainer, length bucketing, cached image features.

Every ratio is of two trainings in this process that take turns, on one thread in float32, over the same items with the
same model code. A probe at each forward pass takes the time, so building and the last save do not count.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from lightbox.config import OptimConfig, RunConfig
from lightbox.losses.language import IGNORED
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit

WIDTH, PATCHES, IMAGE_PX, VOCABULARY = 96, 64, 64, 512
PEER = "transformers Seq2SeqTrainer"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Items:
    """Random items: grey images c h w, their features p d, token rows of the question and of the target."""

    pixels: Tensor
    features: Tensor
    questions: list[np.ndarray]
    targets: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.questions)

    def collate(self, indices: list[int], *, has_pixels: bool) -> dict[str, Tensor]:
        """Pad the rows of a batch to its longest one."""
        questions, targets = ([rows[i] for i in indices] for rows in (self.questions, self.targets))
        ids, labels = _padded(questions, 0), _padded(targets, IGNORED)
        images = {"pixels": self.pixels[indices]} if has_pixels else {"features": self.features[indices]}
        return images | {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


class VisualT5(nn.Module):
    """A small T5 that reads image features before the question; features are given, or made by a frozen tower."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = make_tower().requires_grad_(False)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY,
                d_model=WIDTH,
                d_kv=24,
                d_ff=4 * WIDTH,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
            )
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        features: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean loss over supervised tokens, and logits."""
        if features is None:
            with torch.no_grad():
                features = image_features(self.tower, pixels)
        words = self.t5.get_input_embeddings()(input_ids)
        seen = attention_mask.new_ones(features.shape[:2])
        output = self.t5(
            inputs_embeds=torch.cat([self.project(features), words], dim=1),  # b (p t) d
            attention_mask=torch.cat([seen, attention_mask], dim=1),
            labels=labels,
        )
        return {"loss": output.loss, "logits": output.logits}


def run(*, epochs: int = 2, repeats: int = 7, n_items: int = 512, batch_size: int = 16) -> list[dict]:
    """Measure the three ratios.

    Args:
        epochs: passes over the items in each timed training, >= 1; time grows in proportion.
        repeats: pairs of trainings for each ratio, in alternating order; the median ratio counts.
        n_items: random items; a multiple of `batch_size`.
        batch_size: items a step.

    Returns:
        Rows with case, peer, value (our steps or items per second), unit, ratio (ours / peer's) and notes.
    """
    torch.set_num_threads(1)
    items = make_items(n_items)
    steps = epochs * n_items // batch_size + 1  # the last step is begun and not timed, so whole epochs are compared
    size = {"items": items, "batch_size": batch_size}

    def ours(n: int = steps, **options: bool) -> float:
        return driver_rate(n, **size, **options)

    cases = [
        ("step driver", PEER, "steps/s", ours, lambda n=steps: trainer_rate(n, **size)),
        ("length bucketing", "step driver without it", "items/s", lambda n=steps: ours(n, is_bucketed=True), ours),
        ("cached features", "vision tower in every step", "steps/s", ours, lambda n=steps: ours(n, has_pixels=True)),
    ]
    setting = f"{repeats} pairs of {steps - 1} steps of {batch_size}; fp32; 1 thread; T5 d96 2+2 layers"
    rows = []
    for case, peer, unit, one, other in cases:
        rate, ratios = _in_turns(one, other, repeats)
        scale = batch_size if unit == "items/s" else 1
        ratio, spread = statistics.median(ratios), f"ratios {min(ratios):.3f} to {max(ratios):.3f}"
        notes = f"{spread}; {setting}"
        row = {"case": case, "peer": peer, "value": round(rate * scale, 2), "unit": unit, "ratio": round(ratio, 3)}
        rows.append(row | {"notes": notes})
        _log.info("%s: %.3f times %s (%s)", case, ratio, peer, spread)
    return rows


def make_items(n_items: int, seed: int = 0) -> Items:
    """Draw items with questions of 8 to 24 tokens and targets of 2 to 48, most of them short, as rationales are."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    targets = 2 + np.minimum(rng.geometric(0.07, size=n_items), 46)
    pixels = torch.rand(n_items, 3, IMAGE_PX, IMAGE_PX)
    tower = make_tower()
    with torch.no_grad():
        features = torch.cat([image_features(tower, part) for part in pixels.split(64)])
    return Items(
        pixels=pixels,
        features=features,
        questions=[rng.integers(2, VOCABULARY, size=n) for n in rng.integers(8, 25, size=n_items)],
        targets=[rng.integers(2, VOCABULARY, size=n) for n in targets],
    )


def make_tower() -> CLIPVisionModel:
    """A random CLIP vision tower: 64 px, patch 8, width 96, 3 layers."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=8,
    )
    return CLIPVisionModel(config).eval()


def image_features(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Patch features b p d of images b c h w, without the class token."""
    return tower(pixel_values=pixels).last_hidden_state[:, 1:]


def driver_rate(
    steps: int, *, items: Items, batch_size: int, is_bucketed: bool = False, has_pixels: bool = False
) -> float:
    """Steps per second of our driver."""
    model, times = _probed_model()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            _step,
            _source(items, batch_size, is_bucketed=is_bucketed, has_pixels=has_pixels),
            optim=OptimConfig(lr=1e-3, max_steps=steps, batch_size=batch_size),
            run=RunConfig(seed=0),
            out=Path(folder),
        )
    return _rate(times)


def trainer_rate(steps: int, *, items: Items, batch_size: int) -> float:
    """Steps per second of a plain Hugging Face Trainer on the very same batches, from an in-memory data set."""
    model, times = _probed_model()
    source = _source(items, batch_size)
    order = [index for _ in range(steps) for index in source.next_indices()]
    torch.use_deterministic_algorithms(False)  # the Trainer's default; our driver switches it on
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            learning_rate=1e-3,
            weight_decay=0.01,
            lr_scheduler_type="linear",
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            seed=0,
        )
        trainer = Seq2SeqTrainer(model, arguments, train_dataset=order, data_collator=source.collate)
        trainer.remove_callback(PrinterCallback)  # spares the peer the time to print
        trainer.train()
    return _rate(times)


def _in_turns(one: Callable[..., float], other: Callable[..., float], repeats: int) -> tuple[float, list[float]]:
    """Median rate of the first and its ratio to the second in each pair; who begins alternates."""
    one(3), other(3)  # imports, memory and caches
    rates, ratios = [], []
    for number in range(repeats):
        if number % 2 == 0:
            rate, rival = one(), other()
        else:
            rival, rate = other(), one()
        rates.append(rate)
        ratios.append(rate / rival)
    return statistics.median(rates), ratios


def _step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, float | Tensor]]:
    tokens = (batch["labels"] != IGNORED).sum()
    return model(**batch)["loss"] * tokens, tokens, {}


def _source(items: Items, batch_size: int, *, is_bucketed: bool = False, has_pixels: bool = False) -> BatchSource:
    lengths = [len(question) + 2 * len(target) for question, target in zip(items.questions, items.targets, strict=True)]
    return BatchSource(
        len(items),
        lambda indices: items.collate(indices, has_pixels=has_pixels),
        batch_size=batch_size,
        seed=0,
        lengths=lengths if is_bucketed else None,
    )


def _probed_model() -> tuple[VisualT5, list[float]]:
    torch.manual_seed(0)
    model, times = VisualT5(), []
    model.register_forward_pre_hook(lambda module, arguments: times.append(time.perf_counter()))
    return model, times


def _rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def _padded(rows: list[np.ndarray], fill: int) -> Tensor:
    table = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return torch.from_numpy(table)
