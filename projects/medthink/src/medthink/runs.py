"""One arm from configuration to a finished folder: baseline, folds, or train and evaluate. What every entry calls."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightbox.files import write_json
from lightbox.train import processes
from medthink import baselines, evaluate, folds, train
from medthink.config import BASELINES, PHANTOM, Config
from medthink.items import Split, leaks

CACHE = "cache"
MODEL = "model"


def run(cfg: Config, folder: Path, *, out: Path, needs: Mapping[str, Path], keeps_model: bool) -> None:
    """Run the arm that `cfg` describes and leave scores, history, examples and card in `folder`.

    Where several processes were launched, all train and the first one scores and writes.

    Args:
        cfg: everything.
        folder: of this run; an unfinished one is continued.
        out: output folder; vision features are shared under its `cache/`.
        needs: folders of earlier arms by name.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`.
    """
    cache = out / CACHE
    if cfg.is_folded and cfg.objective.is_trained:
        folds.run(cfg, folder, cache=cache)
        if processes.is_main():
            drop_checkpoints(folder)
        return
    result = train.run(cfg, folder, needs=needs, cache=cache)
    if not processes.is_main():
        return
    evaluate.evaluate(cfg, result.learner, result.scored, folder=folder, needs=needs)
    if keeps_model:
        result.learner.save(folder / MODEL)
    add_to_card(folder, sanity(cfg, result.train, result.scored))
    drop_checkpoints(folder)


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a scored run: nothing resumes from them, and many runs would hold gigabytes."""
    for place in (*folder.glob("checkpoints"), *folder.glob("fold-*")):
        shutil.rmtree(place)


def sanity(cfg: Config, train_split: Split, scored: Split) -> dict[str, object]:
    """What a score must be read beside: the baselines on the same items and, for real data, what the splits share."""
    found: dict[str, object] = {
        "baselines": {name: baselines.accuracy(train_split, scored, name) for name in BASELINES},
        "items": {"train": len(train_split.items), scored.name: len(scored.items)},
    }
    if cfg.data.source != PHANTOM:
        found["leaks"] = leaks(cfg)
    return found


def add_to_card(folder: Path, facts: Mapping[str, object]) -> None:
    """Add facts to `card.json`."""
    path = folder / "card.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | dict(facts))
