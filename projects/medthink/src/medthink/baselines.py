"""What can be had without looking: majority answer and question-only look-up, as arms without training. No torch."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from lightbox.files import write_json
from medthink.config import Config
from medthink.items import Item, Split, load_splits
from medthink.scores import METRICS, ScoreRow, write_scores


def guesses(train: Sequence[Item], items: Sequence[Item], method: str) -> list[str]:
    """Answer each item from training answers only.

    Args:
        train: where answers are counted.
        items: what is asked.
        method: "majority" takes the most frequent answer of the question's kind; "question_only" that of the same
            question text, else the majority. Ties go to the answer met first; a kind never met takes the most
            frequent of all.
    """
    by_kind, by_text, overall = defaultdict(Counter), defaultdict(Counter), Counter()
    for item in train:
        answer = item.answer.lower()
        overall[answer] += 1
        by_kind[item.kind][answer] += 1
        by_text[item.question.lower()][answer] += 1
    found = []
    for item in items:
        counts = by_text.get(item.question.lower()) if method == "question_only" else None
        counts = counts or by_kind.get(item.kind) or overall
        found.append(counts.most_common(1)[0][0])
    return found


def score_guesses(train: Sequence[Item], items: Sequence[Item], method: str) -> list[ScoreRow]:
    """Rows of the score table for a baseline, condition "image" (it never looks, so there is one condition)."""
    rows = []
    for item, guess in zip(items, guesses(train, items, method), strict=True):
        row: ScoreRow = {"item": item.id, "condition": "image", "kind": item.kind} | dict.fromkeys(METRICS)
        rows.append(row | {"correct": float(guess == item.answer.lower()), "parsed": 1.0})
    return rows


def accuracy(train: Split, scored: Split, method: str) -> float:
    """Mean of `correct` of a baseline, in [0, 1]."""
    rows = score_guesses(train.items, scored.items, method)
    return sum(row["correct"] for row in rows) / len(rows)


def run(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished job in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg, with_images=False)
    write_scores(folder, score_guesses(train.items, scored.items, cfg.objective.method))
    write_json(folder / "history.json", {})
    write_json(folder / "examples.json", [])
    note = f"{cfg.objective.method}: {len(train.items)} training answers counted, no weights"
    write_json(folder / "card.json", {"parameters": 0, "device": "cpu", "dtype": "", "versions": {}, "notes": [note]})
