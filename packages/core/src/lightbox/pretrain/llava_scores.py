"""What the tiny `llava` has learned: answers by question kind, with the image and without it, and facts of captions."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, SHAPE_WORDS, SIZES
from lightbox.pretrain.llava_rows import CAPTION_PROMPTS, CAPTION_TURN, ChatRows, answer_logits, majority_answers
from lightbox.pretrain.tower import normalise
from lightbox.records import Case

BATCH = 60
MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda pixels: pixels,
    "_blank": torch.zeros_like,
    # a real image: blank ones are unlike anything that was trained on
    "_shuffled": lambda pixels: pixels.roll(1, dims=0),
}
"""What is shown, by the suffix of its scores: the image, mean grey, or the image of another case."""
CAPTION_SCORES = (
    *("place_precision", "place_recall", "finding_precision", "finding_recall"),
    *("shape", "density", "size", "absent", "heart"),
)
_WHERE = re.compile(r"(?:right|left) (?:upper zone|middle zone|lower zone|hilum|costophrenic angle)")
_LOOK = re.compile(
    rf"(?P<size>{'|'.join(SIZES)}) (?P<density>{'|'.join(DENSITY_WORDS.values())}) "
    rf"(?P<shape>{'|'.join(SHAPE_WORDS.values())})"
)
_NAMES = "|".join(CLASS_NAMES)
_CLASS = re.compile(rf"\b(?:{_NAMES})\b")
_ABSENT = re.compile(rf"\bno ({_NAMES})\b|\b({_NAMES}) is absent")
_IS_LARGE = re.compile(r"heart is enlarged|there is cardiomegaly|silhouette is enlarged")


@dataclass(frozen=True)
class Said:
    """What a report says: what lies where, the parts of its look where stated, what is absent, the heart's size."""

    names: dict[str, str]
    looks: dict[str, dict[str, str]]
    absent: frozenset[str]
    is_heart_large: bool


def read_report(text: str) -> Said:
    """Read the phantom's report sentences, in any of their wordings; what is no such sentence says nothing.

    A finding without a class name is called by density and shape, as the phantom does.

    Example:
        >>> read_report("the left hilum shows a nodule , a small dense disc . no mass is seen .").names
        {'left hilum': 'nodule'}
    """
    names: dict[str, str] = {}
    looks: dict[str, dict[str, str]] = {}
    absent = set()
    for sentence in text.lower().split("."):
        where, look, named = _WHERE.search(sentence), _LOOK.search(sentence), _CLASS.search(sentence)
        if where is not None and (look is not None or named is not None):
            names[where[0]] = named[0] if named else f"{look['density']} {look['shape']}"
            looks[where[0]] = look.groupdict() if look else {}
        elif where is None and (match := _ABSENT.search(sentence)):
            absent.add(match[1] or match[2])
    return Said(names, looks, frozenset(absent), _IS_LARGE.search(text) is not None)


@torch.inference_mode()
def score_answers(
    model: LlavaForConditionalGeneration,
    rows: ChatRows,
    *,
    text_only: dict[str, str],
    modes: Mapping[str, Callable[[Tensor], Tensor]] = MODES,
    logits_of: Callable[..., tuple[Tensor, Tensor]] = answer_logits,
    shown: str = "pixel_values",
) -> dict[str, float]:
    """Share of answers right to the last token, by question kind, under each of `modes` and for the text alone.

    An answer is right where greedy decoding would give it: every token has the highest logit after those before it.

    Args:
        model: in evaluation mode.
        rows: questions never trained on.
        text_only: answer of each prompt that is guessed without image; see `majority_answers`.
        modes: what is shown, by the suffix of its scores: changes the field `shown` of a batch.
        logits_of: see `llava_rows.answer_logits`.
        shown: "pixel_values", or the field of a batch that has features in their place.
    """
    hits: defaultdict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(rows), BATCH):
        indices = list(range(start, min(start + BATCH, len(rows))))
        batch = rows.collate(indices)
        for suffix, change in modes.items():
            logits, is_label = logits_of(model, batch | {shown: change(batch[shown])})
            is_wrong = torch.zeros_like(is_label)
            is_wrong[is_label] = logits.argmax(dim=-1) != batch["labels"][is_label]
            for row, i in enumerate(indices):
                for number, turn in enumerate(rows.data.turns[i][1:], CAPTION_TURN + 1):
                    is_right = not is_wrong[row][batch["turns"][row] == number].any()
                    hits[turn.kind + suffix].append(bool(is_right))
    for turn in (turn for turns in rows.data.turns for turn in turns[1:]):
        hits[turn.kind + "_text_only"].append(text_only.get(turn.prompt) == turn.answer)
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(hits.items())}


@torch.inference_mode()
def write_captions(model: Any, tokenizer: PreTrainedTokenizerFast, rows: ChatRows, indices: Sequence[int]) -> list[str]:
    """Greedy captions of some images, by a LLaVA in evaluation mode."""
    prompt = [*tokenizer(CAPTION_PROMPTS[0], add_special_tokens=False)["input_ids"], rows.assistant]
    texts = []
    for start in range(0, len(indices), BATCH):
        pixels = normalise(rows.data.pixels(indices[start : start + BATCH]))
        ids = torch.tensor([[*rows.prefix, *prompt]]).expand(len(pixels), -1)
        is_token = torch.ones_like(ids)
        out = model.generate(
            input_ids=ids, attention_mask=is_token, pixel_values=pixels, max_new_tokens=120, do_sample=False
        )
        texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def score_captions(captions: Iterable[str], cases: Iterable[Case]) -> dict[str, float]:
    """Facts of captions against the truth.

    `place` counts that something lies there, `finding` also what; `shape`, `density` and `size` are shares among
    stated looks at right places; `absent` is the share of stated absences that are true. A share of nothing is 0.
    """
    counts = {name: [0, 0] for name in CAPTION_SCORES}

    def count(name: str, hits: int, of: int) -> None:
        counts[name][0] += hits
        counts[name][1] += of

    for text, case in zip(captions, cases, strict=True):
        said = read_report(text)
        truth = {f.attributes["location"]: f for f in case.findings}
        right = [where for where in said.names if where in truth]
        named = sum(said.names[where] == truth[where].name for where in right)
        for what, hits in (("place", len(right)), ("finding", named)):
            count(f"{what}_precision", hits, len(said.names))
            count(f"{what}_recall", hits, len(truth))
        for where in right:
            for part, value in said.looks[where].items():
                count(part, value == truth[where].attributes[part], 1)
        names = {f.name for f in case.findings}
        count("absent", len(said.absent - names), len(said.absent))
        count("heart", said.is_heart_large == ("cardiomegaly" in case.report.findings), 1)
    return {f"caption_{name}": round(hits / max(1, of), 4) for name, (hits, of) in counts.items()}


def score_llava(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, train: ChatRows, held_back: ChatRows
) -> dict[str, float]:
    """All scores of the card; captions also for the image of another case (`_shuffled`)."""
    asked = [turn for turns in train.data.turns for turn in turns[1:]]
    scores = score_answers(model, held_back, text_only=majority_answers(asked))
    # a stride, so that every world is among the 600
    shown = list(range(0, len(held_back), max(1, len(held_back) // 600)))
    captions, cases = write_captions(model, tokenizer, held_back, shown), [held_back.data.cases[i] for i in shown]
    other = score_captions(captions, [*cases[1:], *cases[:1]])
    return scores | score_captions(captions, cases) | {f"{name}_shuffled": value for name, value in other.items()}
