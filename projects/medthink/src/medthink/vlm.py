"""Any vision-language model in the place of the paper's T5. Ours, not the paper's.

The strategies keep their meaning: the image and what a strategy reads become the prompt, what it writes becomes the
answer, from the same templates and items. There is no fusion and no tower beside the model: it has its own.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.adapters import artifact
from lightbox.adapters.attach import attach
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.loading import load
from lightbox.backbones.rows import VlmBatch
from lightbox.files import write_json
from lightbox.readers.images import letterbox, load_image
from lightbox.train.batches import BatchSource
from lightbox.train.card import describe
from lightbox.train.driver import History, fit
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.seeds import seed_everything
from medthink import saved
from medthink.bases import find_base
from medthink.checks import settled
from medthink.config import Config
from medthink.data import fitted_texts
from medthink.evaluate import Trial
from medthink.features import GREY
from medthink.items import Item, Split, ids_of
from medthink.room import memory_advice

UNLIMITED = 1 << 30
"""Texts are shortened before they are tokenised, so what is left to limit a row is the model's own context."""
EVA_BATCHES = 8
"""Batches that adapter.init=eva looks at before training."""


class Vlm:
    """A vision-language model as a learner; see `train.Learner`."""

    def __init__(self, cfg: Config, backbone: Backbone) -> None:
        self._cfg, self.backbone = cfg, backbone

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return self.backbone.tokenizer

    def fit(self, items: Sequence[Item], split: Split, folder: Path) -> History:
        """Train on items of a split: their prompts are read, their targets carry the loss."""
        cfg, texts = self._cfg, self._texts(items)

        def collate(indices: list[int]) -> VlmBatch:
            prompts, targets = zip(*(texts[i] for i in indices), strict=True)
            shown = self._shown(split, [items[i].image for i in indices] if cfg.has_vision else None)
            return self.backbone.prepare(shown, prompts, targets, max_tokens=UNLIMITED)

        def batches() -> Iterator[dict[str, Tensor]]:
            for start in range(0, len(items), cfg.optim.batch_size)[:EVA_BATCHES]:
                stop = min(start + cfg.optim.batch_size, len(items))
                yield collate(list(range(start, stop))).to(self.backbone.device).inputs

        seen = batches() if cfg.adapter.init == "eva" else None
        attached = attach(self.backbone, cfg.adapter, checkpoint_layers=cfg.train.checkpoint_layers, batches=seen)
        self.backbone = attached
        return fit(
            attached.model,
            lambda model, batch: attached.with_model(model).loss(batch),
            BatchSource(len(items), collate, batch_size=cfg.optim.batch_size, seed=cfg.run.seed, ids=ids_of(items)),
            optim=cfg.optim,
            run=cfg.run,
            out=folder,
            train=cfg.train,
            facts=self.facts(),
            memory_advice=memory_advice(cfg, find_base(cfg.model.backbone, cfg.model.backbone_revision)),
        )

    def write(self, trial: Trial, split: Split) -> list[str]:
        """One greedy text an item."""
        self.backbone.model.eval()
        prompts = [prompt for prompt, _ in self._texts(trial.items)]
        texts: list[str] = []
        size = self._cfg.eval.batch_size
        for start in range(0, len(prompts), size):  # images of one batch at a time are decoded
            here = slice(start, start + size)
            shown = self._shown(split, None if trial.images is None else trial.images[here])
            texts += self.backbone.generate(shown, prompts[here], max_new_tokens=trial.max_new_tokens, batch_size=size)
        return [" ".join(text.split()) for text in texts]

    def facts(self) -> dict[str, Any]:
        """What a run card says of the weights: which, how they are stored, what computes attention."""
        return artifact.base_facts(self.backbone)

    def describe(self, folder: Path) -> None:
        """Write the card of weights that are scored as they are."""
        facts = describe(self.backbone.model, self.backbone.device, self._cfg.run, notes=[saved.UNTRAINED])
        write_json(folder / "card.json", facts | self.facts() | {"wall_s": 0.0})

    def save(self, folder: Path) -> None:
        """Write the adapter, or the whole model where all of it was trained, with what it was trained for."""
        saved.save(self._cfg, self.backbone, folder)

    def _texts(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        cfg = self._cfg
        return fitted_texts(
            items,
            cfg.objective.method,
            self.tokenizer,
            source_tokens=cfg.data.source_tokens,
            target_tokens=cfg.target_tokens,
        )

    def _shown(self, split: Split, places: Sequence[int] | None) -> list[Image.Image] | None:
        """Images of a split by their places; one past the last is the blank one."""
        if places is None:
            return None
        image_px = self._cfg.model.image_px
        blank = len(split.images)
        return [
            grey(split.images[0], image_px) if place == blank else picture(split.images[place], image_px)
            for place in places
        ]


def open_vlm(cfg: Config) -> Vlm:
    """The model as a learner.

    Raises:
        RequestError: as `open_backbone`, or weights that were trained for another strategy.
    """
    base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
    if not cfg.objective.is_trained:
        saved.check_strategy(cfg, **saved.strategy_of(base.adapter or Path(base.name)))
    return Vlm(settled(cfg, base), open_backbone(cfg))


def open_backbone(cfg: Config) -> Backbone:
    """Load `model.backbone` where the run computes, with its adapter where it names one.

    Raises:
        RequestError: what `load` and `artifact.load` refuse.
    """
    base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
    own = settled(cfg, base)
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    backbone = load(
        own.model.backbone,
        own.model.backbone_revision,
        quant=own.adapter.quant,
        dtype=own.model.dtype,
        device=str(plain_device(make_accelerator(cfg.run))),
        attention=own.model.attention,
    )
    return backbone if base.adapter is None else artifact.load(base.adapter, backbone)


def picture(image: np.ndarray | Path, image_px: int) -> Image.Image:
    """A grey square with the image in its middle; its side is the image's longer one, `image_px` at most.

    A square, because a processor that crops would otherwise cut the edges off.
    """
    pixels = load_image(image)
    return Image.fromarray(letterbox(pixels, min(image_px, max(pixels.shape))))


def grey(like: np.ndarray | Path, image_px: int) -> Image.Image:
    """The blank image: mid-grey, of the size that another one is shown in."""
    return Image.new("L", picture(like, image_px).size, GREY)
