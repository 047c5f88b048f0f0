"""Questions with answer, rationale and facts: presence, side, zone, count, threshold, composition, comparisons.

Presence, side and threshold need one look at the image; composition and the three comparisons (of two findings' sizes,
of their heights, of the findings on either side) need several, which is where a rationale can help.

For every case the candidates of each kind are listed with their answers; a choice rule then picks. With rho = 0 the
answer of a closed question is balanced whatever its text; with rho > 0 that share of the questions is picked so that
the answer follows a fixed stereotype of the question's subject (Knobs.rho).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from lightbox.paths import shared_data
from lightbox.phantom.facts import (
    NUMBER_WORDS,
    FactTable,
    FindingFact,
    parse,
    reword,
    state,
    state_finding,
    state_heart,
    state_look,
    state_name,
    state_where,
    with_article,
)
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import CLASS_NAMES, CLASSES, SIDES, ZONES, place_phrase
from lightbox.records import Question

YES_NO = ("yes", "no")
COMPARISONS = ("comparison", "count_comparison", "size_comparison")
CLOSED_KINDS = ("presence", "side", "threshold", "composition", *COMPARISONS)
ATTEMPTS = 3
# 3 words for wording and noise, 2 for the stereotype, 4 an attempt; reserved whether used or not
WORDS_PER_QUESTION = 5 + 4 * ATTEMPTS
LARGER_RATIO_PCT = 160  # a comparison is asked only where the larger area is at least this share of the smaller
# How often a kind is tried beside the others: these need two findings, which less than half of all cases have.
WEIGHTS: dict[str, int] = {"comparison": 12, "count_comparison": 4, "size_comparison": 5}

_OF_ONE_PLACE = {c.name for c in CLASSES if len(c.places) == 1}  # their name tells how high they lie


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question that could be asked of a case. `subject` is its text without paraphrase: the key of its stereotype."""

    kind: str
    subject: str
    texts: tuple[str, ...]
    answer: str
    options: tuple[str, ...]
    rationale: tuple[str, ...]


def ask(
    facts: FactTable, words: Sequence[int], knobs: Knobs, *, case_id: str, n: int, closed: bool | None
) -> tuple[Question, ...]:
    """Pick up to `n` different questions about a case.

    Args:
        facts: what is true of the case.
        words: raw draws, `WORDS_PER_QUESTION` a question.
        knobs: rho and label noise matter here.
        case_id: prefix of the question ids.
        n: number of questions at two findings; a case with fewer has less to ask about and yields fewer.
        closed: True for two-option questions, False for open ones, None for both in turn.
    """
    picked = pick(facts, words, knobs, n=n, closed=closed)
    return tuple(_finish(c, draw, knobs, f"{case_id}-{k}") for k, c, draw in picked)


