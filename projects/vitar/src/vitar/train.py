"""Train one arm: questions -> traces under its feedback -> learner -> scores. What every entry calls."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lightbox.paper.pretrained import Pretrained
from lightbox.runs import folders
from lightbox.train import processes
from vitar import evaluate
from vitar.config import Config
from vitar.data import load_splits, traces_of
from vitar.model import open_policy


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

    Args:
        cfg: everything.
        base: what `model.backbone` names.
        folder: of this run; an unfinished one is continued.
        cache: not used; features of the model's own tower are kept in memory.
        needs: not used; every arm learns from the shipped weights.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`.
        memory_advice: for the message where memory runs out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg)
    policy = open_policy(cfg, base)
    if cfg.objective.is_trained:
        policy.learner.fit(traces_of(cfg, train, policy.codec), train, folder, memory_advice=memory_advice)
    if not processes.is_main():
        return
    if not cfg.objective.is_trained:
        policy.learner.describe(folder)
    evaluate.evaluate(cfg, policy, scored, folder=folder)
    if keeps_model:
        policy.learner.save(folder / folders.MODEL, cfg.purpose)
    folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored))
    folders.drop_checkpoints(folder)
