"""What the tiny `llava-576` has learned: answers by kind, facts of captions, and boxes.

Each is scored with its image, with that of another case, and (but captions) with a mean grey one.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.backbones.codecs import Fraction
from lightbox.eval.boxes import score_boxes
from lightbox.pretrain.llava_576_rows import (
    ABSENT,
    ALL,
    IMAGE_PX,
    BoxTurn,
    FeatureRows,
    embed,
    feature_logits,
    only,
)
from lightbox.pretrain.llava_rows import CAPTION_PROMPTS, majority_answers
from lightbox.pretrain.llava_scores import score_answers, score_captions
from lightbox.records import Box

BATCH = 40
BOX_CASES, CAPTION_CASES = 150, 100
ONE_BOX, ALL_BOXES, CAPTION_TOKENS = 30, 60, 100
"""Longest answers: three boxes of nine tokens, all boxes with names, a report."""
Modes = Mapping[str, Callable[[Tensor], Tensor]]


def modes_of(blank: Tensor) -> Modes:
    """What is shown, by the suffix of its scores; see `llava_scores.MODES`.

    Args:
        blank: features of a mean grey image, (p, d).
    """
    return {
        "": lambda features: features,
        "_blank": lambda features: blank.float().expand_as(features),
        "_shuffled": lambda features: features.roll(1, dims=0),
    }


@torch.inference_mode()
def write_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rows: FeatureRows,
    features: Tensor,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers by a LLaVA in evaluation mode.

    Args:
        model, tokenizer, rows: rows for their prefix only.
        features: of each prompt's image, (n, p, d).
        prompts: n.
        max_new_tokens: longest answer.
    """
    asked = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda k: len(asked[k]))  # alike lengths: less padding
    texts = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        here = order[start : start + BATCH]
        longest = max(len(asked[k]) for k in here)
        ids, is_token = [], []
        for k in here:
            own = [*rows.prefix, *asked[k], rows.assistant]
            n_pad = longest - len(asked[k])
            ids.append([tokenizer.pad_token_id] * n_pad + own)  # left, so that every row goes on at its right end
            is_token.append([0] * n_pad + [1] * len(own))
        embeddings = embed(model, torch.tensor(ids), features[here].float())
        out = model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.tensor(is_token),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        for k, text in zip(here, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            texts[k] = text.strip()
    return texts


def read_boxes(text: str) -> list[Box]:
    """Boxes of an answer; what cannot be read is none."""
    return Fraction().decode(text, IMAGE_PX, IMAGE_PX)


def score_located(
    model: Any, tokenizer: PreTrainedTokenizerFast, rows: FeatureRows, indices: Sequence[int], modes: Modes
) -> dict[str, float]:
    """Boxes of some images by kind of turn.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        rows: never trained on.
        indices: images that are asked about.
        modes: what is shown.

    Returns:
        In [0, 1]: `iou_` mean best overlap and `acc50_` share with a box at IoU 0.5, by kind of turn and for single
        small and large findings; `paired_iou_box_all`, which charges for boxes too many; `false_alarms`, the share of
        absent classes for which a box was drawn.
    """
    scores: dict[str, float] = {}
    turns = [(i, turn) for i in indices for turn in rows.data.turns[i] if isinstance(turn, BoxTurn)]
    for suffix, change in modes.items():
        shown = change(rows.features[list(indices)].float())
        place = {i: k for k, i in enumerate(indices)}
        values: defaultdict[str, list[float]] = defaultdict(list)
        for is_all in (False, True):
            own = [(i, turn) for i, turn in turns if (turn.kind == ALL) == is_all]
            texts = write_answers(
                model,
                tokenizer,
                rows,
                shown[[place[i] for i, _ in own]],
                [turn.prompt for _, turn in own],
                max_new_tokens=ALL_BOXES if is_all else ONE_BOX,
            )
            for (_, turn), text in zip(own, texts, strict=True):
                _count(values, turn, read_boxes(text))
        scores |= {f"{name}{suffix}": round(sum(each) / len(each), 4) for name, each in sorted(values.items())}
    return scores


def _count(values: defaultdict[str, list[float]], turn: BoxTurn, drawn: list[Box]) -> None:
    score = score_boxes(drawn, turn.boxes)
    if turn.kind == ABSENT:
        values["false_alarms"].append(float(bool(drawn)))
    elif turn.boxes:
        names = [turn.kind, *([turn.size] if turn.size else [])]
        for name in names:
            values[f"iou_{name}"].append(score.best_iou or 0.0)
            values[f"acc50_{name}"].append(float(score.acc50 or 0))
        if turn.kind == ALL:
            values["paired_iou_box_all"].append(score.paired_iou or 0.0)


def score_llava_576(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    train: FeatureRows,
    held_back: FeatureRows,
    blank: Tensor,
) -> dict[str, float]:
    """All scores of the card but those of the tower; those of text alone and of other images beside them.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        train: gives the answers that the text alone suggests.
        held_back: never trained on.
        blank: features of a mean grey image, (p, d).
    """
    modes = modes_of(blank)
    asked = [turn for turns in only(train.data, boxes=False).turns for turn in turns[1:]]
    questions = FeatureRows.like(held_back, only(held_back.data, boxes=False), tokenizer)
    scores = score_answers(
        model, questions, text_only=majority_answers(asked), modes=modes, logits_of=feature_logits, shown="features"
    )
    n = len(held_back)
    # strides, so that every world is among them
    described, located = (list(range(0, n, max(1, n // k)))[:k] for k in (CAPTION_CASES, BOX_CASES))
    captions = write_answers(
        model,
        tokenizer,
        held_back,
        held_back.features[described],
        [CAPTION_PROMPTS[0]] * len(described),
        max_new_tokens=CAPTION_TOKENS,
    )
    cases = [held_back.data.cases[i] for i in described]
    other = score_captions(captions, [*cases[1:], *cases[:1]])
    scores |= score_captions(captions, cases) | {f"{name}_shuffled": value for name, value in other.items()}
    return scores | score_located(model, tokenizer, held_back, located, modes)
