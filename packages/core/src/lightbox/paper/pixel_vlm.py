"""The model that joins language and segmenter: regions of a picture as words of a question, states as prompts of masks.

A picture is seen twice. A vision-language model reads it in patches; a region is the mean of its patches' features
(`pixel_prompts`), through a linear adapter, in the place of its placeholder's embedding. A segmenter encodes it once;
the state that speaks for each `<SEG>` of an answer (`seg_states`), through a projector, is a prompt of its decoder.

The architecture is LISA's, with MedPLIB's regions. Names of MedPLIB's code: `seg_projector` is text_hidden_fcs,
`region_adapter` is region_fea_adapter, `sam` is visual_model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightbox.backbones import vision
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.generation import Generated
from lightbox.backbones.rows import IGNORED, UNLIMITED, VlmBatch
from lightbox.backbones.segmenter import Segmenter
from lightbox.config import check_choice
from lightbox.losses.language import rows_before
from lightbox.paper import pixel_rows
from lightbox.paper.picture_memory import PictureMemory
from lightbox.paper.pixel_items import REGION_FEATURE, SEG, PixelItem
from lightbox.paper.pixel_prompts import pool
from lightbox.paper.pixel_rows import PixelBatch
from lightbox.paper.seg_states import STATES, SegStates, seg_states

SEG_NORM = "seg_projector_norm"
"""Field of a backbone's config.json: false where its projector of `<SEG>` ends without a norm."""


@dataclass(frozen=True)
class PixelOutput:
    """What a model says of answers that are there.

    Args:
        logits, targets: of the supervised words, row after row.
        mask_logits: of each `<SEG>`, row after row, at the size of its picture; above 0 is inside.
    """

    logits: Float[Tensor, "n v"]
    targets: Int[Tensor, " n"]
    mask_logits: list[Float[Tensor, "h w"]]


@dataclass(frozen=True)
class DrawnMask:
    """A mask of an answer.

    Args:
        span: first and one past the last character of its `<SEG>` in the answer.
        phrase: the words before it, back to the mask or sentence before.
        logits: float32 h w of the picture; above 0 is inside at the threshold 0.5.
    """

    span: tuple[int, int]
    phrase: str
    logits: Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class PixelAnswer:
    """An answer with the masks that it speaks of, none of them where it says no `<SEG>`."""

    text: str
    masks: list[DrawnMask]
    image_hw: tuple[int, int]

    def mask(self, logit: float = 0.0) -> Bool[np.ndarray, "h w"]:
        """Pixels in any of its masks above a logit; empty where there is none."""
        inside = np.zeros(self.image_hw, dtype=bool)
        for one in self.masks:
            inside |= one.logits > logit
        return inside


