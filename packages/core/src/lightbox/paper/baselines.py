"""What can be had without looking, as arms without training: majority, question-only, location prior. No torch.

Every paper prints those that its records allow beside its scores; a model that does not beat them has not looked.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lightbox.paper import samples
from lightbox.paper.samples import Sample, Split
from lightbox.paper.schema import PaperConfig
from lightbox.records import Box, Finding, Question
from lightbox.runs import folders


def majority(train: Sequence[Sample[Question]], asked: Sequence[Sample[Question]]) -> list[str]:
    """The most frequent training answer of each question's kind, lower case; of all where the kind was never met.

    Ties go to the answer met first.
    """
    by_kind = _counts(train, lambda question: question.kind)
    overall = Counter(sample.record.answer.lower() for sample in train)
    return [_top(by_kind.get(sample.record.kind) or overall) for sample in asked]


def question_only(train: Sequence[Sample[Question]], asked: Sequence[Sample[Question]]) -> list[str]:
    """The most frequent training answer of the same question text, lower case; else the majority of its kind."""
    by_text = _counts(train, lambda question: question.text.lower())
    fallback = majority(train, asked)
    counts = [by_text.get(sample.record.text.lower()) for sample in asked]
    return [_top(count) if count else guess for count, guess in zip(counts, fallback, strict=True)]


def location_prior(train: Sequence[Sample[Finding]], asked: Sequence[Sample[Finding]]) -> list[Box]:
    """The box of medians over the training boxes of the same finding; of all where the finding was never met."""
    by_name: dict[str, list[Box]] = defaultdict(list)
    for sample in train:
        by_name[sample.record.name] += sample.record.boxes
    every = [box for boxes in by_name.values() for box in boxes]
    return [_median_box(by_name.get(sample.record.name) or every) for sample in asked]


BY_METHOD: Mapping[str, Callable[..., list[Any]]] = {
    "majority": majority,
    "question_only": question_only,
    "location_prior": location_prior,
}


def run(
    cfg: PaperConfig,
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[str],
    n_counted: int,
) -> None:
    """Leave the files of a finished run of a baseline in `folder`.

    Args:
        cfg: with the baseline as its method.
        folder: of the run, made where absent.
        rows: its scores, see `folders.write_scores`.
        metrics: likewise.
        n_counted: training samples that it counted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folders.write_scores(folder, rows, metrics)
    folders.write_history(folder, {})
    folders.write_examples(folder, [])
    note = f"{cfg.objective.method}: {n_counted} training samples counted, no weights"
    folders.write_card(folder, {"parameters": 0, "device": "cpu", "dtype": "", "versions": {}, "notes": [note]})


def beside_score(
    cfg: PaperConfig, train: Split[Any], scored: Split[Any], accuracies: Mapping[str, float]
) -> dict[str, object]:
    """What a score must be read beside, for the card: baselines on the same items and what real splits share.

    Args:
        cfg: of the run.
        train, scored: its splits.
        accuracies: score of each baseline that the paper's records allow, by name.
    """
    facts: dict[str, object] = {
        "baselines": dict(accuracies),
        "items": {"train": len(train.samples), scored.name: len(scored.samples)},
    }
    return facts if cfg.data.is_phantom else facts | {"leaks": samples.leaks(cfg.data)}


def _counts(train: Sequence[Sample[Question]], key: Callable[[Question], str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        counts[key(sample.record)][sample.record.answer.lower()] += 1
    return counts


def _top(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0]


def _median_box(boxes: Sequence[Box]) -> Box:
    return Box(*(median(side) for side in zip(*boxes, strict=True)))
