"""The paper's model as a learner: rows -> batches -> fit, and what it writes. Features of the tower are cached."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.backbones import quantisation
from lightbox.backbones.attention import choose
from lightbox.backbones.families import Family
from lightbox.backbones.loading import DTYPES
from lightbox.backbones.seq2seq import load_seq2seq, quiet_loading
from lightbox.train.batches import BatchSource
from lightbox.train.card import describe
from lightbox.train.driver import History, fit
from lightbox.train.files import write_json
from lightbox.train.precision import make_accelerator
from lightbox.train.seeds import seed_everything
from medthink import features, saved
from medthink.adaptation import adapted
from medthink.config import Config
from medthink.data import Batch, encode_items, make_collate
from medthink.evaluate import Trial
from medthink.generation import generate_texts
from medthink.items import Item, Split, ids_of
from medthink.model import FUSED, PLAIN, MedThinkT5
from medthink.objective import target_loss


class FusedT5:
    """The paper's model as a learner: T5, a frozen tower's features, and the fusion between them."""

    def __init__(self, cfg: Config, splits: Sequence[Split], *, cache: Path) -> None:
        self._cfg = cfg
        self._vision = {split.name: load_vision(cfg, split, cache=cache) for split in splits}
        self.model, self.tokenizer = load_model(cfg, self._vision[splits[0].name])
        if not cfg.objective.is_trained:
            saved.check_strategy(cfg, method=self.model.config.method, form=self.model.config.form)

    def fit(self, items: Sequence[Item], split: Split, folder: Path) -> History:
        """Train on items of a split: all of the T5, or additions to it; the fusion is new and always trains whole."""
        family = self.model.family
        adapter = dataclasses.replace(self._cfg.adapter, projector="full" if family.projector else "frozen")
        self.model = adapted(self._cfg, self.model, family, adapter, dtype=DTYPES[self._cfg.model.dtype])
        return fit_items(self._cfg, self.model, self.tokenizer, items, self._vision[split.name], folder)

    def write(self, trial: Trial, split: Split) -> list[str]:
        """One greedy text an item."""
        return generate_texts(
            self.model.eval(),
            self.tokenizer,
            trial.items,
            self._cfg.objective.method,
            images=trial.images,
            vision=self._vision[split.name],
            batch_size=self._cfg.eval.batch_size,
            max_new_tokens=trial.max_new_tokens,
            source_tokens=self._cfg.data.source_tokens,
        )

    def describe(self, folder: Path) -> None:
        """Write the card of weights that are scored as they are."""
        facts = describe(self.model, self.model.device, self._cfg.run, notes=[saved.UNTRAINED])
        write_json(folder / "card.json", facts | {"wall_s": 0.0})

    def save(self, folder: Path) -> None:
        """Write model and tokenizer to `folder`, with what they were trained for."""
        cfg, config = self._cfg, self.model.config
        config.method, config.form = cfg.objective.method, cfg.data.form
        config.tower = cfg.model.features or cfg.model.tower if cfg.has_vision else ""
        with quiet_loading():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def load_vision(cfg: Config, split: Split, *, cache: Path) -> Float[Tensor, "n p c"] | None:
    """Features of a split's images and of the blank one; None for the text-only reader."""
    return features.load_features(cfg.model, split, cache=cache) if cfg.has_vision else None


def load_model(cfg: Config, vision: Float[Tensor, "n p c"] | None) -> tuple[MedThinkT5, PreTrainedTokenizerBase]:
    """The backbone with its fusion; what the file lacks is drawn from `run.seed`, so arms of a seed start alike."""
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    settings = {} if vision is None else {"vision_width": features.width_of(vision), "gate_bias": cfg.model.gate_bias}
    model, tokenizer = load_seq2seq(
        cfg.model.backbone,
        cfg.model.backbone_revision,
        model_class=MedThinkT5,
        allow_missing=r"fusion\.",
        dtype=str(DTYPES[cfg.model.dtype]).removeprefix("torch."),
        dropout_rate=cfg.model.dropout_prob,
        **storage(cfg, PLAIN if vision is None else FUSED),
        **settings,
    )
    if cfg.adapter.quant != "none":
        quantisation.settle(model, model.family, cfg.adapter.quant)
    return model, tokenizer


def storage(cfg: Config, family: Family) -> dict[str, Any]:
    """What `from_pretrained` is told about quantisation and attention; nothing where the defaults are asked for."""
    device = str(make_accelerator(cfg.run).device)
    dtype = cfg.model.dtype
    asked = quantisation.settings_for(cfg.adapter.quant, family, dtype=DTYPES[dtype], device=device)
    if cfg.model.attention != "auto":
        choice = choose(cfg.model.attention, device=device, dtype=dtype, model_type=family.model_types[0])
        asked["attn_implementation"] = choice.implementation
    return asked


def fit_items(
    cfg: Config,
    model: MedThinkT5,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    vision: Float[Tensor, "n p c"] | None,
    folder: Path,
) -> History:
    """Train `model` on items under the strategy of `cfg`."""
    rows = encode_items(
        items,
        cfg.objective.method,
        tokenizer,
        source_tokens=cfg.data.source_tokens,
        target_tokens=cfg.target_tokens,
    )
    collate = make_collate(
        rows,
        [item.image for item in items],
        vision,
        pad_id=tokenizer.pad_token_id,
        pads=cfg.objective.pads,
        width=cfg.target_tokens,
    )
    batches = BatchSource(
        len(rows),
        collate,
        batch_size=cfg.optim.batch_size,
        seed=cfg.run.seed,
        ids=ids_of(items),  # not bucketed: a rationale's length tells its answer, so batches would differ by arm
    )
    return fit(model, step, batches, optim=cfg.optim, run=cfg.run, out=folder)


def step(model: MedThinkT5, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One forward pass: summed loss, supervised tokens, diagnostics."""
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        vision=batch.vision,
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(batch.labels),
        use_cache=False,
    ).logits
    return target_loss(logits, batch.labels)
