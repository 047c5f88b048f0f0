"""The page of one run: the score beside what needs no image, the data, rival scoring rules, items as cards. No torch.

`page` writes the page of claims; both share their style, their content policy, and a template that escapes every text
of a data set or a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Template

from lightbox.claims import registry
from lightbox.errors import RequestError
from lightbox.eval.conventions import Row, table
from lightbox.eval.item_intervals import Estimate
from lightbox.eval.questions import ANSWER_TYPES, answer_type, repetition, text_key
from lightbox.files import replace_text
from lightbox.paper.conditions import BLANK
from lightbox.readers import catalog
from lightbox.readers.all_sets import LATER_SETS
from lightbox.report import numbers, run_cards, run_masks, run_routing, run_scores
from lightbox.report.page import template_of
from lightbox.report.run_items import RunItems
from lightbox.report.run_reading import leaks, read_items, shared_with_training
from lightbox.report.run_scores import MOST_KINDS, Level
from lightbox.runs import folders

PAGE = "report.html"
MOST_TEXTS, MOST_ANSWERS = 10, 3


@dataclass(frozen=True)
class AnswerTypeRow:
    """How many scored items have a type of answer, and the score of each level on them."""

    name: str
    n_items: int
    share: float
    cells: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class ConventionRow:
    """A scoring rule: its score in percent with the image and with a blank one, None where it gives none."""

    rule: Row
    score: float
    blank: float | None


def write_run_page(folder: Path) -> Path:
    """Write `report.html` into the folder of a finished run of answers; its path.

    Raises:
        RequestError, WorkError: see `run_reading.read_items`.
    """
    path = folder / PAGE
    replace_text(path, render(read_items(folder)))
    return path


def render(items: RunItems) -> str:
    """The page as text."""
    rows = run_scores.levels(items)
    beside = run_scores.leads(items, rows)
    by_kind = run_scores.kind_rows(items, rows)
    rules, inapplicable = conventions(items)
    sentences = leaks(items)
    questions = [items.questions[item] for item in items.correct[items.main] if item in items.questions]
    return _template().render(
        run=items.run,
        items=items,
        card=items.card,
        title=_title(items),
        facts=_facts(items),
        licence=_licence(items),
        levels=rows,
        leads=beside,
        conclusion=run_scores.conclusion(items, beside),
        interval_note=run_scores.interval_note(items, rows),
        kinds=by_kind[:MOST_KINDS],
        n_more_kinds=max(0, len(by_kind) - MOST_KINDS),
        masks=run_masks.mask_figure(items),
        routing=run_routing.routing_figure(items.card),
        leaks=sentences,
        shared_with_training=shared_with_training(items, sentences or ()),
        repetition=repetition(questions) if questions else None,
        in_training=in_training(items),
        most_texts=MOST_TEXTS,
        most_answers=MOST_ANSWERS,
        answer_types=answer_types(items, rows),
        conventions=rules,
        inapplicable=inapplicable,
        shelves=run_cards.shelves(items),
        cell=run_scores.cell,
        none_sign=numbers.NONE,
    )


def answer_types(items: RunItems, rows: list[Level]) -> list[AnswerTypeRow]:
    """Scored items and scores by type of answer, see `eval.questions.answer_type`; [] where questions are unknown."""
    members: dict[str, list[str]] = {}
    for item, question in items.questions.items():
        members.setdefault(answer_type(question), []).append(item)
    total = len(items.questions)
    return [
        AnswerTypeRow(
            name,
            len(members[name]),
            len(members[name]) / total,
            tuple(run_scores.group_estimate(items, row.name, members[name]) for row in rows),
        )
        for name in ANSWER_TYPES
        if name in members
    ]


def in_training(items: RunItems) -> float | None:
    """Share of scored items whose question text a training item has too; None where that is not known."""
    if items.train is None or not items.questions:
        return None
    known = {text_key(sample.record.text) for sample in items.train.samples}
    asked = [text_key(question.text) in known for question in items.questions.values()]
    return sum(asked) / len(asked)


def conventions(items: RunItems) -> tuple[list[ConventionRow], dict[str, str]]:
    """Rules that can score what was written, and why others cannot, by name."""
    written = list(items.predictions.get(items.main, {}).values())
    if not written:
        return [], {}
    blank = list(items.predictions.get(BLANK, {}).values()) if items.main != BLANK else []
    for_nothing: Mapping[str, Row] = {row.convention: row for row in table(blank)} if blank else {}
    rules, inapplicable = [], {}
    for rule in table(written):
        if rule.score is None:
            inapplicable[rule.convention] = rule.cannot_score
            continue
        other = for_nothing[rule.convention].score if rule.convention in for_nothing else None
        rules.append(ConventionRow(rule, 100 * rule.score, None if other is None else 100 * other))
    return rules, inapplicable


def _title(items: RunItems) -> str:
    run = items.run
    declared = registry.declarations([run.paper]).get(run.paper)
    arm = declared.arms.get(run.arm) if declared else None
    name = declared.title if declared else run.paper or run.key
    return f"{name}: {arm.title if arm else run.arm}" if run.arm else name


def _facts(items: RunItems) -> list[tuple[str, str]]:
    """What was run on what, as (label, text); what is not recorded is said to be so."""
    run, card = items.run, items.card
    counts = card.get("items", {})
    split = str(items.data_setting("eval_split", "not recorded"))
    n_train = counts.get("train") or (len(items.train.samples) if items.train else "")
    n_images = items.scored and len({items.samples[item].image for item in items.questions if item in items.samples})
    scored = f"{len(items.correct[items.main])} items" + (f" on {n_images} images" if n_images else "")
    made = datetime.fromtimestamp((run.folder / folders.RECORD).stat().st_mtime, UTC)
    divided = f", split {items.data_setting('split')}" if items.data_setting("split") and not items.is_phantom else ""
    backbone = str(run.config.get("model", {}).get("backbone", ""))
    rows = (
        ("Paper, arm", f"{run.paper or 'not recorded'}, {run.arm or 'not recorded'}"),
        ("Preset, seed", f"{run.preset or 'not recorded'}, {'not recorded' if run.seed is None else run.seed}"),
        ("Data", f"{items.source or 'not recorded'}{divided}; scored on {split}: {scored}"),
        ("Training items", f"{n_train or 'not recorded'}" + ("" if _is_trained(items) else "; this run trained none")),
        ("Model", "none" if items.is_baseline else backbone or "not recorded"),
        ("Machine", run.hardware or "not recorded"),
        ("Commit", run.commit or "not recorded"),
        ("Finished", made.strftime("%Y-%m-%d %H:%M UTC")),
        ("Run", run.folder.resolve().name),
    )
    return list(rows)


def _is_trained(items: RunItems) -> bool:
    return bool(items.run.config.get("objective", {}).get("is_trained", True))


def _licence(items: RunItems) -> str:
    """Licence of a real data set, "" where it is not known."""
    try:
        return "" if items.is_phantom else (LATER_SETS.get(items.source) or catalog.find(items.source)).licence
    except RequestError:
        return ""


@cache
def _template() -> Template:
    return template_of("run.html.j2")
