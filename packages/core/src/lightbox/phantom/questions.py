"""Questions: presence, side, zone, count, comparison, threshold, composition, each with answer, rationale and facts.

For every case the candidates of each kind are listed with their answers; a choice rule then picks. With rho = 0 the
answer of a closed question is balanced whatever its text; with rho > 0 that share of the questions is picked so that
the answer follows a fixed stereotype of the question's subject (Knobs.rho).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lightbox.paths import shared_data
from lightbox.phantom.facts import (
    NUMBER_WORDS,
    FactTable,
    FindingFact,
    parse,
    state_clear,
    state_finding,
    state_heart,
    state_look,
    state_name,
    with_article,
)
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import CLASS_NAMES, SIDES, ZONES, place_phrase
from lightbox.records import Question

YES_NO = ("yes", "no")
ATTEMPTS = 3
# 3 words for wording and noise, 2 for the stereotype, 4 an attempt; reserved whether used or not
WORDS_PER_QUESTION = 5 + 4 * ATTEMPTS
LARGER_RATIO_PCT = 160  # a comparison is asked only where the larger area is at least this share of the smaller


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
        n: number of questions; a case without findings may yield fewer, because its answers are all alike.
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
    for k in range(n):
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
    kinds = list(pool)
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
    rationale = " ".join(c.rationale)
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
    }


def _open_candidates(facts: FactTable) -> dict[str, list[Candidate]]:
    return {"zone": _zone(facts), "count": _count(facts), "presence": _what(facts)}


def _shown(findings: Sequence[FindingFact], limit: int = 2) -> tuple[str, ...]:
    return tuple(state_finding(f) for f in findings[:limit]) or (state_clear(),)


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


def _is_larger(facts: FactTable) -> bool:
    return len(facts.findings) > 1 and facts.findings[0].area * 100 >= facts.findings[1].area * LARGER_RATIO_PCT


def _comparison(facts: FactTable) -> list[Candidate]:
    largest = {side: max((f.area for f in facts.findings if f.side == side), default=0) for side in SIDES}
    if min(largest.values()) == 0 or not _is_larger(facts):
        return []
    answer = SIDES[0] if largest["right"] > largest["left"] else SIDES[1]
    texts = (
        "which lung holds the larger finding ?",
        "on which side is the larger finding ?",
        "is the larger finding right or left ?",
    )
    rationale = (*_shown(facts.findings), f"the larger one lies on the {answer} .")
    return [Candidate("comparison", "larger side", texts, answer, SIDES, rationale)]


def _threshold(facts: FactTable) -> list[Candidate]:
    texts = (
        "is the cardiothoracic ratio above half ?",
        "is the heart enlarged ?",
        "does the heart take more than half of the chest width ?",
    )
    return [Candidate("threshold", "heart", texts, YES_NO[not facts.has_cardiomegaly], YES_NO, (state_heart(facts),))]


def _composition(facts: FactTable) -> list[Candidate]:
    if not facts.findings or (len(facts.findings) > 1 and not _is_larger(facts)):
        return []
    f = facts.findings[0]
    out = []
    for zone in ZONES:
        texts = (f"is the largest finding in the {zone} zone ?", f"does the largest finding lie in the {zone} zone ?")
        rationale = (*_shown(facts.findings), f"the largest is in the {f.zone} part .")
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
            (*_shown(facts.findings, limit=3), f"that makes {NUMBER_WORDS[n]} ."),
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
