"""Train one arm: questions -> weighted pairs -> learner on the start's weights -> scores. What every entry calls."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.paper.finding_maps import finding_maps
from lightbox.paper.pair_learner import CHOSEN, PairBatch, PairLearner, open_pairs, pair_facts, sides_of
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.pretrained import Pretrained, find_pretrained
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import UNPRUNED
from lightbox.paper.samples import Split
from lightbox.runs import folders
from lightbox.train import processes
from mmedpo import evaluate, relevance
from mmedpo.config import LOCALISER, MAPPED, START, Config
from mmedpo.curate import Curated, curate
from mmedpo.data import Asked, load_biased, load_splits, texts_of
from mmedpo.objective import LOSSES, answer_loss, pair_loss
from mmedpo.scores import ScoreRow, pair_rows


def run(
    cfg: Config,
    base: Pretrained,
    folder: Path,
    *,
    cache: Path,
    needs: Mapping[str, Path],
    keeps_model: bool,
    memory_advice: Callable[[int], str] | None = None,
) -> None:
    """Run the arm that `cfg` describes and leave scores, history, examples and card in `folder`.

    The arm `start` leaves its weights too, whoever asks: the other arms begin from them.

    Args:
        cfg: everything.
        base: what `model.backbone` names.
        folder: of this run; an unfinished one is continued.
        cache: not used; features of the model's own tower are kept in memory.
        needs: folders of earlier arms by name: that of `start`, unless `objective.from_start` is false.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`.
        memory_advice: for the message where memory runs out.

    Raises:
        RequestError: no start to begin from, and what data, pairs, loading and training refuse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg)
    is_trained, is_start = cfg.objective.is_trained, cfg.objective.method == START
    if cfg.objective.from_start and (bool(needs) if is_start else is_trained):  # the start itself needs nothing
        base = started(needs)
    learner = open_arm(with_own_steps(cfg), base)
    learner.is_pruned = cfg.pruning.method != UNPRUNED
    facts: dict[str, Any] = {}
    rows: list[ScoreRow] = []
    with pruned(learner.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original"):
        if is_trained:
            made = biased_answers(cfg) if is_start else curated(cfg, train)
            pairs = [pair.record for pair in made.pairs]
            scores = relevance.scored(np.array([p.relevance for p in pairs]), cfg.data.scorer, seed=cfg.run.seed)
            weights = relevance.weights_of(scores, [p.kind for p in pairs], cfg.objective, seed=cfg.run.seed)
            learner.weights = torch.from_numpy(weights).float()
            learner.fit(made.pairs, made.split, folder, memory_advice=memory_advice)
            if not is_start:
                facts = pair_facts(learner, made.pairs)
                rows = pair_rows(made.pairs, scores)
        if not processes.is_main():
            return
        if not is_trained:
            learner.describe(folder)
        evaluate.evaluate(cfg, learner, scored, folder=folder, more_rows=rows)
    if keeps_model or (is_start and is_trained):
        learner.save(folder / folders.MODEL, {})
    folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored) | facts)
    folders.drop_checkpoints(folder)


def open_arm(cfg: Config, base: Pretrained) -> PairLearner:
    """The model with the arm's loss, which reads of a pair what the loss does."""
    own = cfg.objective
    sides = sides_of(LOSSES.get(own.method, own.method)) if own.is_preference else (CHOSEN,)
    return open_pairs(cfg, base, loss=partial(batch_loss, cfg), texts=texts_of, sides=sides)


def started(needs: Mapping[str, Path]) -> Pretrained:
    """The weights that the arm `start` left.

    Raises:
        RequestError: where its folder is not named, or holds no weights.
    """
    folder = needs.get(START)
    if folder is None or not (folder / folders.MODEL).is_dir():
        raise RequestError(
            f"Arm 'start' is needed and its folder is '{folder or 'not given'}'",
            "The other arms begin from the weights that it leaves",
            "Run experiment=start first and name its folder as needs=[FOLDER], or set objective.from_start=false",
        )
    return find_pretrained(str(folder / folders.MODEL))


def curated(cfg: Config, split: Split[Asked]) -> Curated:
    """The arm's pairs; the localiser is asked only where it says what is noised."""
    is_mapped = cfg.data.mask in MAPPED and cfg.data.pairs != "text"
    return curate(cfg, split, finding_maps(split, LOCALISER) if is_mapped else None)


def biased_answers(cfg: Config) -> Curated:
    """What the start learns: answers to questions whose text suggests most of them, as pairs without another side."""
    split = load_biased(cfg)
    records = [Pair(own.id, own.text, own.answer, "", kind="none") for own in (s.record for s in split.samples)]
    return Curated([replace(s, record=own) for s, own in zip(split.samples, records, strict=True)], split)


def with_own_steps(cfg: Config) -> Config:
    """The configuration with steps, rate and tower of the start, where it is the start that is trained."""
    if cfg.objective.method != START:
        return cfg
    model = replace(cfg.model, freezes_tower=cfg.model.start_freezes_tower)
    return replace(cfg, model=model, optim=replace(cfg.optim, max_steps=cfg.optim.start_steps, lr=cfg.optim.start_lr))


def batch_loss(
    cfg: Config, logps: Tensor, tokens: Tensor, batch: PairBatch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The arm's loss of a batch."""
    own = cfg.objective
    if not own.is_preference:
        return answer_loss(logps, tokens)
    numbers = {"beta": own.beta, "smoothing": own.smoothing, "margin": own.margin}
    return pair_loss(logps, tokens, batch.reference, batch.weights, own.method, **numbers)
