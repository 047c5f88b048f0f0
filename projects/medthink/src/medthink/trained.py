"""Saved models that are asked one item at a time: the paper's T5, or a vision-language model."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.towers import load_tower
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.readers.images import load_image
from medthink import saved
from medthink.bases import find_base
from medthink.config import Config, from_plain
from medthink.data import TEMPLATES, encode_items, fields_of, fitted_texts
from medthink.generation import generate_texts
from medthink.items import Item
from medthink.model import MedThinkT5
from medthink.t5 import open_t5
from medthink.vlm import UNLIMITED, open_backbone, picture

TOKENS = 512


class Forced(NamedTuple):
    """A target that a model was made to say: its tokens, where the answer stands, each token's log-probability."""

    target: list[int]
    answer: tuple[int, int]
    logps: Tensor


class Trained(Protocol):
    """A saved model with the configuration of its run."""

    @property
    def cfg(self) -> Config: ...

    @property
    def method(self) -> str:
        """The strategy that it was trained with."""
        ...

    def see(self, image: Path) -> Any:
        """What the model makes of an image file, for the two below."""
        ...

    def write(self, item: Item, seen: Any, *, max_new_tokens: int) -> str:
        """A greedy text."""
        ...

    def force(self, item: Item, seen: Any) -> Forced:
        """The item's own target, given image and prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainedT5:
    """A saved T5 with fusion; what it sees are features, 1 p c."""

    model: MedThinkT5
    tokenizer: PreTrainedTokenizerBase
    cfg: Config

    @property
    def method(self) -> str:
        """The strategy that it was trained with."""
        return self.cfg.objective.method

    def see(self, image: Path) -> Tensor:
        """Features by the run's tower."""
        tower = load_tower(self.cfg.model.tower, self.cfg.model.tower_revision)
        return tower.encode(torch.from_numpy(load_image(image, image_px=tower.image_px))[None]).clone()

    def write(self, item: Item, seen: Tensor, *, max_new_tokens: int) -> str:
        """A greedy text."""
        return generate_texts(
            self.model,
            self.tokenizer,
            [item],
            self.method,
            images=[0],
            vision=seen,
            batch_size=1,
            max_new_tokens=max_new_tokens,
            source_tokens=TOKENS,
        )[0]

    def force(self, item: Item, seen: Tensor) -> Forced:
        """The item's own target, given features and prompt."""
        row = encode_items([item], self.method, self.tokenizer, source_tokens=TOKENS, target_tokens=TOKENS)[0]
        input_ids, labels = torch.tensor([row.source]), torch.tensor([row.target])
        with torch.inference_mode():
            logits = self.model(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                vision=seen,
                decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels),
            ).logits
        logps = logits[0].float().log_softmax(dim=-1).gather(1, labels[0][:, None])[:, 0]
        return Forced(row.target, row.answer, logps)


@dataclasses.dataclass(frozen=True)
class TrainedVlm:
    """A saved vision-language model; what it sees is the picture itself."""

    backbone: Backbone
    cfg: Config

    @property
    def method(self) -> str:
        """The strategy that it was trained with."""
        return self.cfg.objective.method

    def see(self, image: Path) -> Image.Image:
        """The picture as in training."""
        return picture(image, self.cfg.model.image_px)

    def write(self, item: Item, seen: Image.Image, *, max_new_tokens: int) -> str:
        """A greedy text."""
        prompt, _ = self._texts(item)
        return " ".join(self.backbone.generate([seen], [prompt], max_new_tokens=max_new_tokens)[0].split())

    def force(self, item: Item, seen: Image.Image) -> Forced:
        """The item's own target, given picture and prompt."""
        prompt, target = self._texts(item)
        batch = self.backbone.prepare([seen], [prompt], [target], max_tokens=UNLIMITED).to(self.backbone.device)
        with torch.inference_mode():
            logits, targets, _ = self.backbone.supervised_logits(batch)
        logps = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].cpu()
        return Forced(targets.tolist(), answer_tokens(self.backbone, item, self.method, target), logps)

    def _texts(self, item: Item) -> tuple[str, str]:
        tokenizer = self.backbone.tokenizer
        return fitted_texts([item], self.method, tokenizer, source_tokens=TOKENS, target_tokens=TOKENS)[0]


def answer_tokens(backbone: Backbone, item: Item, method: str, target: str) -> tuple[int, int]:
    """First and one past the last of the target's tokens that belong to its answer sentence; (0, 0) without one.

    Args:
        backbone: its tokenizer says which letters each token covers.
        item: with the answer in the target.
        method: strategy.
        target: the text, in which the answer stands last or first.
    """
    sentence = next((text for name, text in fields_of(item, TEMPLATES[method].target) if "answer" in name), None)
    if sentence is None:
        return 0, 0
    begin = target.rindex(sentence)
    spans = backbone.tokenizer(target, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [place for place, (_, end) in enumerate(spans) if begin < end <= begin + len(sentence)]
    return inside[0], inside[-1] + 1


def load_run(folder: Path) -> Trained:
    """Load what `medthink train` left in a run folder.

    Raises:
        RequestError: where the run is not finished, its model does not answer from an image, or the model that its
            adapter belongs to is not there.
    """
    card = folder / "job.json"
    if not card.is_file():
        raise RequestError(
            f"The run is '{folder}'", "It holds no job.json, so it is no finished run", "Name a finished run with --run"
        )
    cfg = from_plain(json.loads(card.read_text(encoding="utf-8"))["config"])
    if not cfg.has_vision or cfg.model.features:
        why = "It learned from ready features, not from a tower" if cfg.has_vision else "It reads text only"
        raise RequestError(f"The run is '{folder}'", f"{why}, so it cannot see an image", "Name a run with a tower")
    asked = dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, backbone=str(folder / "model"), backbone_revision=""),
        adapter=AdapterConfig(),
        objective=dataclasses.replace(cfg.objective, is_trained=False),
    )
    if find_base(asked.model.backbone).has_own_tower:
        run = dataclasses.replace(cfg.run, device="auto", precision="fp32")
        return TrainedVlm(open_backbone(dataclasses.replace(asked, run=run)), cfg)
    run = dataclasses.replace(cfg.run, device="cpu", precision="fp32")
    width = saved.read_strategy(folder / "model").get("vision_width")
    backbone = open_t5(dataclasses.replace(asked, run=run), vision_width=width)
    return TrainedT5(backbone.model, backbone.tokenizer, cfg)
