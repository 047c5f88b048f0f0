"""Any backbone as a learner: it trains on samples, writes texts about them, and is saved and loaded again.

A paper hands in what is its own as functions: `texts`, which makes prompt and target of a sample, and where needed
`loss`. What the model sees of an image is its business: a model with a tower of its own gets pictures, one without gets
rows of cached features of a frozen tower, and a text model gets nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from lightbox.adapters.manifest import base_facts
from lightbox.backbones import quantisation
from lightbox.backbones.attention import choose
from lightbox.backbones.backbone import DTYPES, Backbone
from lightbox.backbones.families import BY_MODEL_TYPE
from lightbox.backbones.loading import load
from lightbox.backbones.rows import IGNORED, UNLIMITED, VlmBatch
from lightbox.backbones.seq2seq import load_seq2seq, quiet_loading
from lightbox.backbones.t5 import FusedT5Backbone
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.files import write_json
from lightbox.paper import features
from lightbox.paper.conditions import Pictures, picture, shown_px
from lightbox.paper.pretrained import Pretrained, find_pretrained
from lightbox.paper.purpose import PURPOSE, check_purpose, check_width, read_purpose
from lightbox.paper.samples import Sample, Split
from lightbox.paper.schema import Config, PaperConfig, from_plain
from lightbox.runs import folders
from lightbox.train import processes
from lightbox.train.batches import BatchSource
from lightbox.train.card import describe
from lightbox.train.driver import History, fit
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.seeds import seed_everything

EVA_BATCHES = 8
"""Batches that adapter.init=eva looks at before training."""
UNTRAINED = "weights scored as loaded, nothing trained"

Texts = Callable[[Sequence[Sample[Any]], PreTrainedTokenizerBase], list[tuple[str, str]]]
"""Prompt and target of each sample, shortened to what the configuration allows."""
Loss = Callable[[Backbone, VlmBatch], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""Summed loss of a batch, supervised tokens, means over them that are worth a curve."""
OpenFused = Callable[[Any, Pretrained, int | None], Backbone]
"""(cfg, weights, width of the features) -> a model that reads features; None is the width that the weights have."""


class Forced(NamedTuple):
    """A target that a model was made to say: its token ids and the log-probability of each."""

    target: list[int]
    logps: Float[Tensor, " n"]


def decoded(batch: VlmBatch, tokenizer: PreTrainedTokenizerBase, *, index: int = 0) -> list[tuple[str, str]]:
    """One example of a batch for the eye: ("source", text), then one (token, "loss" or "-") per label."""
    source = str(tokenizer.decode(batch.inputs["input_ids"][index], skip_special_tokens=True))
    pairs = [
        ("-", "-") if label == IGNORED else (str(tokenizer.convert_ids_to_tokens(label)), "loss")
        for label in batch.labels[index].tolist()
    ]
    return [("source", source), *pairs]


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, part: str) -> tuple[int, int]:
    """First and one past the last of a text's tokens that belong to the last occurrence of `part` in it."""
    begin = text.rindex(part)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [place for place, (_, end) in enumerate(spans) if begin < end <= begin + len(part)]
    return inside[0], inside[-1] + 1


