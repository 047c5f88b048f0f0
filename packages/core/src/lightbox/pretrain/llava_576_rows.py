"""Stage 2 of the tiny `llava-576`: captions, balanced questions and boxes about images whose features are ready.

Boxes are written as LLaVA writes them, fractions with three decimals in brackets, on a grid of 2 pixels: each of its 97
numbers is one token, so that a tiny model writes four tokens a box that tell anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.backbones.box_text import Phrases
from lightbox.backbones.codecs import Fraction
from lightbox.eval.boxes import LabelledBox
from lightbox.losses.language import IGNORED
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.ontology import CLASS_NAMES, LOCATIONS, PLACE_LOCATION, PLACES, SIZES, TRIPLES, name_of
from lightbox.phantom.splits import triple_mask
from lightbox.pretrain.llava_576_tower import IMAGE_PX, LESION_PCT
from lightbox.pretrain.llava_rows import (
    CAPTION_TURN,
    QUESTIONS_PER_CASE,
    ChatRows,
    ChatSet,
    Turn,
    balanced,
    caption_turn,
    question_turn,
    turn_mask,
)
from lightbox.pretrain.tower import normalise
from lightbox.records import Box, Case, Finding

STEP_PX = 2
BINS = IMAGE_PX // STEP_PX
NUMBERS = tuple(f"{k / BINS:.3f}" for k in range(BINS + 1))
"""Every number of a box, in order; a token each."""
NONE = "none"
"""What is answered where nothing that was asked for is there."""
_HALF = {"image_px": IMAGE_PX, "lesion_scale_pct": LESION_PCT}
WORLDS = (Knobs(**_HALF), Knobs(**_HALF, burned_in_text="marker"), Knobs(**_HALF, vocabulary="triples"))
"""Two thirds named classes, half of them with a side marker, which tells nothing; one third any known triple."""
WHERE, AT, ALL, ABSENT = "box_where", "box_at", "box_all", "box_absent"
BOX_KINDS = (WHERE, AT, ALL, ABSENT)


@dataclass(frozen=True, slots=True)
class BoxTurn(Turn):
    """A prompt that is answered by boxes.

    Kinds: "box_where" names what is sought, "box_at" its place, "box_all" asks for all with their names, "box_absent"
    for a class that is not there.

    `boxes` are the true ones, as fractions, not moved to the grid; `size` is that of the finding where it is one.
    """

    boxes: tuple[Box, ...] = ()
    size: str = ""


def on_grid(box: Box) -> Box:
    """The nearest box whose ends are in `NUMBERS`, at least a step wide and high.

    Example:
        >>> on_grid(Box(0.1, 0.2, 0.101, 0.5)) == Box(10 / 96, 19 / 96, 11 / 96, 48 / 96)
        True
    """
    low = [min(round(value * BINS), BINS - 1) for value in box[:2]]
    high = [max(round(value * BINS), start + 1) for value, start in zip(box[2:], low, strict=True)]
    return Box(*(value / BINS for value in (*low, *high)))


def write_boxes(boxes: Sequence[Box], labels: Sequence[str] = ()) -> str:
    """Boxes in words, each behind its label; `NONE` for no box.

    Example:
        >>> write_boxes([Box(0.25, 0.5, 0.375, 0.75)], ["nodule"])
        'nodule [0.250, 0.500, 0.375, 0.750]'
    """
    if not boxes:
        return NONE
    labels = labels or [""] * len(boxes)
    named = [(f"{label} " if label else "", on_grid(box)) for label, box in zip(labels, boxes, strict=True)]
    form = Phrases(Fraction())
    return " ".join(form.write([LabelledBox(label, box)], IMAGE_PX, IMAGE_PX) for label, box in named)


def located_set(split: str, n_cases: int, *, seed: int = 0) -> ChatSet:
    """Draw images with captions, balanced questions and box turns from a phantom split, the worlds one after the other.

    Args:
        split: a phantom split.
        n_cases: images in all; a multiple of the number of worlds, else a few less are drawn.
        seed: run seed; each world has its own case seeds.
    """
    share = n_cases // len(WORLDS)
    cases: list[Case] = []
    for k, knobs in enumerate(WORLDS):
        drawn = draw_cases(
            seed_range(split, seed + k, share), knobs, questions_per_case=QUESTIONS_PER_CASE, split=split
        )
        cases += [_without_masks(case) for case in drawn]
    question_ids = balanced([question for case in cases for question in case.questions])
    rng = np.random.default_rng([seed, n_cases])
    turns: list[list[Turn]] = []
    for k, case in enumerate(cases):
        names = CLASS_NAMES if WORLDS[k // share].vocabulary == "named" else known_names()
        questions = [question_turn(q) for q in case.questions if q.id in question_ids]
        turns.append([caption_turn(case, k), *questions, *box_turns(case, names, rng)])
    return ChatSet(cases, turns)


@cache
def known_names() -> tuple[str, ...]:
    """Every name that a finding of a known triple can have: classes, and looks without a class."""
    known = {TRIPLES[k] for k in np.flatnonzero(triple_mask("known"))}
    names = {
        name_of(shape, density, size, place)
        for shape, density, location in known
        for (_, place), index in zip(PLACES, PLACE_LOCATION, strict=True)
        if LOCATIONS[index] == location
        for size in SIZES
    }
    return tuple(sorted(names))


def _without_masks(case: Case) -> Case:
    """Masks of thousands of cases would fill the memory, and boxes are enough here."""
    return replace(case, findings=tuple(replace(finding, mask=None) for finding in case.findings))


def box_turns(case: Case, names: Sequence[str], rng: np.random.Generator) -> list[BoxTurn]:
    """All findings with names; each name and each place that there is; and as many names that are not there.

    Args:
        case: with boxes.
        names: those of its world.
        rng: draws what is not there.
    """
    found = sorted(case.findings, key=lambda f: (f.boxes[0].y0, f.boxes[0].x0))
    boxes = [f.boxes[0] for f in found]
    turns = [
        BoxTurn(ALL, "locate all findings .", write_boxes(boxes, [f.name for f in found]), boxes=tuple(boxes)),
        *(_asked(WHERE, f"locate the {name} .", [f for f in found if f.name == name]) for name in _names(found)),
        *(
            _asked(AT, f"locate the finding in the {place} .", [f for f in found if f.attributes["location"] == place])
            for place in dict.fromkeys(f.attributes["location"] for f in found)
        ),
    ]
    absent = [name for name in names if name not in _names(found)]
    # as often as a name is asked for that is there: "locate the mass" must not tell that there is one
    for _ in range(max(1, len(_names(found)))):
        name = absent.pop(int(rng.integers(len(absent))))
        turns.append(BoxTurn(ABSENT, f"locate the {name} .", NONE))
    return turns


def _names(findings: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.name for finding in findings))


def _asked(kind: str, prompt: str, findings: Sequence[Finding]) -> BoxTurn:
    boxes = tuple(finding.boxes[0] for finding in findings)
    size = findings[0].attributes["size"] if len(findings) == 1 else ""
    return BoxTurn(kind, prompt, write_boxes(boxes), boxes=boxes, size=size)


def only(data: ChatSet, *, boxes: bool) -> ChatSet:
    """The same images with their caption and either box turns or questions."""
    turns = [
        [turn for place, turn in enumerate(own) if place == 0 or isinstance(turn, BoxTurn) == boxes]
        for own in data.turns
    ]
    return ChatSet(data.cases, turns)


@torch.inference_mode()
def encode_images(tower: Any, pixels: np.ndarray, *, batch: int = 40) -> Tensor:
    """Patches of a frozen tower's last layer, (b, p, d) in float16, computed once for the whole stage.

    Args:
        tower: a CLIP vision model in evaluation mode.
        pixels: uint8 (b, h, w).
        batch: images at once.
    """
    parts = [
        tower(pixel_values=normalise(pixels[start : start + batch])).last_hidden_state[:, 1:].half()
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(parts)


class FeatureRows(ChatRows):
    """Tokenised turns over ready features: a batch has `features` (b, p, d) in the place of `pixel_values`.

    Args:
        data: images and turns.
        features: of the tower, of each image, (n, p, d).
        tokenizer, prefix, assistant: see `ChatRows`.
    """

    def __init__(
        self,
        data: ChatSet,
        features: Tensor,
        tokenizer: PreTrainedTokenizerFast,
        *,
        prefix: Sequence[str],
        assistant: str,
    ) -> None:
        super().__init__(data, tokenizer, prefix=prefix, assistant=assistant)
        self.features = features
        self.words = tuple(prefix), assistant

    @classmethod
    def like(cls, rows: "FeatureRows", data: ChatSet, tokenizer: PreTrainedTokenizerFast) -> "FeatureRows":
        """Other turns about the same images."""
        prefix, assistant = rows.words
        return cls(data, rows.features, tokenizer, prefix=prefix, assistant=assistant)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Pad some rows to the longest of them."""
        return {"features": self.features[list(indices)].float(), **self.tokens(indices)}


