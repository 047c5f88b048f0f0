"""The paper's model as a learner: rows -> batches -> fit, and what it writes. Features of the tower are cached."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.adapters import artifact
from lightbox.adapters.attach import attach
from lightbox.backbones import quantisation
from lightbox.backbones.attention import choose
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.families import Family
from lightbox.backbones.loading import DTYPES
from lightbox.backbones.seq2seq import load_seq2seq, quiet_loading
from lightbox.backbones.t5 import T5Backbone
from lightbox.files import write_json
from lightbox.train import processes
from lightbox.train.batches import BatchSource
from lightbox.train.card import describe
from lightbox.train.driver import History, fit
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.seeds import seed_everything
from medthink import features, saved
from medthink.bases import Base, find_base
from medthink.checks import settled
from medthink.config import Config
from medthink.data import Batch, encode_items, make_collate
from medthink.evaluate import Trial
from medthink.generation import generate_texts
from medthink.items import Item, Split, ids_of
from medthink.model import FUSED, PLAIN, MedThinkT5
from medthink.objective import target_loss
from medthink.room import memory_advice


class FusedT5:
    """The paper's model as a learner: T5, a frozen tower's features, and the fusion between them."""

    def __init__(self, cfg: Config, splits: Sequence[Split], *, cache: Path) -> None:
        base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
        self._cfg = settled(cfg, base)
        processes.join(cfg.run)
        with processes.on_main_first():
            self._vision = {split.name: load_vision(cfg, split, cache=cache) for split in splits}
        vision = self._vision[splits[0].name]
        self.backbone = open_t5(cfg, vision_width=0 if vision is None else features.width_of(vision))
        self.tokenizer = self.backbone.tokenizer
        if not cfg.objective.is_trained:
            saved.check_strategy(cfg, **self._trained_for(base))

    def _trained_for(self, base: Base) -> dict[str, str]:
        """Strategy and form of the weights, "" where no run of this paper saved them."""
        if base.adapter is not None:
            return saved.strategy_of(base.adapter)
        config = self.backbone.core.config
        return {"method": config.method, "form": config.form}

    def fit(self, items: Sequence[Item], split: Split, folder: Path) -> History:
        """Train on items of a split: all of the T5, or additions to it; the fusion is new and always trains whole."""
        projector = "full" if self.backbone.family.projector else "frozen"
        adapter = dataclasses.replace(self._cfg.adapter, projector=projector)
        self._cfg = cfg = dataclasses.replace(self._cfg, adapter=adapter)
        self.backbone = attach(self.backbone, adapter, checkpoint_layers=cfg.train.checkpoint_layers)
        vision = self._vision[split.name]
        return fit_items(cfg, self.backbone.model, self.tokenizer, items, vision, folder, facts=self.facts())

    def write(self, trial: Trial, split: Split) -> list[str]:
        """One greedy text an item."""
        return generate_texts(
            self.backbone.model.eval(),
            self.tokenizer,
            trial.items,
            self._cfg.objective.method,
            images=trial.images,
            vision=self._vision[split.name],
            batch_size=self._cfg.eval.batch_size,
            max_new_tokens=trial.max_new_tokens,
            source_tokens=self._cfg.data.source_tokens,
        )

    def facts(self) -> dict[str, Any]:
        """What a run card says of the weights: which, how they are stored, what computes attention."""
        return artifact.base_facts(self.backbone)

    def describe(self, folder: Path) -> None:
        """Write the card of weights that are scored as they are."""
        facts = describe(self.backbone.model, self.backbone.device, self._cfg.run, notes=[saved.UNTRAINED])
        write_json(folder / "card.json", facts | self.facts() | {"wall_s": 0.0})

    def save(self, folder: Path) -> None:
        """Write what was trained to `folder`, with what it was trained for."""
        cfg, config = self._cfg, self.backbone.core.config
        config.method, config.form = cfg.objective.method, cfg.data.form
        config.tower = cfg.model.features or cfg.model.tower if cfg.has_vision else ""
        if cfg.adapter.kind != "none":
            saved.save(cfg, self.backbone, folder, tower=config.tower, vision_width=config.vision_width)
            return
        with quiet_loading():
            self.backbone.core.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def open_t5(cfg: Config, *, vision_width: int | None) -> Backbone:
    """The T5 in the form that adapters are added to, with its adapter where `model.backbone` names one.

    Args:
        cfg: which weights, how they are stored, and the seed of a new fusion.
        vision_width: channels of the features, 0 for text only, None for what the file holds.

    Raises:
        RequestError: features of another width than the adapter's fusion, and what loading refuses.
    """
    base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
    own = settled(cfg, base)
    if base.adapter is not None:
        saved.check_width(base.adapter, vision_width)
    model, tokenizer = _load(own, vision_width)
    name, revision = own.model.backbone, own.model.backbone_revision
    backbone = T5Backbone(
        model,
        tokenizer,
        model.family,
        attention=choose(own.model.attention, device=str(model.device), dtype=own.model.dtype, model_type="t5"),
        name=name,
        revision=revision,
        quant=own.adapter.quant,
        dtype=DTYPES[own.model.dtype],
    )
    return backbone if base.adapter is None else artifact.load(base.adapter, backbone)


def load_vision(cfg: Config, split: Split, *, cache: Path) -> Float[Tensor, "n p c"] | None:
    """Features of a split's images and of the blank one; None for the text-only reader."""
    return features.load_features(cfg.model, split, cache=cache) if cfg.has_vision else None


def load_model(cfg: Config, vision: Float[Tensor, "n p c"] | None) -> tuple[MedThinkT5, PreTrainedTokenizerBase]:
    """The backbone with its fusion; what the file lacks is drawn from `run.seed`, so arms of a seed start alike."""
    return _load(cfg, 0 if vision is None else features.width_of(vision))


def _load(cfg: Config, vision_width: int | None) -> tuple[MedThinkT5, PreTrainedTokenizerBase]:
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    device = str(plain_device(make_accelerator(cfg.run)))
    fusion = {"vision_width": vision_width, "gate_bias": cfg.model.gate_bias} if vision_width else {}
    loaded = load_seq2seq(
        cfg.model.backbone,
        cfg.model.backbone_revision,
        model_class=MedThinkT5,
        allow_missing=r"fusion\.",
        dtype=str(DTYPES[cfg.model.dtype]).removeprefix("torch."),
        dropout_rate=cfg.model.dropout_prob,
        **storage(cfg, FUSED if vision_width else PLAIN, device),
        **fusion,
    )
    model, tokenizer = cast(tuple[MedThinkT5, PreTrainedTokenizerBase], loaded)
    if cfg.adapter.quant != "none":
        quantisation.settle(model, model.family, cfg.adapter.quant)
    elif device != "cpu":
        model.to(device)
    return model, tokenizer


def storage(cfg: Config, family: Family, device: str) -> dict[str, Any]:
    """What `from_pretrained` is told about quantisation and attention; nothing where the defaults are asked for."""
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
    *,
    facts: Mapping[str, Any] | None = None,
) -> History:
    """Train `model` on items under the strategy of `cfg`; `facts` go to the run's card."""
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
    base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
    batches = BatchSource(
        len(rows),
        collate,
        batch_size=cfg.optim.batch_size,
        seed=cfg.run.seed,
        ids=ids_of(items),  # not bucketed: a rationale's length tells its answer, so batches would differ by arm
    )
    return fit(
        model,
        step,
        batches,
        optim=cfg.optim,
        run=cfg.run,
        out=folder,
        train=cfg.train,
        facts=facts,
        memory_advice=memory_advice(cfg, base),
    )


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