class Learner:
    """A model with what it needs to learn from samples; made by `open_learner`.

    Args:
        cfg: with the weights under an adapter in the place of the adapter, see `Pretrained.under`.
        backbone: around the model, on its device.
        texts: the paper's prompts and targets.
        loss: the paper's loss; `Backbone.loss` is the cross-entropy of the target.
        vision: features by name of split, a last row for the blank image; None for a model with its own tower.
    """

    def __init__(
        self,
        cfg: Any,
        backbone: Backbone,
        *,
        texts: Texts,
        loss: Loss,
        vision: dict[str, Float[Tensor, "n p c"]] | None,
    ) -> None:
        self.cfg, self.backbone, self._texts, self._loss, self._vision = cfg, backbone, texts, loss, vision

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return self.backbone.tokenizer

    def see(self, split: Split[Any], rows: Sequence[int]) -> Any:
        """What the model sees of some images of a split; one past the last row is the blank image."""
        if not self.cfg.has_vision:
            return None
        if self._vision is None:
            return Pictures(split, rows, image_px=self.cfg.model.image_px)
        return self._vision[split.name][list(rows)]

    def see_file(self, image: Path) -> Any:
        """What the model sees of one image file: a list of one picture, or features 1 p c."""
        if self._vision is None:
            return [picture(image, self.cfg.model.image_px)]
        return features.features_of(self.cfg.model, image)

    def collate(self, samples: Sequence[Sample[Any]], split: Split[Any]) -> Callable[[list[int]], VlmBatch]:
        """The function that makes a batch of places in `samples`: prompts are read, targets carry the loss."""
        texts = self._texts(samples, self.tokenizer)
        for place, what in enumerate(("prompt", "target")):
            # of a data set, before the first step and not in the middle
            self.backbone.check_texts([pair[place] for pair in texts], what=what)

        def batch_of(places: list[int]) -> VlmBatch:
            prompts, targets = zip(*(texts[place] for place in places), strict=True)
            seen = self.see(split, [samples[place].image for place in places])
            # the paper's texts are short enough already, so what is left to limit a row is the model's own context
            return self.backbone.prepare(seen, prompts, targets, max_tokens=UNLIMITED)

        return batch_of

    def row_lengths(self, samples: Sequence[Sample[Any]], split: Split[Any]) -> list[list[int]]:
        """What grows with each sample's memory, without decoding an image: tokens that are padded apart.

        Args:
            samples: with the targets of the arm.
            split: holds their images.

        Returns:
            [prompt with its image, target] of an encoder-decoder, [all of it] of a causal model, up to what all rows
            have alike.
        """
        prompts, targets = zip(*self._texts(samples, self.tokenizer), strict=True)
        counts = [[len(ids) for ids in self.tokenizer(list(texts))["input_ids"]] for texts in (prompts, targets)]
        if self.cfg.has_vision and self._vision is None:
            # the processor says what an image of a size costs: one blank of each size, with the template around it
            sides = [shown_px(split.images[sample.image], self.cfg.model.image_px) for sample in samples]
            costs = {px: self._tokens_of_blank(px) for px in set(sides)}
            counts[0] = [count + costs[px] for count, px in zip(counts[0], sides, strict=True)]
        pairs = [list(pair) for pair in zip(*counts, strict=True)]
        return pairs if self.backbone.family.is_encoder_decoder else [[sum(pair)] for pair in pairs]

    def _tokens_of_blank(self, px: int) -> int:
        blank = Image.new("L", (px, px))
        return self.backbone.prepare([blank], ["-"], max_tokens=UNLIMITED).inputs["input_ids"].shape[1]

    def fit(
        self,
        samples: Sequence[Sample[Any]],
        split: Split[Any],
        folder: Path,
        *,
        memory_advice: Callable[[int], str] | None = None,
    ) -> History:
        """Train on samples of a split, or continue from the checkpoints in `folder`; see `train.driver.fit`.

        Args:
            samples: what is learnt, with the targets of the arm.
            split: holds their images.
            folder: of the run.
            memory_advice: for the message where memory runs out.
        """
        cfg, collate = self.cfg, self.collate(samples, split)
        if cfg.adapter.kind != "none" or cfg.train.checkpoint_layers:
            from lightbox.adapters.attach import attach

            batches = self._first_batches(collate, len(samples)) if cfg.adapter.init == "eva" else None
            layers = cfg.train.checkpoint_layers
            self.backbone = attach(self.backbone, cfg.adapter, checkpoint_layers=layers, batches=batches)
        attached = self.backbone

        def step(model: nn.Module, batch: VlmBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            # the driver's model may be a wrapper around ours, and gradients must pass through it
            return self._loss(attached.with_model(model), batch)

        return fit(
            attached.model,
            step,
            BatchSource(
                len(samples),
                collate,
                batch_size=cfg.optim.batch_size,
                seed=cfg.run.seed,
                # not bucketed by length: a target's length may tell its answer, so batches would differ by arm
                ids=[sample.id for sample in samples],
                row_lengths=functools.cache(functools.partial(self.row_lengths, samples, split)),
            ),
            optim=cfg.optim,
            run=cfg.run,
            out=folder,
            train=cfg.train,
            facts=base_facts(attached),
            memory_advice=memory_advice,
        )

    def write(
        self, samples: Sequence[Sample[Any]], split: Split[Any], rows: Sequence[int] | None, *, max_new_tokens: int
    ) -> list[str]:
        """One greedy text a sample, single spaces between words.

        Args:
            samples: what is asked.
            split: holds the images.
            rows: of the image that each is shown; None for no image.
            max_new_tokens: longest text.
        """
        seen = None if rows is None else self.see(split, rows)
        return self.answer([prompt for prompt, _ in self._texts(samples, self.tokenizer)], seen, max_new_tokens)

    def answer(self, prompts: Sequence[str], seen: Any, max_new_tokens: int) -> list[str]:
        """One greedy text a prompt; `seen` is what `see` or `see_file` gave."""
        self.backbone.model.eval()
        texts = self.backbone.answer(seen, prompts, max_new_tokens=max_new_tokens, batch_size=self.cfg.eval.batch_size)
        return [" ".join(text.split()) for text in texts]

    def force(self, prompt: str, target: str, seen: Any) -> Forced:
        """Log-probability of each token of a target, given prompt and image."""
        batch = self.backbone.prepare(seen, [prompt], [target], max_tokens=UNLIMITED).to(self.backbone.device)
        with torch.inference_mode():
            logits, targets, _ = self.backbone.supervised_logits(batch)
        logps = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].cpu()
        return Forced(targets.tolist(), logps)

    def confidence(self, prompt: str, target: str, part: str, seen: Any) -> float:
        """Exponential of the mean log-probability of the tokens of `part` in a target, in [0, 1], not calibrated."""
        begin, end = tokens_of(self.tokenizer, target, part)
        return float(self.force(prompt, target, seen).logps[begin:end].mean().exp())

    def choice_probs(self, texts: Sequence[tuple[str, str]], seen: Any) -> list[float]:
        """Probability of each (prompt, target) where their targets first differ, normalised over them."""
        forced = [self.force(prompt, target, seen) for prompt, target in texts]
        places = zip(*(one.target for one in forced), strict=False)
        fork = next(place for place, tokens in enumerate(places) if len(set(tokens)) > 1)
        return torch.stack([one.logps[fork] for one in forced]).softmax(dim=0).tolist()

    def describe(self, folder: Path) -> None:
        """Write the card and the empty history of weights that are scored as they are."""
        facts = describe(self.backbone.model, self.backbone.device, self.cfg.run, notes=[UNTRAINED])
        folders.write_card(folder, facts | base_facts(self.backbone) | {"wall_s": 0.0})
        folders.write_history(folder, {})

    def save(self, folder: Path, purpose: dict[str, str]) -> None:
        """Write what was trained: the adapter, or all weights with their processor; and what it was trained for.

        Args:
            folder: replaced where it holds an adapter.
            purpose: settings that change what the weights mean, by config key; see `purpose.check_purpose`.
        """
        cfg = self.cfg
        if cfg.adapter.kind == "none":
            with quiet_loading():
                self.backbone.core.save_pretrained(folder)
                self.backbone.processor.save_pretrained(folder)
        else:
            from lightbox.adapters import artifact

            artifact.save(folder, self.backbone, cfg.adapter)
        facts: dict[str, Any] = {"purpose": purpose}
        if self._vision:
            facts["vision"] = cfg.model.features or cfg.model.tower
            facts["vision_width"] = next(iter(self._vision.values())).shape[-1]
        write_json(folder / PURPOSE, facts)

    def _first_batches(self, collate: Callable[[list[int]], VlmBatch], n: int) -> Iterator[dict[str, Tensor]]:
        size = self.cfg.optim.batch_size
        for start in range(0, n, size)[:EVA_BATCHES]:
            yield collate(list(range(start, min(start + size, n)))).to(self.backbone.device).inputs


