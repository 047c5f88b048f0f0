"""Who is asked what: questions of the phantom with one report an image, and what is found in each image. No torch.

The start learns from questions whose answer the text suggests (`data.start_rho`); pairs and test items are balanced.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from lightbox.paper import samples
from lightbox.paper.conditions import shuffled_rows
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.samples import Sample, Split
from lightbox.records import Case, Finding, Question
from mmedpo.config import Config

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

REPORT, NAMING = "report", "naming"
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
    """Balanced questions and reports: those that pairs are made of, and those to be scored.

    Raises:
        RequestError: as `samples.load_splits`.
    """
    return samples.load_splits(cfg, pick, what="question", with_images=with_images)


def load_biased(cfg: Config, *, with_images: bool = True) -> Split[Asked]:
    """What the start learns from: as many questions about training images, most with the answer the text suggests.

    Answers are those of the question's own case; `data.start_mismatch_pct` of the samples show another one's image, so
    that the image tells less than the text.

    Raises:
        RequestError: as `samples.load_splits`.
    """
    data = replace(cfg.data, rho=cfg.data.start_rho, n_test=1)  # the other split is not used
    split = samples.load_splits(replace(cfg, data=data), pick, what="question", with_images=with_images)[0]
    others = shuffled_rows(split, seed=cfg.run.seed)
    draws = np.random.default_rng([cfg.run.seed, 9]).random(len(others)) * 100
    shown = [
        replace(sample, image=other) if draw < cfg.data.start_mismatch_pct else sample
        for sample, other, draw in zip(split.samples, others, draws, strict=True)
    ]
    return replace(split, samples=shown)


def pick(case: Case) -> list[Asked]:
    """The questions of a case and, last, its report."""
    asked = [_asked(question, case) for question in case.questions if question.kind not in LEFT_OUT]
    if case.report is None:
        return asked
    prompt = REPORT_PROMPTS[zlib.crc32(case.id.encode()) % len(REPORT_PROMPTS)]
    return [*asked, Asked(f"{case.id}-report", prompt, case.report.text, kind=REPORT, findings=case.findings)]


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
    known = {name: getattr(question, name) for name in _FIELDS}
    # an open question of presence asks what is seen in a place; it is another kind than whether something is there
    if question.kind == "presence" and not question.is_closed:
        known["kind"] = NAMING
    return Asked(**known, findings=case.findings)