def pick(
    facts: FactTable, words: Sequence[int], knobs: Knobs, *, n: int, closed: bool | None
) -> list[tuple[int, Candidate, Sequence[int]]]:
    """The candidates that `ask` turns into questions: number, candidate, and the draws left for its wording."""
    pools = {True: _closed_candidates(facts), False: _open_candidates(facts)}
    picked = []
    asked: set[str] = set()
    for k in range(-(-n * min(2 + len(facts.findings), 4) // 4)):
        is_closed = k % 2 == 0 if closed is None else closed
        draw = words[WORDS_PER_QUESTION * k : WORDS_PER_QUESTION * (k + 1)]
        pool = {
            kind: rest
            for kind, cands in pools[is_closed].items()
            if (rest := [c for c in cands if c.subject not in asked])
        }
        candidate = _choose(pool, draw[3:], knobs.rho if is_closed else 0.0) if pool else None
        if candidate is not None:
            asked.add(candidate.subject)  # the subject and not the text: a paraphrase would be the same question again
            picked.append((k, candidate, draw[:3]))
    return picked


def _choose(pool: dict[str, list[Candidate]], draw: Sequence[int], rho: float) -> Candidate | None:
    kinds = [kind for kind in pool for _ in range(WEIGHTS.get(kind, 1))]
    if draw[0] % 1_000_000 < rho * 1_000_000:
        hits = [c for cands in pool.values() for c in cands if c.answer == c.options[stereotype(c.subject)]]
        # no second try: it would bring back questions against the stereotype
        return hits[draw[1] % len(hits)] if hits else None
    for attempt in range(ATTEMPTS):
        kind_word, answer_word, pick_word, accept_word = draw[2 + 4 * attempt : 6 + 4 * attempt]
        candidates = pool[kinds[kind_word % len(kinds)]]
        options = candidates[0].options
        if not options:
            return candidates[pick_word % len(candidates)]
        answer_index = answer_word % 2  # a coin decides the answer first, so the text alone predicts nothing
        candidates = [c for c in candidates if c.answer == options[answer_index]]
        if candidates:
            candidate = candidates[pick_word % len(candidates)]
            if accept_word % 10_000 < balance_table().get(candidate.subject, (10_000, 10_000))[answer_index]:
                return candidate
    return None


@cache
def balance_table() -> dict[str, tuple[int, int]]:
    """Acceptance of each subject's two answers, in 1/10,000, from `balance.json`.

    Truth is not balanced (most places are clear), so the commoner answer of a subject is thinned. The numbers were
    found once by fixed-point iteration (`balance.calibrate`) on the default world and are part of the generator.
    """
    path = shared_data() / "phantom" / "balance.json"
    return {subject: tuple(pair) for subject, pair in json.loads(path.read_text()).items()} if path.is_file() else {}


def stereotype(subject: str) -> int:
    """The option (0 or 1) that text priors suggest for a subject: fixed for all time by its characters."""
    # arithmetic and not hash(), which differs from process to process
    return sum((k + 1) * ord(c) for k, c in enumerate(subject)) // 7 % 2


def _finish(c: Candidate, draw: Sequence[int], knobs: Knobs, question_id: str) -> Question:
    answer = c.answer
    if c.options and draw[0] % 100 < knobs.label_noise_pct:
        answer = c.options[1 - c.options.index(answer)]  # the label alone is flipped; rationale and facts stay true
    rationale = " ".join(reword(c.rationale, draw[2]))
    return Question(
        id=question_id,
        text=c.texts[draw[1] % len(c.texts)],
        answer=answer,
        options=c.options,
        answer_index=c.options.index(answer) if c.options else None,
        rationale=rationale,
        facts=tuple(sorted(parse(rationale))),
        kind=c.kind,
    )


def _closed_candidates(facts: FactTable) -> dict[str, list[Candidate]]:
    return {
        "presence": [*_presence(facts), *_presence_at(facts)],
        "side": _side(facts),
        "comparison": _comparison(facts),
        "threshold": _threshold(facts),
        "composition": _composition(facts),
        "count_comparison": _count_comparison(facts),
        "size_comparison": _size_comparison(facts),
    }


def _open_candidates(facts: FactTable) -> dict[str, list[Candidate]]:
    return {"zone": _zone(facts), "count": _count(facts), "presence": _what(facts)}


def _shown(findings: Sequence[FindingFact], limit: int = 2) -> tuple[str, ...]:
    return tuple(state_finding(f) for f in findings[:limit]) or (state("clear"),)


def _presence(facts: FactTable) -> list[Candidate]:
    here = {f.name: f for f in facts.findings}
    out = []
    for name in CLASS_NAMES:
        if name in here:
            rationale = (state_finding(here[name]), state_name(here[name]))
        else:
            rationale = (*_shown(facts.findings), state_look(name))
        texts = (
            f"is there {with_article(name)} ?",
            f"does the image show {with_article(name)} ?",
            f"is {with_article(name)} present ?",
        )
        out.append(Candidate("presence", f"presence {name}", texts, YES_NO[name not in here], YES_NO, rationale))
    return out


def _presence_at(facts: FactTable) -> list[Candidate]:
    here = {f.where: f for f in facts.findings}
    out = []
    for side in SIDES:
        for zone in ZONES:
            where = place_phrase(side, zone)
            if any(f.side == side and f.zone == zone and f.where != where for f in facts.findings):
                continue  # a hilar or costophrenic finding touches this zone: the answer would be a matter of taste
            rationale = (state_finding(here[where]),) if where in here else _shown(facts.findings)
            texts = (
                f"is there a finding in the {where} ?",
                f"does the {where} show a finding ?",
                f"is the {where} abnormal ?",
            )
            out.append(
                Candidate("presence", f"finding at {where}", texts, YES_NO[where not in here], YES_NO, rationale)
            )
    return out


def _unique(facts: FactTable) -> list[FindingFact]:
    names = [f.name for f in facts.findings]
    return [f for f in facts.findings if names.count(f.name) == 1]


def _side(facts: FactTable) -> list[Candidate]:
    return [
        Candidate(
            "side",
            f"side {f.name}",
            (
                f"on which side is the {f.name} ?",
                f"which lung holds the {f.name} ?",
                f"is the {f.name} on the right or the left ?",
            ),
            f.side,
            SIDES,
            (state_finding(f), state_name(f)),
        )
        for f in _unique(facts)
    ]


def _larger(a: FindingFact, b: FindingFact) -> FindingFact | None:
    """The larger of two findings; None where their areas are too near."""
    small, large = sorted((a, b), key=lambda f: f.area)
    return large if large.area * 100 >= small.area * LARGER_RATIO_PCT else None


def _pairs(facts: FactTable) -> list[tuple[FindingFact, FindingFact]]:
    """Findings that a question can tell apart by name, two by two, in alphabetical order so that it tells nothing."""
    return list(combinations(sorted(_unique(facts), key=lambda f: f.name), 2))


def _comparison(facts: FactTable) -> list[Candidate]:
    out = []
    sides = {f.side for f in facts.findings}
    if len(sides) == 2 and _larger(*facts.findings[:2]):
        answer = facts.findings[0].side
        texts = (
            "which lung holds the larger finding ?",
            "on which side is the larger finding ?",
            "is the larger finding right or left ?",
        )
        rationale = (*_shown(facts.findings), state("larger_side", side=answer))
        out.append(Candidate("comparison", "larger side", texts, answer, SIDES, rationale))
    for a, b in _pairs(facts):
        names, options = f"the {a.name} or the {b.name}", (a.name, b.name)
        if a.zone != b.zone and not {a.name, b.name} & _OF_ONE_PLACE:
            upper = min(a, b, key=lambda f: ZONES.index(f.zone))
            texts = (f"which lies above , {names} ?", f"what lies above , {names} ?")
            rationale = (state_where(a), state_where(b), state("above", name=upper.name))
            out.append(Candidate("comparison", f"above {a.name} {b.name}", texts, upper.name, options, rationale))
        large = _larger(a, b)
        if large is not None:
            texts = (f"which is larger , {names} ?", f"what is larger , {names} ?")
            subject = f"larger {a.name} {b.name}"
            out.append(Candidate("comparison", subject, texts, large.name, options, _sizes(a, b, large)))
    return out


def _count_comparison(facts: FactTable) -> list[Candidate]:
    if len(facts.findings) < 2:
        return []  # with one finding it asks for its side
    counts = {side: sum(f.side == side for f in facts.findings) for side in SIDES}
    words = {side: NUMBER_WORDS[n] for side, n in counts.items()}
    rationale = (*_shown(facts.findings, limit=3), state("count_by_side", **words))
    out = []
    for side, other in (SIDES, SIDES[::-1]):
        texts = (
            f"are there more findings on the {side} than on the {other} ?",
            f"does the {side} lung show more findings than the {other} ?",
            f"are more findings in the {side} lung than in the {other} ?",
        )
        answer = YES_NO[counts[side] <= counts[other]]
        out.append(Candidate("count_comparison", f"more on {side}", texts, answer, YES_NO, rationale))
    return out


def _size_comparison(facts: FactTable) -> list[Candidate]:
    out = []
    for pair in _pairs(facts):
        large = _larger(*pair)
        if large is None:
            continue
        for a, b in (pair, pair[::-1]):
            texts = (
                f"is the {a.name} larger than the {b.name} ?",
                f"is the {a.name} the larger one , not the {b.name} ?",
            )
            subject, answer = f"{a.name} larger than {b.name}", YES_NO[a is not large]
            out.append(Candidate("size_comparison", subject, texts, answer, YES_NO, _sizes(*pair, large)))
    return out


def _sizes(a: FindingFact, b: FindingFact, large: FindingFact) -> tuple[str, ...]:
    return state_name(a), state_name(b), state("larger", name=large.name)


def _threshold(facts: FactTable) -> list[Candidate]:
    texts = (
        "is the cardiothoracic ratio above half ?",
        "is the heart enlarged ?",
        "does the heart take more than half of the chest width ?",
    )
    return [Candidate("threshold", "heart", texts, YES_NO[not facts.has_cardiomegaly], YES_NO, state_heart(facts))]


def _composition(facts: FactTable) -> list[Candidate]:
    if not facts.findings or (len(facts.findings) > 1 and not _larger(*facts.findings[:2])):
        return []
    f = facts.findings[0]
    rationale = (*_shown(facts.findings), state("largest", zone=f.zone))
    out = []
    for zone in ZONES:
        texts = (f"is the largest finding in the {zone} zone ?", f"does the largest finding lie in the {zone} zone ?")
        out.append(Candidate("composition", f"largest in {zone}", texts, YES_NO[f.zone != zone], YES_NO, rationale))
    return out


def _zone(facts: FactTable) -> list[Candidate]:
    return [
        Candidate(
            "zone",
            f"zone {f.name}",
            (f"where is the {f.name} ?", f"in which zone is the {f.name} ?"),
            f.where,
            (),
            (state_finding(f), state_name(f)),
        )
        for f in _unique(facts)
    ]


def _count(facts: FactTable) -> list[Candidate]:
    texts = ("how many findings are there ?", "how many findings does the image show ?")
    n = len(facts.findings)
    return [
        Candidate(
            "count",
            "count",
            texts,
            NUMBER_WORDS[n],
            (),
            (*_shown(facts.findings, limit=3), state("count", number=NUMBER_WORDS[n])),
        )
    ]


def _what(facts: FactTable) -> list[Candidate]:
    return [
        Candidate(
            "presence",
            f"what at {f.where}",
            (f"what is seen in the {f.where} ?", f"what does the {f.where} show ?"),
            f.name,
            (),
            (state_finding(f), state_name(f)),
        )
        for f in facts.findings
    ]
