"""Train one arm, one of the four stages: splits -> model of the stage before -> scores. What every entry calls."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightbox.eval.mask_boundaries import score_boundaries
from lightbox.paper import mask_arms
from lightbox.paper.conditions import IMAGE
from lightbox.paper.drawn_regions import REGION, Asked
from lightbox.paper.pixel_answers import Routed
from lightbox.paper.pixel_rows import PixelBatch
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import UNPRUNED
from lightbox.paper.samples import Sample, Split
from lightbox.paper.trained_tensors import check_changes
from lightbox.runs import folders
from lightbox.train import processes
from lightbox.train.batches import BatchSource
from lightbox.train.card import describe
from lightbox.train.driver import fit
from medplib import evaluate, scores
from medplib.artifact import save_model
from medplib.assembly import mixtures
from medplib.config import ALIGN, BOXED, COST, GROUNDING, MIXTURE, SPECIALIST, VL, Config
from medplib.cost import measure_cost
from medplib.data import item_of, learnt_by, load_splits
from medplib.model import expert_of, open_arm, settings_of
from medplib.objective import STAGE_WEIGHTS, LossWeights, pixel_loss
from medplib.routing import routed_to, routing_facts, routing_of
from medplib.stages import STAGES, fingerprints, train_stage

LEAVE_WEIGHTS = (ALIGN, VL, GROUNDING)
"""Arms whose weights others begin from, so that they are kept whoever asks."""
CENTRED, COSTED, ROUTED = 32, 16, 128
"""Questions by which new routers are centred, over which the cost of a mixture is the worst, and whose way through the
experts is on the card."""


@dataclass(frozen=True)
class TaskBatch(PixelBatch):
    """A batch with the expert of each row's task, for the oracle router; none where routers choose."""

    experts: tuple[str, ...] = ()


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
        base: what `model.backbone` names: where stage 1 begins, or a saved model of any stage.
        folder: of this run; an unfinished one is continued.
        cache: not used; towers run in the step.
        needs: folders of earlier stages by name of their arm.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`.
        memory_advice: for the message where memory runs out.

    Raises:
        RequestError: no earlier stage to begin from, and what loading and training refuse.
        WorkError: a stage that changed a tensor that is not its own, or left one of its groups as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg)
    if cfg.objective.method in (SPECIALIST, BOXED):
        if processes.is_main():
            draw = mask_arms.drawer(cfg, train, folder, segmenter=(cfg.model.segmenter, cfg.model.segmenter_revision))
            folders.write_scores(folder, evaluate.drawn_rows(cfg, scored, draw, score_boundaries), scores.METRICS)
            folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored))
        return
    learnt = learnt_by(cfg, train)
    some = learnt[:: -(-len(learnt) // CENTRED)]  # of each task
    model = open_arm(cfg, base, needs, [item_of(sample, train, is_answered=True) for sample in some])
    is_trained = cfg.objective.is_trained and cfg.objective.method != COST
    with pruned(model.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original"):
        if is_trained:
            learn(cfg, model, learnt, train, folder, memory_advice=memory_advice)
        if not processes.is_main():
            return
        if not is_trained:
            facts = describe(model, model.backbone.device, cfg.run, notes=["scored as loaded or put together"])
            folders.write_card(folder, facts | {"wall_s": 0.0})
            folders.write_history(folder, {})
        score_arm(cfg, model, scored, folder)
    if is_trained and (keeps_model or cfg.objective.method in LEAVE_WEIGHTS):
        save_model(folder / folders.MODEL, model, cfg.adapter)
    folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored))
    folders.drop_checkpoints(folder)


def score_arm(cfg: Config, model: PixelVLM, scored: Split[Asked], folder: Path) -> None:
    """Leave the scores of a model in its folder, and on its card who went through which expert."""
    if cfg.objective.method == COST:
        items = [item_of(sample, scored) for sample in scored.samples if sample.record.task != REGION]
        row = scores.blank("all", IMAGE, COST) | measure_cost(model, items[:COSTED], settings_of(cfg))
        folders.write_scores(folder, [row], scores.METRICS)
        return
    evaluate.evaluate(cfg, model, scored, folder=folder, routed=routed_by(cfg, model), outlines=score_boundaries)
    if any(True for _ in mixtures(model.backbone.core)) and not is_oracle(cfg):
        some = scored.samples[:: -(-len(scored.samples) // ROUTED)]
        items, tasks = [item_of(sample, scored, is_answered=True) for sample in some], [s.record.task for s in some]
        settings = {"batch_size": cfg.optim.batch_size, "by_type": cfg.pruning.method == UNPRUNED}
        folders.add_to_card(folder, {"routing": routing_facts(model, items, tasks, **settings)})


def learn(
    cfg: Config,
    model: PixelVLM,
    samples: Sequence[Sample[Asked]],
    split: Split[Asked],
    folder: Path,
    *,
    memory_advice: Callable[[int], str] | None = None,
) -> None:
    """Train the tensors of the arm's stage, and hold that these and no others have changed."""
    own = cfg.objective
    has_routers = own.networks in ("two", "copied") and own.router == "learned"
    but_not = ("router",) if own.method == MIXTURE and not has_routers else ()
    if cfg.adapter.kind != "none" and "norms" in STAGES[own.method]:
        but_not += ("norms",)  # of the frozen base, and in no adapter
    groups = train_stage(model, own.method, model.backbone.family, but_not=but_not)
    before = fingerprints(model)

    def collate(places: list[int]) -> TaskBatch:
        picked = [samples[place] for place in places]
        batch = model.prepare([item_of(sample, split, is_answered=True) for sample in picked])
        experts = tuple(expert_of(sample.record.task) for sample in picked) if is_oracle(cfg) else ()
        return TaskBatch(**vars(batch), experts=experts)

    def step(trained: nn.Module, batch: TaskBatch) -> tuple[Tensor, int, dict[str, Tensor]]:
        if batch.experts:  # until the next batch: the backward pass may compute layers again
            routing_of(model.vlm).forced = batch.experts
        return pixel_step(trained, batch, STAGE_WEIGHTS[own.method])

    ids = [sample.id for sample in samples]
    source = BatchSource(len(samples), collate, batch_size=cfg.optim.batch_size, seed=cfg.run.seed, ids=ids)
    facts = {"stage": own.method, "learns": {group: len(names) for group, names in groups.items()}}
    with routed_to(model.vlm, VL) if is_oracle(cfg) else nullcontext():  # what it was comes back at the end
        settings: Any = {"optim": own_optim(cfg), "run": cfg.run, "train": cfg.train}
        fit(model, step, source, **settings, out=folder, facts=facts, memory_advice=memory_advice)
    check_changes(before, fingerprints(model), groups)


def is_oracle(cfg: Config) -> bool:
    """True where the task chooses the expert."""
    return cfg.objective.method == MIXTURE and cfg.objective.router == "oracle"


def routed_by(cfg: Config, model: PixelVLM) -> Routed:
    """The context in which questions of a task are answered."""
    return lambda task: routed_to(model.vlm, expert_of(task)) if is_oracle(cfg) else nullcontext()


def pixel_step(model: nn.Module, batch: PixelBatch, weights: LossWeights) -> tuple[Tensor, int, dict[str, Tensor]]:
    """What a step does with a batch; `model` is a `PixelVLM`; see `objective.pixel_loss`."""
    output = model(batch)
    return pixel_loss(output.logits, output.targets, output.mask_logits, batch.masks, items=len(batch), weights=weights)


def own_optim(cfg: Config) -> Any:
    """The settings of the optimiser, with steps and rate of stage 1 where it is that one."""
    if cfg.objective.method != ALIGN:
        return cfg.optim
    return replace(cfg.optim, max_steps=cfg.optim.align_steps, lr=cfg.optim.align_lr)
