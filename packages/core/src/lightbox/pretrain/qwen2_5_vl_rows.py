"""What the tiny `qwen2_5_vl` is pretrained on: whole images with what lies where, balanced questions, and boxes.

Images are drawn at 192 pixels and seen at 48, reduced as its processor does. The phantom's smallest lesions are then
about 2 pixels wide and their shapes gone, while the original has about 8 pixels of them. What a closer look shows stays
unseen here: no crop, no mark, no second turn.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from transformers.image_utils import SizeDict
from transformers.vision_utils import get_vision_window_index

from lightbox.backbones.edge_bins import EdgeBins
from lightbox.losses.language import IGNORED
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, SHAPE_WORDS
from lightbox.phantom.world import CHUNK
from lightbox.pretrain.llava_576_rows import ALL, BoxTurn, FeatureRows, box_turns, known_names
from lightbox.pretrain.llava_rows import (
    CAPTION_TURN,
    IMAGE_TURN,
    QUESTIONS_PER_CASE,
    ChatSet,
    Turn,
    balanced,
    question_turn,
    turn_mask,
)
from lightbox.pretrain.tower import MEAN, STD, normalise
from lightbox.records import Box, Case

PATCH_PX, MERGE, FRAMES = 3, 2, 2
"""Sides of a patch in pixels and of a token in patches; a still image is read as two frames that are alike."""
ORIGINAL_PX, SEEN_PX = 192, 16 * PATCH_PX
"""16 x 16 patches at any patch size: a coarser look costs the same. The original is a multiple of what is seen."""
SIDE = SEEN_PX // (PATCH_PX * MERGE)
TOKENS = SIDE**2
LEAST_PX, MOST_PX = (SEEN_PX - PATCH_PX) ** 2, (SEEN_PX + 1) ** 2
"""Areas between which an image keeps its size: a little around the whole, so that rounding gives squares the whole."""
BINS = 128
"""Location tokens each way, three eighths of a pixel that the tower sees: the smallest lesions are 2 pixels wide."""
LOCATIONS = tuple(f"<loc_{k}>" for k in range(BINS))
IM_START, IM_END, VISION_START, VISION_END, IMAGE = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
USER, ASSISTANT = "user", "assistant"
BEFORE_IMAGE = (IM_START, USER, VISION_START)
PREFIX = (*BEFORE_IMAGE, *[IMAGE] * TOKENS, VISION_END)
SCALES = (50, 100, 150)
"""Lesion sizes in percent of the usual. Those of the larger ones are seen as wide as a crop shows the smallest."""
WORLDS = tuple(
    Knobs(image_px=ORIGINAL_PX, lesion_scale_pct=scale, vocabulary=vocabulary)
    for scale in SCALES
    for vocabulary in ("named", "triples")
)
_SHAPES, _DENSITIES = list(SHAPE_WORDS.values()), list(DENSITY_WORDS.values())


@dataclass(frozen=True)
class DenseTargets:
    """What lies in each token, tokens row by row.

    `shape`, `density` int64 (n, p), -1 where no finding is; `masks` bool (n, p, 36), finding pixels as they are seen,
    row by row; `boxes` float32 (n, p, 4), of that finding as fractions of the image, 0 where there is none.
    """

    shape: np.ndarray
    density: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class WholeSet(ChatSet):
    """Whole images as they are seen, uint8 (48, 48), what is said about each and what lies where.

    The first turn of each asks for all findings. `scales` is the lesion size of each in percent.
    """

    dense: DenseTargets
    scales: list[int]


def image_processor() -> Qwen2VLImageProcessor:
    """Square images become 48 pixels wide; others as many in area, in whole tokens. 48 x 48 pixels stay as they are."""
    return Qwen2VLImageProcessor(**reading())


def reading() -> dict[str, Any]:
    """Settings of the processors of images and videos: sizes, patches, mean and deviation."""
    return {
        "size": {"shortest_edge": LEAST_PX, "longest_edge": MOST_PX},
        "patch_size": PATCH_PX,
        "merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }


def reduced(pixels: np.ndarray) -> np.ndarray:
    """Images as the tower sees them, uint8 (b, 48, 48), by the processor's own resizing.

    Args:
        pixels: uint8 (b, h, w), square.
    """
    processor = image_processor()
    size = SizeDict(shortest_edge=LEAST_PX, longest_edge=MOST_PX)
    images = torch.from_numpy(pixels)[:, None]
    return processor.resize(images, size, processor.resample, factor=PATCH_PX * MERGE)[:, 0].numpy()


def tower_inputs(pixels: np.ndarray) -> dict[str, Tensor]:
    """`pixel_values` (b 256, 96) and `image_grid_thw` (b, 3) as the processor gives them.

    Args:
        pixels: uint8 (b, 48, 48).
    """
    patches, rows, columns = image_processor().patchify(normalise(pixels), PATCH_PX, MERGE, FRAMES)
    return {
        "pixel_values": rearrange(patches, "b p c -> (b p) c"),
        "image_grid_thw": torch.tensor([[1, rows, columns]]).expand(len(pixels), -1),
    }


def whole_set(split: str, n_cases: int, *, seed: int = 0) -> WholeSet:
    """Draw whole images with dense targets, box turns and balanced questions, the worlds one after the other.

    Args:
        split: a phantom split.
        n_cases: images in all; a multiple of the number of worlds, else a few less are drawn.
        seed: run seed; each world has its own case seeds.
    """
    share = n_cases // len(WORLDS)
    cases: list[Case] = []
    parts: list[tuple[np.ndarray, ...]] = []
    for k, knobs in enumerate(WORLDS):
        seeds = seed_range(split, seed + k, share)
        for start in range(0, share, CHUNK):  # large images and masks live for a chunk only
            drawn = draw_cases(seeds[start : start + CHUNK], knobs, questions_per_case=QUESTIONS_PER_CASE, split=split)
            parts += [_dense(case) for case in drawn]
            images = reduced(np.stack([np.asarray(case.images[0]) for case in drawn]))
            cases += [_as_seen(case, image) for case, image in zip(drawn, images, strict=True)]
    question_ids = balanced([question for case in cases for question in case.questions])
    rng = np.random.default_rng([seed, n_cases])
    scales = [WORLDS[k // share].lesion_scale_pct for k in range(len(cases))]
    turns: list[list[Turn]] = []
    for k, case in enumerate(cases):
        names = CLASS_NAMES if WORLDS[k // share].vocabulary == "named" else known_names()
        located = [_with_locations(turn, case, scales[k]) for turn in box_turns(case, names, rng)]
        turns.append([*located, *(question_turn(q) for q in case.questions if q.id in question_ids)])
    return WholeSet(cases, turns, DenseTargets(*map(np.stack, zip(*parts, strict=True))), scales)


def _as_seen(case: Case, image: np.ndarray) -> Case:
    findings = tuple(replace(finding, mask=None) for finding in case.findings)
    return replace(case, images=(image,), findings=findings)


def _with_locations(turn: BoxTurn, case: Case, scale: int) -> BoxTurn:
    """A box turn answered in location tokens, behind names where all findings are asked for."""
    names = {finding.boxes[0]: finding.name for finding in case.findings}
    codec = EdgeBins(BINS)
    parts = [
        (names[box] if turn.kind == ALL else "") + codec.encode(box, ORIGINAL_PX, ORIGINAL_PX) for box in turn.boxes
    ]
    size = f"{turn.size}_{scale}" if turn.size else ""
    return replace(turn, answer=" ".join(parts) if parts else turn.answer, size=size)


def _dense(case: Case) -> tuple[np.ndarray, ...]:
    """One case's part of `DenseTargets`; a token shows the finding that has most pixels in it."""
    shape, density = np.full(TOKENS, -1), np.full(TOKENS, -1)
    most, boxes = np.zeros(TOKENS), np.zeros((TOKENS, 4), dtype=np.float32)
    seen = np.zeros((SEEN_PX, SEEN_PX), dtype=bool)
    for finding in case.findings:
        mask = np.asarray(finding.mask, dtype=np.float32)
        pixels = reduce(mask, "(h y) (w x) -> (h w)", "sum", h=SIDE, w=SIDE)
        own = pixels > most
        most[own], boxes[own] = pixels[own], finding.boxes[0]
        shape[own] = _SHAPES.index(finding.attributes["shape"])
        density[own] = _DENSITIES.index(finding.attributes["density"])
        seen |= reduce(mask, "(h y) (w x) -> h w", "mean", h=SEEN_PX, w=SEEN_PX) >= 0.5
    return shape, density, rearrange(seen, "(h y) (w x) -> (h w) (y x)", h=SIDE, w=SIDE), boxes


