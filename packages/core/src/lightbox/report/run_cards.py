"""Items of one run as cards: the best, which the image decided, and the worst, which it did not help. No torch.

Which items are shown is decided by a digest of their names, in turn from each kind of question, so that nobody chose
them and the same run shows the same ones.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightbox.errors import RequestError
from lightbox.eval.answers import letter_of
from lightbox.paper.conditions import BLANK, SHUFFLED
from lightbox.paper.examples import draw_example
from lightbox.records import Question
from lightbox.report.run_items import RunItems
from lightbox.report.run_scores import SHOWN, TITLES

MOST_CARDS = 6
MOST_SIGNS = 400
"""Longest text that a card shows whole; a model may write without end."""


@dataclass(frozen=True)
class Said:
    """What was answered under a condition or by a baseline; `text` is None where it was not kept."""

    name: str
    is_right: bool
    text: str | None


@dataclass(frozen=True)
class ItemCard:
    """One item; `picture` is a data address, "" where the image could not be read, `asked` is empty where unknown."""

    item: str
    kind: str
    picture: str
    asked: tuple[tuple[str, str], ...]
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Shelf:
    """Cards of one sort and how many items are of that sort."""

    title: str
    meaning: str
    n_items: int
    cards: tuple[ItemCard, ...]


def shelves(items: RunItems) -> list[Shelf]:
    """The best and the worst items, at most `MOST_CARDS` of each."""
    own = items.correct[items.main]
    rivals = [items.correct[name] for name in (BLANK, SHUFFLED) if name in items.correct and name != items.main]
    by_rival = {item: any(rival.get(item, 0.0) == 1.0 for rival in rivals) for item in own}
    best = [item for item, value in own.items() if value == 1.0 and not by_rival[item]]
    worst = [item for item, value in own.items() if value == 0.0]
    first = [item for item in worst if by_rival[item]]
    rest = [item for item in worst if not by_rival[item]]
    chosen_worst = [*spread(items, first), *spread(items, rest)]
    here = " with its own image" if items.looked else ""
    names = [SHOWN[name] for name in (BLANK, SHUFFLED) if name in items.correct and name != items.main]
    best_meaning = ", wrong ".join([f"right{here}", *([" and ".join(names)] if names else [])])
    worst_meaning = f"wrong{here}"
    if names:
        worst_meaning += f"; {len(first) or 'none'} of them right {' or '.join(names)}" + ", shown first" * bool(first)
    return [
        _shelf(items, "Best", best_meaning, best, spread(items, best)),
        _shelf(items, "Worst", worst_meaning, worst, chosen_worst),
    ]


def spread(items: RunItems, names: Iterable[str]) -> list[str]:
    """Items by a digest of their names, in turn from each kind; further items of an image come last."""
    ordered = sorted(names, key=lambda item: hashlib.sha256(item.encode()).digest())
    by_kind: dict[str, list[str]] = {}
    seen, again = set(), []
    for item in ordered:
        image = items.samples[item].image if item in items.samples else item
        if image in seen:
            again.append(item)
            continue
        seen.add(image)
        by_kind.setdefault(items.kinds.get(item, ""), []).append(item)
    longest = max(map(len, by_kind.values()), default=0)
    turns = [by_kind[kind][place] for place in range(longest) for kind in sorted(by_kind) if place < len(by_kind[kind])]
    return [*turns, *again]


def _shelf(items: RunItems, title: str, meaning: str, members: Sequence[str], chosen: Sequence[str]) -> Shelf:
    return Shelf(title, meaning, len(members), tuple(_card(items, item) for item in chosen[:MOST_CARDS]))


def _card(items: RunItems, item: str) -> ItemCard:
    question = items.questions.get(item)
    said = []
    is_guess = items.is_baseline and bool(items.guesses)  # its one condition says what its guess says
    for name in items.conditions:
        if item not in items.correct[name] or is_guess:
            continue
        written = items.predictions.get(name, {}).get(item)
        title = TITLES.get(name, (name.replace("_", " "), ""))[0]
        said.append(Said(title, items.correct[name][item] == 1.0, None if written is None else shortened(written.text)))
    for name, guesses in items.guesses.items():
        if item in guesses:
            said.append(Said(TITLES[name][0], guesses[item].is_right, shortened(guesses[item].text)))
    return ItemCard(item, items.kinds.get(item, ""), _picture(items, item), _asked(question), tuple(said))


def _asked(question: Question | None) -> tuple[tuple[str, str], ...]:
    if question is None:
        return ()
    options = " ".join(f"({letter_of(place)}) {option}" for place, option in enumerate(question.options))
    gold = question.answer
    if question.answer_index is not None:
        gold = f"({letter_of(question.answer_index)}) {gold}"
    rows = (("question", question.text), ("options", options), ("gold answer", gold))
    return tuple((label, shortened(text)) for label, text in rows if text)


def _picture(items: RunItems, item: str) -> str:
    if items.scored is None or item not in items.samples:
        return ""
    try:
        picture = draw_example(
            items.scored.images[items.samples[item].image], is_synthetic=items.is_phantom, in_colour=True
        )
    except RequestError:  # one file that is gone takes no card away
        return ""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def shortened(text: str) -> str:
    """A text of at most `MOST_SIGNS` characters, cut with an ellipsis."""
    return text if len(text) <= MOST_SIGNS else f"{text[:MOST_SIGNS]} …"
