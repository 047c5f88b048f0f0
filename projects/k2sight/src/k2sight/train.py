"""Train one arm: splits -> prompts with definitions -> learner -> scores. What every entry calls."""

from collections.abc import Callable, Mapping
from pathlib import Path

from k2sight import evaluate
from k2sight.config import Config
from k2sight.data import load_splits
from k2sight.model import open_grounder
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruned import check_family, pruned
from lightbox.paper.views import with_views
from lightbox.runs import folders
from lightbox.train import processes


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
        needs: not used; no arm reads another.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`.
        memory_advice: for the message where memory runs out.

    Raises:
        RequestError: a family that cannot be pruned as `pruning` asks, and what data, loading and training refuse.
    """
    check_family(cfg.pruning, base, cfg.model.backbone)
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg)
    learnt = train
    if cfg.objective.is_trained:
        learnt = with_views(train, cfg.data.views, seed=cfg.run.seed, image_px=cfg.model.image_px)
    shown = (learnt, scored) if cfg.objective.is_trained else (scored,)
    grounder = open_grounder(cfg, base, shown, cache=cache)
    learner = grounder.learner
    with pruned(learner.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original"):
        if cfg.objective.is_trained:
            learner.fit(learnt.samples, learnt, folder, memory_advice=memory_advice)
        if not processes.is_main():
            return
        if not cfg.objective.is_trained:
            learner.describe(folder)
        evaluate.evaluate(cfg, grounder, scored, folder=folder)
    if keeps_model:
        learner.save(folder / folders.MODEL, cfg.purpose)
    folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored))
    folders.drop_checkpoints(folder)
