"""What is wrong with a set of preference pairs before anything is trained on it: shortcuts, leaks, faults. No torch.

A pair teaches a model to look only where nothing but the image tells the two answers apart. Each check counts the pairs
in which something else does, or in which the pair is faulty, and shows one. Texts are compared by their words: case,
signs and spaces do not count.
"""

import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightbox.readers.dataset_cards import PUBLIC_LICENCES
from lightbox.readers.leakage import ORDER, image_key, image_keys
from lightbox.readers.preferences import SAME_ANSWER, pairs_of
from lightbox.readers.rows import YES_NO, Problem, ReadResult
from lightbox.readers.text_separability import separability
from lightbox.records import Case, Preference

LEAKED = {
    "dispreferred": r"\bdis-?preferred\b",
    "original answer": r"\boriginal (?:answer|finding|report|description|diagnosis|response)s?\b",
    "candidate answer": r"\bcandidate answers?\d*\b",
    "Question:": r"^\W*question\s*:",
    "given question": r"\b(?:given|provided) (?:question|answer|report)s?\b",
    "wrong answer": r"\b(?:wrong|incorrect|misleading|contradictory|hallucinated) (?:answer|statement|response)s?\b",
    "hallucination": r"\bhallucinations?\b",
    "Note:": r"\(note:",
    "code fence": r"```",
    "as an AI": r"\bas an ai\b",
}
"""Wording that belongs to whoever wrote a pair, not to an answer: label -> pattern, without regard to case."""
SHORTCUT = 0.6
"""Share of pairs won without the image from which on a shortcut is called one; .5 is chance."""
LEAST_IMAGES, LEAST_PAIRS = 10, 40
TELLING = 4  # words shown of each side
_Z95 = 1.96
_SHOWN = 120
_WORD = re.compile(r"\w+")
_FIRST_YES_NO = re.compile(rf"^\W*({'|'.join(YES_NO)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    `count` of `of` pairs or texts have it. `is_found` says whether that is a finding; `sentence` says it in words, and
    `example` shows the first pair. A check that could not be made has `of` 0, and its sentence says why.
    """

    name: str
    count: int
    of: int
    is_found: bool
    sentence: str
    example: str = ""

    @property
    def share(self) -> float:
        """Count over `of`, 0 to 1; 0 where nothing could be looked at."""
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True)
class PreferenceAudit:
    """Measures of a set of pairs and what was found in it.

    `chosen_words` and `rejected_words` are medians over text pairs, None without any. `relevance` has mean, sd and the
    most common values with their counts, most common first.
    """

    pairs: int
    text_pairs: int
    image_pairs: int
    images: int
    chosen_words: float | None
    rejected_words: float | None
    relevance_mean: float
    relevance_sd: float
    relevance: tuple[tuple[float, int], ...]
    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that found something."""
        return tuple(check for check in self.checks if check.is_found)


class _Pairs(NamedTuple):
    """The pairs of a set, those that change the text, and what else the checks look at.

    `refused` are rows whose two texts are one; `scored` are keys of images that a tuned model is scored on.
    """

    every: Sequence[tuple[Case, Preference]]
    texts: Sequence[tuple[Case, Preference]]
    pixels: Mapping[str, str]
    unreadable: Collection[str]
    refused: Sequence[Problem]
    scored: Set[str] | None


def audit_preferences(
    result: ReadResult,
    *,
    pixels: Mapping[str, str] | None = None,
    unreadable: Collection[str] = (),
    scored: Iterable[Case] | None = None,
) -> PreferenceAudit:
    """Look a set of preference pairs over.

    Args:
        result: what a reader gave. Pairs that it refused because their texts are one are counted with the rest.
        pixels: digest of the pixels by key of the image (`leakage.image_key`), so that one picture under two names is
            found; without it an image is its path.
        unreadable: keys of images that cannot be decoded, or are not there.
        scored: cases whose questions a model tuned on the pairs will be scored on; None leaves that check out.

    Returns:
        The checks in a fixed order, found or not.
    """
    every = list(pairs_of(result.cases))
    texts = [(case, pair) for case, pair in every if pair.kind == "text"]
    digests = pixels or {}
    pairs = _Pairs(
        every,
        texts,
        digests,
        frozenset(unreadable),
        [problem for problem in result.problems if problem.reason == SAME_ANSWER],
        None if scored is None else {key for case in scored if case.images for key in image_keys(case, digests)},
    )
    relevance = [pair.relevance for _, pair in every]
    return PreferenceAudit(
        pairs=len(every),
        text_pairs=len(texts),
        image_pairs=len(every) - len(texts),
        images=len({_shown_image(case, pairs) for case, _ in every}),
        chosen_words=statistics.median(_length(pair.chosen) for _, pair in texts) if texts else None,
        rejected_words=statistics.median(_length(pair.rejected) for _, pair in texts) if texts else None,
        relevance_mean=float(np.mean(relevance)) if relevance else 0.0,
        relevance_sd=float(np.std(relevance)) if relevance else 0.0,
        relevance=tuple(Counter(relevance).most_common()),
        checks=tuple(check(pairs) for check in _CHECKS),
    )


def _identical(pairs: _Pairs) -> Check:
    same = [(case, pair) for case, pair in pairs.texts if _words(pair.chosen) == _words(pair.rejected)]
    refused = pairs.refused
    said = "reject the answer that they prefer, and teach nothing"
    if refused:
        said += f"; {len(refused)} of them the reader refuses, the first in row {refused[0].row}"
    of = _Of(len(pairs.texts) + len(refused), "pairs of texts")
    return _check("identical texts", same, of, said, count=len(same) + len(refused))


def _same_images(pairs: _Pairs) -> Check:
    two = [(case, pair) for case, pair in pairs.every if pair.kind == "image" and len(case.images) > 1]
    same = [(case, pair) for case, pair in two if len(set(image_keys(case, pairs.pixels))) == 1]
    said = "reject the picture that they prefer, pixel for pixel"
    return _check("identical images", same, _Of(len(two), "pairs of images"), said)


def _missing_images(pairs: _Pairs) -> Check:
    without = [
        (case, pair)
        for case, pair in pairs.every
        if not case.images or any(image_key(image) in pairs.unreadable for image in case.images)
    ]
    said = "have no readable image here: they are text alone"
    return _check("missing images", without, _Of(len(pairs.every), "pairs"), said)


def _leaked(pairs: _Pairs, side: str) -> Check:
    labels: Counter[str] = Counter()
    holders = []
    for case, pair in pairs.texts:
        found = [label for label, pattern in _PATTERNS.items() if pattern.search(getattr(pair, side))]
        labels.update(found)
        holders += [(case, pair)] if found else []
    by_label = ", ".join(f"'{label}' {count}" for label, count in labels.most_common())
    said = "hold words of whoever wrote the pair and of no answer" + (f": {by_label}" if by_label else "")
    return _check(f"leaked wording, {side}", holders, _Of(len(pairs.texts), f"{side} texts"), said)


def _right_yes_no(pairs: _Pairs) -> Check:
    closed = [(case, pair) for case, pair in pairs.texts if _yes_no(pair.chosen)]
    same = [(case, pair) for case, pair in closed if _yes_no(pair.rejected) == _yes_no(pair.chosen)]
    of = _Of(len(closed), "rejected texts of yes-or-no pairs")
    return _check("right yes or no rejected", same, of, "begin with the right yes or no")


def _right_answer_inside(pairs: _Pairs) -> Check:
    opened = [(case, pair) for case, pair in pairs.texts if not _yes_no(pair.chosen)]
    inside = [
        (case, pair)
        for case, pair in opened
        if (answer := f" {_words(pair.chosen)} ") in f" {_words(pair.rejected)} "
        and answer not in f" {_words(pair.prompt)} "  # "heart or lung?": both are named by whoever answers
        and _words(pair.chosen) != _words(pair.rejected)
    ]
    said = "hold the chosen answer word for word, which the prompt does not: they deny it, or are right"
    return _check("right answer inside the rejected", inside, _Of(len(opened), "rejected texts of open pairs"), said)


def _length_shortcut(pairs: _Pairs) -> Check:
    longer = [(case, pair) for case, pair in pairs.texts if _length(pair.rejected) > _length(pair.chosen)]
    shorter = [(case, pair) for case, pair in pairs.texts if _length(pair.rejected) < _length(pair.chosen)]
    of = max(len(pairs.texts), 1)
    # equal lengths are half a win: whoever goes by length must guess
    won = max(len(longer), len(shorter)) + (of - len(longer) - len(shorter)) / 2
    is_found = won / of >= SHORTCUT and won / of - _Z95 * (0.25 / of) ** 0.5 > 0.5
    is_longer = len(longer) >= len(shorter)
    said = "are longer than the chosen one"
    if is_found:
        habit = "shorter" if is_longer else "longer"
        said += f": whoever prefers the {habit} text wins {_percent(won / of)} of the pairs blind (chance: 50 %)"
    rows = longer if is_longer else shorter
    return _check("length", rows, _Of(len(pairs.texts), "rejected texts"), said, count=len(longer), is_found=is_found)


def _bag_of_words(pairs: _Pairs) -> Check:
    name = "bag of words"
    groups = np.unique([_shown_image(case, pairs) for case, _ in pairs.texts], return_inverse=True)[1]
    images = int(groups.max()) + 1 if len(groups) else 0
    if images < LEAST_IMAGES or len(pairs.texts) < LEAST_PAIRS:
        there = f"{len(pairs.texts)} pairs of texts on {images} images"
        return _not_made(name, f"there are {there}, and it takes {LEAST_PAIRS} on {LEAST_IMAGES}")
    found = separability([(_words(pair.chosen), _words(pair.rejected)) for _, pair in pairs.texts], groups)
    is_found = found.accuracy >= SHORTCUT and found.accuracy - found.half_width > 0.5
    said = (
        "are known as chosen or rejected by their words alone, without prompt and image, on images that nothing was "
        f"fitted to: accuracy {_interval(found.accuracy, found.half_width)}, and {_interval(*found.cut)} where both "
        "texts of a pair are cut to the length of the shorter one (chance: .50)"
    )
    if is_found:
        words = (f"'{word}' in {rejected} rejected and {chosen} chosen" for word, rejected, chosen in found.telling)
        said += f"; most telling: {', '.join(itertools.islice(words, TELLING))} texts"
    rows = [row for row, known in zip(pairs.texts, found.is_right.all(axis=1), strict=True) if known]
    of = _Of(found.is_right.size, "texts")
    return _check(name, rows, of, said, count=int(found.is_right.sum()), is_found=is_found)


def _repeated(pairs: _Pairs) -> Check:
    groups = _by_prompt(pairs).values()
    again = [row for rows in groups for row in rows[1:]]
    said = "repeat the image and the prompt of a pair before"
    said += next((f", such as {rows[0][1].id} and {rows[1][1].id}" for rows in groups if len(rows) > 1), "")
    return _check("repeated prompts", again, _Of(len(pairs.every), "pairs"), said)


def _contradictions(pairs: _Pairs) -> Check:
    against = []
    for rows in _by_prompt(pairs).values():
        chosen = {_words(pair.chosen) for _, pair in rows}
        against += [
            (case, pair)
            for case, pair in rows
            if pair.kind == "text" and (words := _words(pair.rejected)) in chosen and words != _words(pair.chosen)
        ]
    said = "reject what another pair prefers for the same image and prompt"
    return _check("contradictions", against, _Of(len(pairs.every), "pairs"), said)


def _without_weight(pairs: _Pairs) -> Check:
    zero = [(case, pair) for case, pair in pairs.every if pair.relevance == 0]
    said = "have a relevance of 0, and weigh nothing unless it is rescaled"
    return _check("scores of 0", zero, _Of(len(pairs.every), "pairs"), said)


def _one_score(pairs: _Pairs) -> Check:
    is_constant = len(pairs.every) > 1 and len({pair.relevance for _, pair in pairs.every}) == 1
    said = "have one and the same relevance, so that weighting by it changes nothing"
    return _check("one score for all", pairs.every if is_constant else (), _Of(len(pairs.every), "pairs"), said)


def _two_sides(pairs: _Pairs) -> Check:
    name = "two sides of a split"
    divided = [(case, pair) for case, pair in pairs.every if case.split]
    sides = sorted({case.split for case, _ in divided}, key=lambda side: (_place(side), side))
    if len(sides) < 2:
        return _not_made(name, f"the pairs are all of the split '{sides[0]}'" if sides else "the pairs have no split")
    first: dict[str, str] = {}  # of each image and patient, the side that has it first
    for side in sides:
        for case, _ in divided:
            if case.split == side:
                first |= {tie: side for tie in _ties_of(case, pairs) if tie not in first}
    shared = [(case, pair) for case, pair in divided if any(first[tie] != case.split for tie in _ties_of(case, pairs))]
    said = f"are of an image or a patient that an earlier split has too ({', '.join(sides)})"
    return _check(name, shared, _Of(len(divided), "pairs"), said)


def _scored_images(pairs: _Pairs) -> Check:
    name = "images of the scored questions"
    if pairs.scored is None:
        return _not_made(name, "no dataset was named that a tuned model is to be scored on")
    shown = [(case, pair) for case, pair in pairs.every if case.images]
    shared = [(case, pair) for case, pair in shown if not pairs.scored.isdisjoint(image_keys(case, pairs.pixels))]
    said = "show an image whose questions a tuned model is to be scored on"
    return _check(name, shared, _Of(len(shown), "pairs with an image"), said)


_PATTERNS = {label: re.compile(pattern, re.IGNORECASE) for label, pattern in LEAKED.items()}
_CHECKS: tuple[Callable[[_Pairs], Check], ...] = (
    _length_shortcut,
    _bag_of_words,
    lambda pairs: _leaked(pairs, "rejected"),
    lambda pairs: _leaked(pairs, "chosen"),
    _identical,
    _same_images,
    _right_yes_no,
    _right_answer_inside,
    _contradictions,
    _repeated,
    _without_weight,
    _one_score,
    _missing_images,
    _two_sides,
    _scored_images,
)


def _by_prompt(pairs: _Pairs) -> dict[tuple[str, ...], list[tuple[Case, Preference]]]:
    """Pairs by what is shown and asked; an image pair asks something else than a text pair."""
    rows: defaultdict[tuple[str, ...], list[tuple[Case, Preference]]] = defaultdict(list)
    for case, pair in pairs.every:
        images = image_keys(case, pairs.pixels) if pair.kind == "image" else (_shown_image(case, pairs),)
        rows[pair.kind, _words(pair.prompt), *images].append((case, pair))
    return rows


def _shown_image(case: Case, pairs: _Pairs) -> str:
    """What identifies the true image: its pixels, else its path, else the case."""
    return image_keys(case, pairs.pixels)[0]


def _ties_of(case: Case, pairs: _Pairs) -> Iterator[str]:
    yield from (f"image {key}" for key in image_keys(case, pairs.pixels))
    if case.patient_id is not None:
        yield f"patient {case.patient_id}"


def _place(side: str) -> int:
    return ORDER.index(side) if side in ORDER else len(ORDER)


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _length(text: str) -> int:
    return len(text.split())


def _yes_no(text: str) -> str:
    """The yes or no that a text begins with, "" for any other."""
    first = _FIRST_YES_NO.match(text)
    return first.group(1).lower() if first else ""


class _Of(NamedTuple):
    """What a count is a part of: how many, and their name."""

    number: int
    noun: str


def _check(
    name: str,
    rows: Sequence[tuple[Case, Preference]],
    of: _Of,
    said: str,
    *,
    count: int | None = None,
    is_found: bool | None = None,
) -> Check:
    """A check whose rows are those that have what was looked for, unless `count` and `is_found` say otherwise."""
    if not of.number:
        return _not_made(name, f"there are no {of.noun}")
    number = len(rows) if count is None else count
    sentence = f"{number} of {of.number} {of.noun} ({_percent(number / of.number)}) {said}."
    return Check(name, number, of.number, number > 0 if is_found is None else is_found, sentence, _example(rows))


def _not_made(name: str, why: str) -> Check:
    return Check(name, 0, 0, False, f"Not looked for: {why}.")


def _example(rows: Sequence[tuple[Case, Preference]]) -> str:
    if not rows:
        return ""
    case, pair = rows[0]
    if case.licence not in PUBLIC_LICENCES:
        return f"pair {pair.id} (text not shown: licence {case.licence or 'unknown'})"
    texts = f"chosen '{_brief(pair.chosen)}', rejected '{_brief(pair.rejected)}'"
    return f"pair {pair.id}, '{_brief(pair.prompt)}': {texts}"


def _brief(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "..."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(mean: float, half: float) -> str:
    return f"{mean:.3f} +- {half:.3f}".replace("0.", ".")