class PixelVLM(nn.Module):
    """A vision-language model and a segmenter, of any size, with what joins them.

    Args:
        backbone: with the tags in its tokenizer (`pixel_rows.add_tags`), around a model with or without adapters and
            experts; a LLaVA or a Qwen-VL.
        segmenter: a SAM or a SAM 2; it may be narrower or wider.
        seg_state: see `seg_states.seg_states`.

    Raises:
        RequestError: tags that are no tokens.
    """

    def __init__(self, backbone: Backbone, segmenter: Segmenter, *, seg_state: str = "predict") -> None:
        super().__init__()
        check_choice("seg_state", seg_state, STATES)
        self.backbone, self.segmenter, self.seg_state = backbone, segmenter, seg_state
        self.ids = pixel_rows.tag_ids(backbone)
        self.memory = PictureMemory(segmenter)
        self.vlm, self.sam = backbone.model, segmenter.model  # registered, so that they train, move and are counted
        config: Any = backbone.core.config
        sam: Any = segmenter.model.config
        width, prompt = config.get_text_config().hidden_size, sam.mask_decoder_config.hidden_size
        layers = getattr(config, "vision_feature_layer", 0)
        seen = config.vision_config.hidden_size * (len(layers) if isinstance(layers, list | tuple) else 1)
        # normed at the end: a tiny decoder reads prompts of the size that its own encoder makes, and no others; weights
        # that were trained without say so in their config
        norm = [nn.LayerNorm(prompt)] if getattr(config, SEG_NORM, True) else []
        self.seg_projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt), *norm)
        self.region_adapter = nn.Linear(seen, width)

    def prepare(self, items: Sequence[PixelItem], *, max_tokens: int = UNLIMITED, padding: str = "right") -> PixelBatch:
        """See `pixel_rows.prepare`."""
        return pixel_rows.prepare(self.backbone, items, max_tokens=max_tokens, padding=padding)

    def forward(self, batch: PixelBatch) -> PixelOutput:
        """Read answers that are there, in one pass for words and masks.

        Raises:
            RequestError: a batch without answers.
        """
        rows, regions = self._seen(batch)
        with self._written(regions), vision.read_by(self._head) as states:
            logits, targets, _ = self.backbone.supervised_logits(rows)
        assert rows.labels is not None  # supervised_logits refuses it
        segs = self._segs(states[0], rows, rows.labels != IGNORED)
        return PixelOutput(logits, targets, self._draw(batch, segs))

    @torch.no_grad()
    def answer(
        self, items: Sequence[PixelItem], *, max_new_tokens: int, batch_size: int = 8, stop: Sequence[str] = ()
    ) -> list[PixelAnswer]:
        """Answer questions with the likeliest words, and draw a mask for each `<SEG>` among them.

        Words come one by one; where one of them is `<SEG>`, the whole is read once more as in training, and states are
        taken from there, so that no counting of steps decides which state speaks for a mask.

        Args:
            items: without answers.
            max_new_tokens: longest answer.
            batch_size: questions at once; changes the time, and the answer only by rounding.
            stop: see `Backbone.generate`.

        Raises:
            RequestError: as `prepare` and `Backbone.generate`.
        """
        answers: list[PixelAnswer] = []
        for start in range(0, len(items), batch_size):
            own = [replace(item, answer=None, masks=()) for item in items[start : start + batch_size]]
            batch = self.prepare(own, padding="left").to(self.backbone.device)
            rows, regions = self._seen(batch)
            with self._written(regions):
                generated = self.backbone.generate(rows, max_new_tokens=max_new_tokens, stop=stop)
            is_seg = (generated.ids == self.ids[SEG]) & generated.is_token
            if is_seg.any():
                whole, is_answer = with_answers(rows, replace(generated, ids=self._without_placeholders(generated.ids)))
                segs = self._segs(self._states(whole, regions), whole, is_answer)
            else:  # no state to read, as of all questions that ask for words
                segs = SegStates(regions[:0], *is_seg.nonzero(as_tuple=True))
            answers += self._answers(batch, generated, segs, self._draw(batch, segs))
        return answers

    def language_inputs(self, batch: PixelBatch) -> dict[str, Any]:
        """Arguments of the language model for a batch: pictures as tokens that are encoded already, regions not yet."""
        return self.backbone.inputs_of(self._seen(batch)[0])

    # ---- inside

    @property
    def _head(self) -> nn.Module:
        return self.backbone.part(self.backbone.family.head)

    def _seen(self, batch: PixelBatch) -> tuple[VlmBatch, Float[Tensor, "n d"]]:
        """Rows with the tokens of their pictures, and what each region means, from one pass of the tower."""
        backbone = self.backbone
        with vision.read_by(backbone.part(backbone.family.projector)) as read:
            tokens = list(backbone.core.get_image_features(**batch.pixels, return_dict=True).pooler_output)
        # Qwen's projector reads the four patches of a token together
        patches = [p if p.ndim == 2 else p.mean(dim=1) for p in backbone.split_patches(read[0], batch.pixels)]
        dtype = self.region_adapter.weight.dtype
        regions = self.region_adapter(
            torch.cat([pool(own.to(dtype), weights) for own, weights in zip(patches, batch.weights, strict=True)])
        )
        fields, shared = backbone.image_fields(batch.pixels, list(range(len(batch))), tokens)
        return replace(batch.rows, inputs=batch.rows.inputs | fields, shared=shared), regions

    @contextmanager
    def _written(self, regions: Float[Tensor, "n d"]) -> Iterator[None]:
        """Within this context the first rows that are read have regions in the places of their placeholders.

        In the embeddings and not as `inputs_embeds`, so that each family goes on to place its pictures by the ids.
        """
        is_written = not len(regions)

        def write(_: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
            nonlocal is_written
            if is_written:
                return embedded  # a later word of an answer
            is_written = True
            is_region = (arguments[0] == self.ids[REGION_FEATURE])[..., None]
            return embedded.masked_scatter(is_region, regions.to(embedded.dtype))

        handle = self.backbone.part(self.backbone.family.embeddings).register_forward_hook(write)
        try:
            yield
        finally:
            handle.remove()

    def _states(self, rows: VlmBatch, regions: Float[Tensor, "n d"]) -> Float[Tensor, "b t d"]:
        """What the head reads at every place; it reads none."""
        nothing = torch.full_like(rows.inputs["input_ids"], IGNORED)
        with self._written(regions), vision.read_by(self._head) as states, rows_before(self._head, nothing):
            self.backbone.model(**self.backbone.inputs_of(rows), use_cache=False)
        return states[0]

    def _without_placeholders(self, ids: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Answers with padding for what stands for a picture or a region: said by a model it stands for none."""
        placeholders = torch.tensor([self.ids[REGION_FEATURE], self.backbone.image_token_id], device=ids.device)
        return ids.masked_fill(torch.isin(ids, placeholders), int(self.backbone.tokenizer.pad_token_id))

    def _segs(self, states: Float[Tensor, "b t d"], rows: VlmBatch, is_answer: Bool[Tensor, "b t"]) -> SegStates:
        return seg_states(states, rows.inputs["input_ids"], self.ids[SEG], is_answer=is_answer, state=self.seg_state)

    def _draw(self, batch: PixelBatch, segs: SegStates) -> list[Float[Tensor, "h w"]]:
        """Logits of the mask of each `<SEG>`, at the size of its picture; pictures without one are not encoded."""
        if not len(segs.rows):
            return []
        rows = segs.rows.tolist()
        place_of = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        embeddings = self.memory.embed([batch.pictures[row] for row in place_of])
        prompts = self.seg_projector(segs.states.to(self.region_adapter.weight.dtype))[:, None]  # n 1 c
        # one mask, from the head that the loss trains
        masks = self.segmenter.decode(embeddings, prompts, image_of=[place_of[row] for row in rows], fallback=False)
        return [mask[0] for mask in masks.logits]

    def _answers(
        self, batch: PixelBatch, generated: Generated, segs: SegStates, logits: list[Tensor]
    ) -> list[PixelAnswer]:
        answers = []
        prompt = batch.rows.inputs["input_ids"].shape[1]
        for row, picture in enumerate(batch.pictures):
            text = generated.texts[row]
            spans = self.backbone.token_spans(generated.ids[row][generated.is_token[row]])
            masks, before = [], 0
            for place in (segs.rows == row).nonzero()[:, 0].tolist():
                span = spans[int(segs.places[place]) - prompt]
                if span[1] > len(text):
                    continue  # behind a stop string, so no longer said
                masks.append(
                    DrawnMask(span, phrase_before(text[before : span[0]]), logits[place].float().cpu().numpy())
                )
                before = span[1]
            answers.append(PixelAnswer(text, masks, (picture.height, picture.width)))
        return answers


def with_answers(rows: VlmBatch, generated: Generated) -> tuple[VlmBatch, Bool[Tensor, "b t"]]:
    """Rows that were to be answered with their answers behind them, and True where those are."""
    ids = rows.inputs["input_ids"]
    behind = {"input_ids": generated.ids, "attention_mask": generated.is_token.long()}
    inputs = {
        name: torch.cat([value, behind.get(name, torch.zeros_like(generated.ids)).to(value.dtype)], dim=1)
        if value.shape == ids.shape
        else value
        for name, value in rows.inputs.items()
    }
    is_answer = torch.cat([torch.zeros_like(ids, dtype=torch.bool), generated.is_token], dim=1)
    return replace(rows, inputs=inputs, conversations=[]), is_answer


def phrase_before(text: str) -> str:
    """The last clause of a text: what a `<SEG>` behind it stands for.

    Example:
        >>> phrase_before("There are two. Here is the left lung ")
        'Here is the left lung'
        >>> phrase_before(" and the heart ")
        'the heart'
    """
    clause = text.replace(";", ".").replace(",", ".").rpartition(".")[2].strip()
    return clause.removeprefix("and ").strip()