def open_learner(
    cfg: PaperConfig,
    base: Pretrained,
    splits: Sequence[Split[Any]],
    *,
    texts: Texts,
    cache: Path,
    purpose: dict[str, str],
    loss: Loss | None = None,
    open_fused: OpenFused | None = None,
) -> Learner:
    """Load what `model.backbone` names, ready to learn.

    Args:
        cfg: which weights, how they are stored, and the seed of what is new in them.
        base: found from `cfg.model.backbone`, with its family.
        splits: all that the learner will be shown; () for images by file only.
        texts: the paper's prompts and targets.
        cache: folder of vision features, shared between runs.
        purpose: what the weights are asked to do, by config key; saved weights must have been trained for it.
        loss: None is the cross-entropy of the target.
        open_fused: opens a text model that reads features of a frozen tower beside it; None where the paper has none.

    Raises:
        RequestError: weights that were trained for another purpose, features of another width, and what loading
            refuses.
    """
    own_loss = loss or Backbone.loss
    if not cfg.objective.is_trained:
        check_purpose(base.adapter or Path(base.name), purpose, backbone=cfg.model.backbone)
    processes.join(cfg.run)
    if base.has_own_tower or open_fused is None:
        settled = base.under(cfg)
        return Learner(settled, open_backbone(settled, base), texts=texts, loss=own_loss, vision=None)
    vision: dict[str, Tensor] = {}
    with processes.on_main_first():  # the first process fills the cache that the others read
        if cfg.has_vision:
            vision = {split.name: features.load_features(cfg.model, split, cache=cache) for split in splits}
    width = next(iter(vision.values())).shape[-1] if vision else 0
    if cfg.has_vision and not splits:  # image files will come later, and their features are those of the training
        width = read_purpose(base.adapter).get("vision_width") if base.adapter else None
    settled = base.under(cfg)
    if base.adapter is not None:
        check_width(base.adapter, width)
    backbone = open_fused(settled, base, width)
    if base.adapter is not None:
        backbone = _with_adapter(backbone, base.adapter)
    # what joins image and text is new, so it trains as a whole beside adapters
    adapter = dataclasses.replace(settled.adapter, projector="full" if backbone.family.projector else "frozen")
    settled = dataclasses.replace(settled, adapter=adapter)
    return Learner(settled, backbone, texts=texts, loss=own_loss, vision=vision)