# ---- the tower's side


def read_patches(tower: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Patches of a Qwen2.5-VL tower's last layer by token, (b, p, 4, c), tokens row by row.

    Args:
        tower: of transformers; its own order is that of its windows.
        inputs: see `tower_inputs`; images of one size.
    """
    grid, config = inputs["image_grid_thw"], tower.config
    hidden = tower(inputs["pixel_values"], grid_thw=grid).last_hidden_state
    windows, _ = get_vision_window_index(
        grid,
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    by_token = rearrange(hidden, "(p m) c -> p m c", m=config.spatial_merge_size**2)
    return rearrange(by_token[torch.argsort(windows)], "(b p) m c -> b p m c", b=len(grid))


def merged(tower: Any, patches: Tensor) -> Tensor:
    """What the tower's merger makes of patches (b, p, 4, c): tokens (b, p, d)."""
    return rearrange(tower.merger(rearrange(patches, "b p m c -> (b p m) c")), "(b p) d -> b p d", b=len(patches))


@torch.inference_mode()
def encode_images(tower: Any, pixels: np.ndarray, *, batch: int = 64) -> Tensor:
    """Patches of a frozen tower, (n, p, 4, c) in float16, computed once for the whole stage; the merger learns on.

    Args:
        tower: in evaluation mode.
        pixels: uint8 (n, 48, 48).
        batch: images at once.
    """
    parts = [
        read_patches(tower, tower_inputs(pixels[start : start + batch])).half()
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(parts)


# ---- the language model's side


class WholeRows(FeatureRows):
    """Rows as `FeatureRows`, written as Qwen2.5-VL writes a question: an end, and the assistant's beginning behind it.

    `position_ids` (b, t) are those of text; an image's three are made of them by `places`. `first_location` is the id
    of the first of `LOCATIONS`.
    """

    def __init__(self, data: ChatSet, features: Tensor, tokenizer: PreTrainedTokenizerFast, **words: Any) -> None:
        super().__init__(data, features, tokenizer, **words)
        self.first_location = tokenizer.get_vocab()[LOCATIONS[0]]

    def _row(self, index: int) -> tuple[list[int], list[int], list[int], list[int]]:
        begin, opening = len(self.prefix), [self.eos, self.prefix[0], self.assistant]
        ids, labels, turns = list(self.prefix), [IGNORED] * begin, [IMAGE_TURN] * begin
        first = len(BEFORE_IMAGE) + SIDE  # the image takes as many positions as it has rows
        positions = [*range(len(BEFORE_IMAGE)), *[len(BEFORE_IMAGE)] * TOKENS, first]
        for number, (prompt, answer) in enumerate(self.texts[index], CAPTION_TURN):
            ids += [*prompt, *opening, *answer, self.eos]
            # shifted by one already: the label stands where it is predicted
            labels += [*[IGNORED] * (len(prompt) + len(opening) - 1), *answer, self.eos, IGNORED]
            new = len(ids) - len(turns)
            turns += [number] * new
            positions += range(first + 1, first + 1 + new)
        return ids, labels, turns, positions


def places(position_ids: Tensor) -> Tensor:
    """Time, row and column of each token, (3, b, t), of rows that begin with `PREFIX`.

    Args:
        position_ids: see `WholeRows`, (b, t).
    """
    out = position_ids.expand(3, -1, -1).clone()
    steps = torch.arange(TOKENS)
    image = slice(len(BEFORE_IMAGE), len(BEFORE_IMAGE) + TOKENS)
    out[1, :, image] += steps // SIDE
    out[2, :, image] += steps % SIDE
    return out


def token_logits(model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As `llava_rows.answer_logits`, from patches: logits (n, v) of labelled positions, and where those are (b, t)."""
    core: Any = model.model
    words = model.get_input_embeddings()(batch["input_ids"])
    is_image = (batch["input_ids"] == model.config.image_token_id)[..., None]
    hidden = core.language_model(
        inputs_embeds=words.masked_scatter(is_image, merged(core.visual, batch["features"])),
        attention_mask=turn_mask(batch["turns"]),
        position_ids=places(batch["position_ids"]),
        use_cache=False,
    ).last_hidden_state
    is_label = batch["labels"] != IGNORED
    return model.lm_head(hidden[is_label]), is_label


@dataclass(frozen=True)
class WholeLoss:
    """Summed cross-entropy of all answers in nats, the number of their tokens, and means by what is said.

    Args:
        first_location: id of the first of `LOCATIONS`; the others follow.
        location_weight: of a location against any other token, which are nearly all easier.
    """

    first_location: int
    location_weight: float = 2.0

    def __call__(
        self, model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See the class."""
        logits, is_label = token_logits(model, batch)
        labels = batch["labels"][is_label]
        losses = F.cross_entropy(logits, labels, reduction="none")  # n
        is_location = (labels >= self.first_location) & (labels < self.first_location + BINS)
        # 0 where a batch has none: a share of nothing is no reason to stop
        means = {
            name: losses[own].sum().detach() / own.sum().clamp(min=1)
            for name, own in (("location", is_location), ("answer", ~is_location))
        }
        return (losses * (1 + (self.location_weight - 1) * is_location)).sum(), is_label.sum(), means


def boxes_in(text: str) -> list[Box]:
    """Boxes of an answer, as fractions; what cannot be read is none."""
    return EdgeBins(BINS).decode(text, ORIGINAL_PX, ORIGINAL_PX)


def all_but_boxes(data: WholeSet) -> ChatSet:
    """The same images with their questions; the first turn stays, which no question is."""
    turns = [[t for k, t in enumerate(own) if k == 0 or not isinstance(t, BoxTurn)] for own in data.turns]
    return ChatSet(data.cases, turns)