def embed(model: Any, ids: Tensor, features: Tensor) -> Tensor:
    """What the language model reads, (b, t, d): words, and projected features in the places of image tokens."""
    embeddings = model.get_input_embeddings()(ids)
    is_image = (ids == model.config.image_token_id)[..., None]
    return embeddings.masked_scatter(is_image, model.model.multi_modal_projector(features).to(embeddings.dtype))


def feature_logits(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As `llava_rows.answer_logits`, from features."""
    hidden = model.model.language_model(
        inputs_embeds=embed(model, batch["input_ids"], batch["features"]),
        attention_mask=turn_mask(batch["turns"]),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    is_label = batch["labels"] != IGNORED
    return model.lm_head(hidden[is_label]), is_label


@dataclass(frozen=True)
class LocatedLoss:
    """Summed cross-entropy of all answers in nats, the number of their tokens, and means by what is said.

    Args:
        first_number: id of the first of `NUMBERS`; the others follow.
        number_weight: of a box's number against any other token, which are nearly all easier.
    """

    first_number: int
    number_weight: float = 2.0

    def __call__(
        self, model: LlavaForConditionalGeneration, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See the class."""
        logits, is_label = feature_logits(model, batch)
        labels = batch["labels"][is_label]
        losses = F.cross_entropy(logits, labels, reduction="none")  # n
        is_number = (labels >= self.first_number) & (labels < self.first_number + len(NUMBERS))
        is_caption = batch["turns"][is_label] == CAPTION_TURN
        parts = {"caption": is_caption, "number": is_number, "answer": ~is_caption & ~is_number}
        # 0 where a batch has none: a share of nothing is no reason to stop
        means = {name: losses[own].sum().detach() / own.sum().clamp(min=1) for name, own in parts.items()}
        return (losses * (1 + (self.number_weight - 1) * is_number)).sum(), is_label.sum(), means
