"""A run read back from its folder, and its data set beside it, for the page. No torch.

A run keeps scores and texts, not images, so images, guesses of baselines and training questions come from the data set
itself, through `data.load_splits(cfg)` of the paper. Where that is not to be had any more, or is not what the run saw,
`RunItems.missing` says what and why, and the page does without.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from lightbox import phantom
from lightbox.claims import registry
from lightbox.errors import RequestError
from lightbox.eval.answers import score_answer
from lightbox.eval.conventions import Prediction
from lightbox.eval.predictions import read_predictions
from lightbox.paper import samples, schema
from lightbox.paper.samples import Split
from lightbox.records import Question
from lightbox.report.run_items import CORRECT, DICE, PARSED, RECALL, RunItems
from lightbox.runs import folders
from lightbox.runs.folders import Run

_SAME_MEAN = 1e-6


def read_items(folder: Path) -> RunItems:
    """Read a finished run of answers, and its data set where that is still there.

    Raises:
        RequestError: no finished run, no scores, or none of answers.
        WorkError: a damaged file of the run.
    """
    run = folders.finished_run(folder)
    values, kinds = _values(run, folders.read_scores(folder))
    items = RunItems(run, folders.read_card(folder), values, kinds)
    if not items.is_baseline:
        items.predictions = _predictions(items)
    items.cfg = _config(items)
    if items.cfg is not None:
        _read_data(items, items.cfg)
    return items


def _values(run: Run, scores: pa.Table | None) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, str]]:
    given = f"The run is '{run.folder}'"
    if scores is None:
        why = f"It holds no {folders.SCORES}, so there is nothing to show"
        raise RequestError(given, why, "Name the folder of a run that was scored")
    missing = [name for name in (*folders.KEY_COLUMNS, CORRECT) if name not in scores.column_names]
    if missing or scores[CORRECT].null_count == scores.num_rows:
        fault = f"have no column '{missing[0]}'" if missing else "say of no item whether its answer is right"
        do = "Compare its metrics with `lightbox compare`, or name a run that answers"
        raise RequestError(given, f"The page is about answers, and its scores {fault}", do)
    columns = {name: scores[name].to_pylist() for name in scores.column_names}
    values: dict[str, dict[str, dict[str, float]]] = {}
    for metric in (CORRECT, PARSED, RECALL, DICE):
        by_condition = values.setdefault(metric, {})
        for item, condition, value in zip(
            columns["item"], columns["condition"], columns.get(metric, [None] * scores.num_rows), strict=True
        ):
            if value is not None:
                by_condition.setdefault(condition, {})[item] = value
    return values, dict(zip(columns["item"], (kind or "" for kind in columns["kind"]), strict=True))


def _predictions(items: RunItems) -> dict[str, dict[str, Prediction]]:
    path = items.run.folder / folders.PREDICTIONS
    if not path.is_file():
        items.missing.append(
            f"What the model wrote, and the scores by other rules: the run holds no {folders.PREDICTIONS}, as runs of "
            f"older versions do not. {_again(items.run)} and write the page of the new run."
        )
        return {}
    by_condition: dict[str, dict[str, Prediction]] = {}
    for condition in items.conditions:
        try:
            read, problems, _ = read_predictions(path, condition)
        except RequestError as err:
            items.missing.append(f"What the model wrote under {condition}: {err.given} {err.why}")
            continue
        by_condition[condition] = {one.question.id: one for one in read}
        if problems:
            items.missing.append(f"{len(problems)} lines of {folders.PREDICTIONS}, the first: {problems[0]}.")
        _check_texts(items, condition, by_condition[condition])
    return by_condition


def _again(run: Run) -> str:
    """How texts are had after all: from the saved model, which a job of a claim does not keep."""
    if (run.folder / folders.MODEL).is_dir():
        command = f"lightbox evaluate {run.paper} model.backbone=RUN/{folders.MODEL}"
        return f"Score its model again, `{command}` with its settings,"
    return f"Train it again, `lightbox train {run.paper or 'PAPER'}` with its settings, since no model was kept,"


def _check_texts(items: RunItems, condition: str, predictions: Mapping[str, Prediction]) -> None:
    """Say where texts and scores are not of one run: a text scored by our rule is what the scores hold."""
    scores = items.correct[condition]
    differs = sum(
        item in predictions and score_answer(predictions[item].text, predictions[item].question).is_correct != value
        for item, value in scores.items()
    )
    if differs:
        items.missing.append(
            f"{differs} of {len(scores)} texts under {condition} are scored otherwise in {folders.SCORES}: "
            f"{folders.PREDICTIONS} is not of this run, or another rule scored it."
        )


def _config(items: RunItems) -> schema.PaperConfig | None:
    packages = registry.installed_packages()
    run = items.run
    if run.paper not in packages:
        items.missing.append(f"Images and the data set: the paper '{run.paper}' is not installed here.")
        return None
    try:
        return schema.from_plain(importlib.import_module(f"{packages[run.paper]}.config").Config, run.config)
    except (TypeError, KeyError, AttributeError, RequestError) as err:
        items.missing.append(f"Images and the data set: the settings of the run are not those of this version ({err}).")
        return None


def _read_data(items: RunItems, cfg: schema.PaperConfig) -> None:
    """Read the splits again; they stay away where they are not what the run saw."""
    package = registry.installed_packages()[items.run.paper]
    drawn_by = items.run.inputs.get("data")
    if cfg.data.is_phantom and drawn_by not in (None, phantom.generator_digest()):
        items.missing.append("Images: the phantom has changed since the run, and would draw others.")
        return
    try:
        train, scored = importlib.import_module(f"{package}.data").load_splits(cfg)
    except (RequestError, ModuleNotFoundError) as err:
        reason = f"{err.given} {err.why}" if isinstance(err, RequestError) else str(err)
        items.missing.append(
            f"Images and the data set, which cannot be read here: {reason} Write the page again where they can."
        )
        return
    if strange := _strangers(items, scored):
        n_items = len(items.correct[items.main])
        items.missing.append(
            f"Images and the data set: {strange} of {n_items} items are not in what is read today, or ask something "
            "else there. The data set has changed since the run."
        )
        return
    items.train, items.scored = train, scored
    _check_baselines(items)


def _strangers(items: RunItems, scored: Split[Question]) -> int:
    today = {sample.id: (sample.record.text, sample.record.answer) for sample in scored.samples}
    written = items.predictions.get(items.main, {})
    asked = {name: (one.question.text, one.question.answer) for name, one in written.items()}
    return sum(item not in today or asked.get(item, today[item]) != today[item] for item in items.correct[items.main])


def _check_baselines(items: RunItems) -> None:
    for name, mean in items.card.get("baselines", {}).items():
        guesses = items.guesses.get(name)
        if guesses and abs(np.mean([guess.is_right for guess in guesses.values()]) - mean) > _SAME_MEAN:
            items.missing.append(f"Per-item guesses of {name}: recomputed, they are not the {mean:.4f} of the card.")
            del items.guesses[name]


def leaks(items: RunItems) -> list[str] | None:
    """What the splits share, one sentence a pair; [] for a phantom, None where it is not known."""
    if items.is_phantom:
        return []
    if "leaks" in items.card:
        return [str(sentence) for sentence in items.card["leaks"]]
    return samples.leaks(items.cfg.data) if items.cfg is not None and items.scored is not None else None


def shared_with_training(items: RunItems, sentences: Sequence[str]) -> list[str]:
    """Those sentences of `leaks` that say that the scored split shares images or patients with training."""
    split = str(items.data_setting("eval_split"))
    return [
        sentence
        for sentence in sentences
        if f" {split} images" in sentence and " occur in train too" in sentence
        # "0 of 40 test images (...) and 0 of 9 known test patients occur in train too"
        if not (sentence.startswith("0 of ") and " and 0 of " in sentence)
    ]
