"""Example cards: one item, what was asked, what is right, and what each arm said. Images are embedded."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_CARDS, MOST_ARMS = 6, 10
LARGEST_IMAGE = 1_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def cards(examples: Sequence[Mapping[str, Any]], *, folder: Path) -> list[dict[str, Any]]:
    """Group example rows by item, those first on which the arms disagree; at most six a paper.

    Args:
        examples: rows of the document; an image is a path relative to `folder`.
        folder: where the document lies.
    """
    items: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in examples:
        identity = (row.get("paper", ""), row.get("seed"), row["item"], row["question"], row.get("condition", ""))
        items.setdefault(identity, []).append(row)
    by_paper: dict[str, list[dict[str, Any]]] = {}
    for (paper, *_), rows in sorted(items.items(), key=lambda pair: -_disagreement(pair[1])):
        if len(by_paper.setdefault(paper, [])) < MOST_CARDS:
            by_paper[paper].append(_card(rows, folder))
    return [card for found in by_paper.values() for card in found]


def _disagreement(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many arms are in the minority, right or wrong."""
    right = sum(bool(row["correct"]) for row in rows)
    return min(right, len(rows) - right)


def _card(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    first = rows[0]
    gold = str(first["gold_answer"])
    return {
        "paper": first.get("paper", ""),
        "item": first["item"],
        "condition": first.get("condition", ""),
        "question": first["question"],
        "options": [{"text": str(option), "is_gold": str(option) == gold} for option in first.get("options") or []],
        "gold_answer": gold,
        "gold_rationale": first.get("gold_rationale") or "",
        "image": next((uri for row in rows if (uri := _embedded(row.get("image"), folder))), ""),
        "answers": [
            {
                "arm": row.get("arm", ""),
                "answer": str(row["answer"]),
                "rationale": row.get("rationale") or "",
                "is_right": bool(row["correct"]),
            }
            for row in rows[:MOST_ARMS]
        ],
        "more": max(0, len(rows) - MOST_ARMS),
    }


def _embedded(image: str | None, folder: Path) -> str:
    """A PNG file as a data address; "" where it is absent, large, or not a PNG."""
    path = folder / image if image else None
    if path is None or not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
        return ""
    content = path.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}" if content.startswith(PNG) else ""