def open_backbone(cfg: PaperConfig, base: Pretrained) -> Backbone:
    """Load a model of a family where the run computes, with its adapter where there is one.

    Args:
        cfg: from `Pretrained.under`.
        base: the same weights.

    Raises:
        RequestError: what `load` and `artifact.load` refuse.
    """
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    backbone = load(
        cfg.model.backbone,
        cfg.model.backbone_revision,
        quant=cfg.adapter.quant,
        dtype=cfg.model.dtype,
        device=str(plain_device(make_accelerator(cfg.run))),
        attention=cfg.model.attention,
    )
    return backbone if base.adapter is None else _with_adapter(backbone, base.adapter)


def _with_adapter(backbone: Backbone, folder: Path) -> Backbone:
    from lightbox.adapters import artifact

    return artifact.load(folder, backbone)


def open_fused_t5(
    cfg: PaperConfig,
    base: Pretrained,
    model_class: type[T5ForConditionalGeneration],
    *,
    fusion_part: str,
    pad_targets_to: int = 0,
    **settings: Any,
) -> FusedT5Backbone:
    """A T5 with a paper's fusion; what the file lacks of it is drawn from `run.seed`, so arms of a seed start alike.

    Args:
        cfg: how the weights are stored.
        base: the weights.
        model_class: the paper's, with `generate_greedy`.
        fusion_part: its attribute that joins image and text, None in a text-only model; never quantised, and trained
            as a whole beside adapters.
        pad_targets_to: see `FusedT5Backbone`.
        settings: fields of the model's configuration.

    Raises:
        RequestError: what `load_seq2seq` refuses.
    """
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    device, dtype, quant = str(plain_device(make_accelerator(cfg.run))), cfg.model.dtype, cfg.adapter.quant
    fused = dataclasses.replace(BY_MODEL_TYPE["t5"], projector=fusion_part)
    attention = choose(cfg.model.attention, device=device, dtype=dtype, model_type="t5")
    if quant != "none":
        settings |= quantisation.settings_for(quant, fused, dtype=DTYPES[dtype], device=device)
    if cfg.model.attention != "auto":
        settings["attn_implementation"] = attention.implementation
    model, tokenizer = load_seq2seq(
        base.name,
        base.revision,
        model_class=model_class,
        allow_missing=rf"{fusion_part}\.",
        dtype=str(DTYPES[dtype]).removeprefix("torch."),
        **settings,
    )
    family = BY_MODEL_TYPE["t5"] if getattr(model, fusion_part) is None else fused
    if quant != "none":
        quantisation.settle(model, family, quant)
    elif device != "cpu":
        model.to(device)
    return FusedT5Backbone(
        model,
        tokenizer,
        family,
        attention=attention,
        name=base.name,
        revision=base.revision,
        quant=quant,
        dtype=DTYPES[dtype],
        pad_targets_to=pad_targets_to,
    )


def load_run(
    folder: Path, schema: type[Config], open_paper: Callable[[Config, Pretrained, Path], Learner]
) -> tuple[Config, Learner]:
    """What a training left in a run folder: its configuration, and its model ready to be asked about image files.

    Args:
        folder: of a finished run that kept its model.
        schema: the paper's configuration.
        open_paper: (cfg, weights, cache) -> the paper's learner.

    Raises:
        RequestError: where the run is not finished, its model does not answer from an image, or the model that its
            adapter belongs to is not there.
    """
    cfg = from_plain(schema, folders.finished_run(folder).config)
    asked = asked_again(cfg, folder)
    return cfg, open_paper(asked, find_pretrained(asked.model.backbone), folder)


def asked_again(cfg: Any, folder: Path) -> Any:
    """The configuration that asks what a run saved, item by item: its model, loaded as it is and not trained."""
    if not cfg.has_vision or cfg.model.features:
        why = "It learned from ready features, not from a tower" if cfg.has_vision else "It reads text only"
        raise RequestError(f"The run is '{folder}'", f"{why}, so it cannot see an image", "Name a run with a tower")
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, backbone=str(folder / folders.MODEL), backbone_revision=""),
        adapter=AdapterConfig(),
        objective=dataclasses.replace(cfg.objective, is_trained=False),
        run=dataclasses.replace(cfg.run, device="auto", precision="fp32"),
    )
