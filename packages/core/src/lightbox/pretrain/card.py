"""The card of a tiny foundation model: recipe, what it saw and must not see, scores, size, file digests."""

import hashlib
import json
from pathlib import Path

from lightbox.backbones.weights import CARD, digest_of_file
from lightbox.phantom import VERSION
from lightbox.phantom.splits import load_splits

TOLERANCE = 0.05
"""A rebuilt model's scores differ from the card's by at most this: another machine has other bits."""
MUST_NOT_SEE = "rationales as targets, validation and test seeds, held-out triples, attribute labels"


def write_card(folder: Path, name: str, facts: dict) -> dict:
    """Write `card.json` beside the weights.

    Args:
        folder: holds the model's files.
        name: name of the tiny model.
        facts: what a build function returned.

    Returns:
        The card.
    """
    digests = {p.name: digest_of_file(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != CARD}
    splits = load_splits()
    data = {
        "generator": VERSION,
        "seed_ranges": {k: v for k, v in splits["seed_ranges"].items() if k.startswith("pretrain")},
        "digest": hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest(),
        "held_out": {k: len(v) for k, v in splits["triples"].items() if k != "known"},
    }
    card = {
        "name": name,
        **facts,
        "data": data,
        "must_not_see": facts.get("must_not_see", MUST_NOT_SEE),
        "tolerance": TOLERANCE,
        "bytes": sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
        "sha256": digests,
        "licence": "Apache-2.0",
        "use": "Research and teaching on synthetic images only. Not for clinical use.",
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
    return card


def compare_scores(card: dict, rebuilt: dict) -> dict[str, tuple[float, float]]:
    """Scores of a rebuilt model that differ from the card's by more than its tolerance: name -> (card, rebuilt)."""
    old, new = card["scores"], rebuilt["scores"]
    return {k: (old[k], new[k]) for k in old if abs(old[k] - new[k]) > card["tolerance"]}
