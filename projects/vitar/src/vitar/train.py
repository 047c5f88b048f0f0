"""Train one arm: questions -> traces under its feedback -> learner -> scores. What every entry calls."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lightbox.paper.pretrained import Pretrained
from lightbox.paper.starts import started
from lightbox.runs import folders
from lightbox.train import processes
from vitar import evaluate
from vitar.config import GRPO, Config
from vitar.data import load_splits, tasks_of, traces_of
from vitar.looking import Looks
from vitar.model import open_policy
from vitar.reinforce import reinforce


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
        needs: folder of the arm that training by rewards goes on from; without one it begins from `model.backbone`.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`; what imitates traces is
            written in any case, since training by rewards goes on from it.
        memory_advice: for the message where memory runs out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg)
    is_trained, is_rewarded = cfg.objective.is_trained, cfg.objective.method == GRPO
    policy = open_policy(cfg, started(needs, base) if is_trained and is_rewarded else base)
    with policy.pruned():
        if is_trained and is_rewarded:
            reinforce(cfg, policy, tasks_of(cfg, train, [sample.image for sample in train.samples]), folder)
        elif is_trained:
            policy.learner.fit(traces_of(cfg, train, policy.codec), train, folder, memory_advice=memory_advice)
        if not processes.is_main():
            return
        if not is_trained:
            policy.learner.describe(folder)
        evaluate.evaluate(cfg, policy, scored, folder=folder, looks=Looks(policy) if cfg.is_looked_at else None)
    if keeps_model or (is_trained and not is_rewarded):
        policy.learner.save(folder / folders.MODEL, cfg.purpose)
    folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored))
    folders.drop_checkpoints(folder)
