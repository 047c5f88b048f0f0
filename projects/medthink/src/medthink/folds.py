"""Out-of-fold stage 1: five models, each trained without one fold of cases and writing the rationales of that fold."""

from pathlib import Path

from lightbox.files import write_json
from lightbox.phantom.facts import parse
from lightbox.train import processes
from medthink import scores, stages, train
from medthink.config import N_FOLDS, PHANTOM, Config
from medthink.evaluate import train_trial
from medthink.examples import write_examples
from medthink.items import ids_of, load_splits

OUT_OF_FOLD = "out_of_fold"


def run(cfg: Config, folder: Path, *, cache: Path) -> None:
    """Train and write fold by fold, continuing from the checkpoints in `folder/fold-<k>`.

    Writes generated.json ("train": the rationale of each training item by the model that did not see its case),
    folds.json (item to fold), and the scores of those rationales under condition "out_of_fold". Every fold's model
    takes as many steps as any other arm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split, _ = load_splits(cfg)
    fold_of = stages.folds_of(split.items, seed=cfg.run.seed)
    written: dict[str, str] = {}
    for fold in range(N_FOLDS):
        kept = [item for item, own in zip(split.items, fold_of, strict=True) if own != fold]
        left_out = [item for item, own in zip(split.items, fold_of, strict=True) if own == fold]
        learner = train.open_learner(cfg, (split,), cache=cache)
        history = learner.fit(kept, split, folder / f"fold-{fold}")
        texts = learner.write(train_trial(cfg, left_out), split)
        written |= dict(zip(ids_of(left_out), texts, strict=True))
    if not processes.is_main():
        return
    stages.add_generated(folder, {stages.TRAIN: written})
    write_json(folder / "folds.json", dict(zip(ids_of(split.items), fold_of, strict=True)))
    write_json(folder / "history.json", history)
    (folder / f"fold-{N_FOLDS - 1}" / "card.json").replace(folder / "card.json")
    write_examples(folder, [], split, is_synthetic=cfg.data.source == PHANTOM)
    parse_facts = parse if cfg.data.source == PHANTOM else None
    rows = [
        scores.score_item(item, OUT_OF_FOLD, text=None, rationale=written[item.id], parse_facts=parse_facts)
        for item in split.items
    ]
    scores.write_scores(folder, rows)
