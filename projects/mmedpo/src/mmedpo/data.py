"""Who is asked what: questions of the phantom with one report an image, or those of a real set. No torch.

The start learns from questions whose answer the text suggests (`data.start_rho`; those of a real set are what they
are), part of them under another image; pairs and test items of the phantom are balanced.
"""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightbox.paper import held_images, samples
from lightbox.paper.conditions import shuffled_rows
from lightbox.paper.phantom_rivals import NAMING, REPORT
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.samples import Sample, Split
from lightbox.records import Case, Finding, Question
from mmedpo.config import Config

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

REPORT_PROMPTS = ("describe the image .", "what does the image show ?", "write a report .")
"""As the tiny model was pretrained with them."""
LEFT_OUT = ("size_comparison",)
"""Kinds of questions at which the shipped model guesses, with the image as without."""
_FIELDS = [item.name for item in fields(Question)]


@dataclass(frozen=True, slots=True)
class Asked(Question):
    """A question, or the request for a report, with the findings of its image, largest first."""

    findings: tuple[Finding, ...] = ()


def load_splits(cfg: Config, *, with_images: bool = True) -> tuple[Split[Asked], Split[Asked]]:
    """Questions, and reports of the phantom: those that pairs are made of, and those to be scored.

    Real images are decoded to grey squares of `model.image_px`; without images their files are named and not read.

    Raises:
        RequestError: as `samples.load_splits`.
    """
    data = cfg.data
    if data.is_phantom:
        return samples.load_splits(cfg, pick, what="question", with_images=with_images)
    left_out = frozenset(held_images.released_pairs(Path(data.leaves_out))) if data.leaves_out else frozenset()
    if data.parts:
        cases = samples.read_cases(data)
        cases = held_images.rotated(cases, parts=data.parts, seed=cfg.run.seed, held=data.eval_split)
        sizes = {held_images.TRAIN: data.n_train, data.eval_split: data.n_test}
        splits = [held_images.split_of(name, cases, pick_by_form, limit=n) for name, n in sizes.items()]
    else:
        splits = samples.load_splits(cfg, partial(pick, left_out=left_out), what="question")
    train, scored = (held_images.in_memory(own, cfg.model.image_px) if with_images else own for own in splits)
    return train, scored


def load_biased(cfg: Config, *, with_images: bool = True) -> Split[Asked]:
    """What the start learns from: as many questions about training images, most with the answer the text suggests.

    Answers are those of the question's own case; `data.start_mismatch_pct` of the samples show another one's image, so
    that the image tells less than the text. Questions of a real set are those that pairs are made of.

    Raises:
        RequestError: as `samples.load_splits`.
    """
    if cfg.data.is_phantom:  # the other split is not used
        cfg = replace(cfg, data=replace(cfg.data, rho=cfg.data.start_rho, n_test=1))
    split = load_splits(cfg, with_images=with_images)[0]
    others = shuffled_rows(split, seed=cfg.run.seed)
    draws = np.random.default_rng([cfg.run.seed, 9]).random(len(others)) * 100
    shown = [
        replace(sample, image=other) if draw < cfg.data.start_mismatch_pct else sample
        for sample, other, draw in zip(split.samples, others, draws, strict=True)
    ]
    return replace(split, samples=shown)


def pick(case: Case, left_out: Collection[str] = ()) -> list[Asked]:
    """The questions of a case and, last, its report; none of a training case whose id is in `left_out`."""
    if case.split == held_images.TRAIN and case.id in left_out:
        return []
    asked = [_asked(question, case) for question in case.questions if question.kind not in LEFT_OUT]
    if case.report is None:
        return asked
    prompt = REPORT_PROMPTS[zlib.crc32(case.id.encode()) % len(REPORT_PROMPTS)]
    return [*asked, Asked(f"{case.id}-report", prompt, case.report.text, kind=REPORT, findings=case.findings)]


def pick_by_form(case: Case) -> list[Asked]:
    """The same with kinds closed and open: a few images have too few questions of the kinds of their set."""
    return [replace(asked, kind="closed" if asked.is_closed else "open") for asked in pick(case)]


def lesion(asked: Asked) -> np.ndarray | None:
    """All findings of the image as one mask, bool h w; None where there is none to be seen."""
    masks = [finding.mask for finding in asked.findings if finding.mask is not None and finding.mask.any()]
    return np.logical_or.reduce(masks) if masks else None


def texts_of(
    samples: Sequence[Sample[Asked]] | Sequence[Sample[Pair]], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[str, str]]:
    """Prompt and answer of each sample, as the tiny model was pretrained: choices are not listed."""
    records = [sample.record for sample in samples]
    return [(own.prompt, own.chosen) if isinstance(own, Pair) else (own.text, own.answer) for own in records]


def _asked(question: Question, case: Case) -> Asked:
    values = {name: getattr(question, name) for name in _FIELDS}
    # an open question of presence asks what is seen in a place; it is another kind than whether something is there
    if question.kind == "presence" and not question.is_closed:
        values["kind"] = NAMING
    return Asked(**values, findings=case.findings)
