"""Score a model: greedy answers under the conditions image, blank and shuffled, per item, before any mean.

Blank is a mid-grey image; shuffled gives each item the image of another case. Both say how much of a score is the
image.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightbox.phantom.facts import parse
from medthink import examples, reader, scores, stages
from medthink.config import PHANTOM, Config
from medthink.generation import rationale_in
from medthink.items import Item, Split

BLANK, IMAGE, SHUFFLED = "blank", "image", "shuffled"
ANSWER_FIRST = ("none", "explanation", "second_stage", "reader")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """Items as asked under one condition.

    `images` is the place in the split of the image that each is shown, one past the last for the blank one; None for no
    image.
    """

    condition: str
    items: list[Item]
    images: list[int] | None
    max_new_tokens: int


class Writer(Protocol):
    """What writes one greedy text an item of a trial: a T5 with fusion, or a vision-language model."""

    def write(self, trial: Trial, split: Split) -> list[str]: ...


def evaluate(cfg: Config, writer: Writer, split: Split, *, folder: Path, needs: Mapping[str, Path]) -> pa.Table:
    """Generate and score every trial; write scores.parquet, generated.json, examples.json and the example PNGs.

    Args:
        cfg: strategy and lengths.
        writer: the model, trained or not.
        split: items with reference answers and rationales.
        folder: where the files go.
        needs: folders of the arms whose generated rationales are read.

    Returns:
        The table of `scores.write_scores`.
    """
    parse_facts = parse if cfg.data.source == PHANTOM else None
    method = cfg.objective.method
    folder.mkdir(parents=True, exist_ok=True)
    reference = {item.id: item for item in split.items}
    rows: list[scores.ScoreRow] = []
    generated: stages.Generated = {}
    answered: list[examples.Answered] = []
    for trial in trials(cfg, split, needs):
        texts = writer.write(trial, split)
        told = None if is_answer_only(cfg, trial) else [rationale_in(text, method) for text in texts]
        for place, (item, text) in enumerate(zip(trial.items, texts, strict=True)):
            rationale = None if told is None else told[place]
            answer = None if method == "first_stage" else text
            gold = reference[item.id]
            row = scores.score_item(gold, trial.condition, text=answer, rationale=rationale, parse_facts=parse_facts)
            rows.append(row)
            if trial.condition in (IMAGE, reader.REFERENCE):
                said = "" if answer is None else scores.stated_answer(gold, answer)
                read = item.rationale if method in ("second_stage", "reader") else (rationale or "")
                answered.append(examples.Answered(gold, said, read, is_correct=row["correct"] == 1.0))
        if told is not None:
            generated[trial.condition] = {i.id: r for i, r in zip(trial.items, told, strict=True) if r is not None}
        _log.info("%s: %d items under condition %s", cfg.arm, len(texts), trial.condition)
    if method == "reasoning" and "none" in needs:
        scores.add_losses(rows, pq.read_table(needs["none"] / scores.SCORES))
    if generated:
        stages.add_generated(folder, generated)
    examples.write_examples(folder, answered, split, is_synthetic=cfg.data.source == PHANTOM)
    return scores.write_scores(folder, rows)


def trials(cfg: Config, split: Split, needs: Mapping[str, Path]) -> list[Trial]:
    """What is asked: the reader's texts, or each image condition.

    Stage 2 reads what stage 1 wrote under the same condition, since the image enters both stages. Strategies that
    answer first generate the answer only where the image is blank or shuffled: later tokens cannot change it.
    """
    if cfg.objective.method == "reader":
        texts = reader.reader_conditions(split.items, needs, masks_answer_words=cfg.objective.masks_answer_words)
        return [Trial(name, items, None, cfg.new_tokens) for name, items in texts.items()]
    shown = {
        IMAGE: [item.image for item in split.items],
        BLANK: [len(split.case_ids)] * len(split.items),
        SHUFFLED: shuffled_images(split, seed=cfg.run.seed),
    }
    found = []
    for condition, images in shown.items():
        items = split.items
        if cfg.objective.method == "second_stage":
            items = stages.with_generated(items, stages.read_generated(needs, "stage1", condition))
        found.append(Trial(condition, items, images, _tokens(cfg, condition)))
    return found


def train_trial(cfg: Config, items: Sequence[Item]) -> Trial:
    """The trial in which stage 1 writes rationales for training items, with their own images."""
    return Trial(stages.TRAIN, list(items), [item.image for item in items], cfg.new_tokens)


def is_answer_only(cfg: Config, trial: Trial) -> bool:
    """True where a trial generates no rationale that could be judged."""
    return cfg.objective.method in ANSWER_FIRST and trial.condition != IMAGE


def shuffled_images(split: Split, *, seed: int) -> list[int]:
    """For each item the image of another case: cases in random order, each takes the next one's, none its own."""
    order = np.random.default_rng([seed, 4, 0]).permutation(len(split.case_ids)).tolist()
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [other[item.image] for item in split.items]


def _tokens(cfg: Config, condition: str) -> int:
    if condition != IMAGE and cfg.objective.method in ANSWER_FIRST:
        return cfg.eval.answer_tokens
    return cfg.new_tokens
