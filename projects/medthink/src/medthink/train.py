"""Train one arm: splits -> training questions -> learner -> scores. What every entry calls.

The learner is the paper's T5 with fusion, or any vision-language model in its place. What is asked and what is written,
in which order, is the same for both.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import VlmBatch
from lightbox.files import write_json
from lightbox.losses.language import IGNORED
from lightbox.paper import learner as learners
from lightbox.paper.generated import TRAIN, add_generated
from lightbox.paper.learner import Learner
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruned import check_family, pruned
from lightbox.paper.samples import Sample, Split
from lightbox.records import Question
from lightbox.runs import folders
from lightbox.train import processes
from medthink import evaluate, rationales, stages
from medthink.config import N_FOLDS, Config
from medthink.data import load_splits, make_texts, weighed_answer
from medthink.model import open_fused
from medthink.objective import answer_weights, target_loss

Advice = Callable[[int], str] | None


def run(
    cfg: Config,
    base: Pretrained,
    folder: Path,
    *,
    cache: Path,
    needs: Mapping[str, Path],
    keeps_model: bool,
    memory_advice: Advice = None,
) -> None:
    """Run the arm that `cfg` describes and leave scores, history, examples and card in `folder`.

    Where several processes were launched, all train and the first one scores and writes.

    Args:
        cfg: everything.
        base: what `model.backbone` names.
        folder: of this run; an unfinished one is continued.
        cache: folder of vision features, shared between runs.
        needs: folders of earlier arms by name.
        keeps_model: also write the trained model to `folder/model`, for `predict` and `eval`.
        memory_advice: for the message where memory runs out.

    Raises:
        RequestError: a family that cannot be pruned as `pruning` asks, and what data, loading and training refuse.
    """
    check_family(cfg.pruning, base, cfg.model.backbone)
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = load_splits(cfg)
    if cfg.is_folded and cfg.objective.is_trained:
        write_out_of_fold(cfg, base, train, folder, cache=cache, memory_advice=memory_advice)
        return
    learner = open_learner(cfg, base, [split for split in (train, scored) if split.samples], cache=cache)
    with pruned(learner.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original"):
        if cfg.objective.is_trained:
            questions = training_questions(cfg, train.samples, needs, learner.tokenizer)
            learner.fit(questions, train, folder, memory_advice=memory_advice)
        if not processes.is_main():
            return
        if not cfg.objective.is_trained:
            learner.describe(folder)
        written: dict[str, str] = {}
        if cfg.objective.is_trained and cfg.objective.method == "first_stage":
            # stage 2 may train on what stage 1 says about its own training items
            written = rationales_by(cfg, learner, train.samples, train)
            add_generated(folder, {TRAIN: written})
        rows = evaluate.written_rows(cfg, train, written, TRAIN)
        evaluate.evaluate(cfg, learner, scored, folder=folder, needs=needs, more_rows=rows)
    if keeps_model:
        learner.save(folder / folders.MODEL, cfg.purpose)
    folders.add_to_card(folder, evaluate.beside_score(cfg, train, scored))
    folders.drop_checkpoints(folder)


def open_learner(cfg: Config, base: Pretrained, splits: Sequence[Split[Question]], *, cache: Path) -> Learner:
    """The model that `model.backbone` names, ready to learn; `splits` are all that it will be shown."""
    return learners.open_learner(
        cfg,
        base,
        splits,
        texts=make_texts(cfg),
        cache=cache,
        purpose=cfg.purpose,
        loss=None if base.has_own_tower else partial(fused_loss, answer=weighed_answer(cfg)),
        open_fused=None if base.has_own_tower else open_fused,
    )


def fused_loss(backbone: Backbone, batch: VlmBatch, *, answer: str = "") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One forward pass of the T5 with fusion: summed loss, supervised tokens, diagnostics.

    `answer` is a text as long as each row's answer, where that shall weigh as it does alone; "" weighs all alike.
    """
    logits, labels, places = backbone.supervised_logits(batch)  # pads, a third of all positions, never reach the head
    if not answer:
        return target_loss(logits[None], labels[None])
    n_answer = len(backbone.tokenizer(answer, add_special_tokens=False)["input_ids"])
    weights = answer_weights(places, n_answer)[places != IGNORED]
    return target_loss(logits[None], labels[None], weights[None])


def training_questions(
    cfg: Config,
    questions: Sequence[Sample[Question]],
    needs: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Sample[Question]]:
    """Training questions with the rationales of the arm: generated by stage 1, masked, altered, or as they are."""
    if cfg.objective.method == "second_stage":
        return stages.stage2_questions(questions, cfg.objective.stage2_rationales, needs)
    return rationales.altered(
        rationales.with_answer_hidden(questions, hides_answer=cfg.objective.hides_answer),
        cfg.data.rationale,
        seed=cfg.run.seed,
        corruption_pct=cfg.data.corruption_pct,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )


def rationales_by(
    cfg: Config, learner: Learner, questions: Sequence[Sample[Question]], split: Split[Question]
) -> dict[str, str]:
    """The rationale that stage 1 writes for each training question, with its own image, by name."""
    rows = [question.image for question in questions]
    texts = learner.write(questions, split, rows, max_new_tokens=cfg.new_tokens)
    return {question.id: text for question, text in zip(questions, texts, strict=True)}


def write_out_of_fold(
    cfg: Config, base: Pretrained, split: Split[Question], folder: Path, *, cache: Path, memory_advice: Advice
) -> None:
    """Stage 1 out of fold: five models, each trained without one fold of cases and writing for that fold.

    Continues from the checkpoints in `folder/fold-<k>`. Every fold's model takes as many steps as any other arm.
    """
    fold_of = stages.folds_of(split.samples, seed=cfg.run.seed)
    written: dict[str, str] = {}
    history: dict[str, Any] = {}
    for fold in range(N_FOLDS):
        learnt, left_out = (
            [sample for sample, own in zip(split.samples, fold_of, strict=True) if (own == fold) == is_out]
            for is_out in (False, True)
        )
        learner = open_learner(cfg, base, (split,), cache=cache)
        with pruned(learner.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original"):
            history = learner.fit(learnt, split, folder / f"fold-{fold}", memory_advice=memory_advice)
            written |= rationales_by(cfg, learner, left_out, split)
    if not processes.is_main():
        return
    add_generated(folder, {TRAIN: written})
    write_json(folder / "folds.json", dict(zip(split.ids, fold_of, strict=True)))
    folders.write_history(folder, history)
    (folder / f"fold-{N_FOLDS - 1}" / folders.CARD).replace(folder / folders.CARD)
    evaluate.score_out_of_fold(cfg, split, written, folder)
    folders.drop_checkpoints(folder, parts="fold-*")
