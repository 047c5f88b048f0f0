"""Build the tiny foundation models, each with a card of recipe, what it saw and must not see, scores and digests.

`lightbox pretrain` is `build`.
"""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path

from lightbox.backbones.weights import CARD, digest_of_file
from lightbox.errors import RequestError
from lightbox.paths import default_out, shared_data
from lightbox.phantom.splits import load_splits
from lightbox.phantom.version import IMAGES_VERSION, VERSION
from lightbox.pretrain.florence2 import build_florence2
from lightbox.pretrain.llava import build_llava
from lightbox.pretrain.llava_576 import build_llava_576
from lightbox.pretrain.t5 import build_t5
from lightbox.pretrain.tower import build_tower

BUILDERS = {
    "t5": build_t5,
    "tower": build_tower,
    "llava": build_llava,
    "florence2": build_florence2,
    "llava-576": build_llava_576,
}
NAMES = tuple(BUILDERS)
TOLERANCE = 0.05
"""A rebuilt model's scores differ from the card's by at most this: another machine has other bits."""
MUST_NOT_SEE = "rationales as targets, validation and test seeds, held-out triples, attribute labels"
_log = logging.getLogger(__name__)


def build(name: str | None = None, out: Path | None = None, *, max_steps: int | None = None) -> list[dict]:
    """Build one tiny foundation model, or all of them.

    The result lies in `out/pretrain/<name>`; the shipped weights in `shared_data/weights` are compared with it and
    not touched.

    Args:
        name: one of `NAMES`; None builds all.
        out: output folder; None means ./lightbox-out. A killed build continues from its checkpoints there.
        max_steps: fewer steps, for tests.

    Returns:
        The cards, each with `differs`: scores outside the shipped card's tolerance, as name -> (shipped, rebuilt).

    Raises:
        RequestError: unknown name.
    """
    if name is not None and name not in NAMES:
        raise RequestError(
            f"'{name}' is asked for", "There is no such tiny foundation model", f"Choose one of {', '.join(NAMES)}"
        )
    out = (out or default_out()) / "pretrain"
    return [_build_one(one, out, max_steps=max_steps) for one in ([name] if name else NAMES)]


def _build_one(name: str, out: Path, *, max_steps: int | None) -> dict:
    folder, work = out / name, out / f"{name}-work"
    folder.mkdir(parents=True, exist_ok=True)
    started, cpu_started = time.monotonic(), time.process_time()
    facts = BUILDERS[name](folder, work, max_steps=max_steps)
    facts["build_minutes"] = round((time.monotonic() - started) / 60, 1)
    facts["cpu_minutes"] = round((time.process_time() - cpu_started) / 60, 1)  # less than the above on a busy machine
    card = write_card(folder, name, facts)
    shutil.rmtree(work)  # checkpoints of a finished build; its history and card stay in `folder`
    shipped = shared_data() / "weights" / name / CARD
    # a rebuild has other bits on another CPU, so scores are compared and not digests
    card["differs"] = compare_scores(json.loads(shipped.read_text()), card) if shipped.is_file() else {}
    _log.info("%s built in %.1f minutes: %s", name, facts["build_minutes"], card["scores"])
    return card


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
        "generator": IMAGES_VERSION if name == "tower" else VERSION,
        "seed_ranges": {k: v for k, v in splits["seed_ranges"].items() if k.startswith("pretrain")},
        "digest": hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest(),
        # counts only: the names stand in splits.json, whose digest is above
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
    """Scores of a rebuilt model that differ from the card's by more than its tolerance: name -> (card, rebuilt).

    A score that the rebuilt model lacks, as a small build meets too few questions of a kind, is not compared.
    """
    old, new = card["scores"], rebuilt["scores"]
    return {k: (old[k], new[k]) for k in old.keys() & new.keys() if abs(old[k] - new[k]) > card["tolerance"]}
