"""Calibrate the acceptance table that balances every closed question (`shared_data/phantom/balance.json`).

Run once, by `python -m lightbox.phantom.balance`; the committed table is the authority.
"""

import json
from collections import Counter

from lightbox.paths import shared_data
from lightbox.phantom import questions
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.scene import draw_scene
from lightbox.phantom.splits import seed_range
from lightbox.phantom.world import CHUNK, fact_tables

CASES = 40_000
ROUNDS = 8


def calibrate(cases: int = CASES, rounds: int = ROUNDS) -> dict[str, list[int]]:
    """Fixed-point iteration: thin the commoner answer of each subject until both come equally often.

    Args:
        cases: cases drawn a round, from the "pretrain_validation" seeds.
        rounds: iterations.

    Returns:
        Subject -> acceptance of option 0 and option 1, in 1/10,000.
    """
    path = shared_data() / "phantom" / "balance.json"
    table: dict[str, list[int]] = {}
    for k in range(rounds):
        path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        questions.balance_table.cache_clear()
        counts = _count(seed_range("pretrain_validation", 900 + k, cases))
        for subject in {subject for subject, _ in counts}:
            # add one: a subject of which one answer never came must not divide by zero
            zero, one = counts[subject, 0] + 1, counts[subject, 1] + 1
            pair = table.get(subject, [10_000, 10_000])
            pair = [pair[0] / zero, pair[1] / one]
            # the rarer answer is always accepted, so as few draws as possible are lost
            table[subject] = [round(10_000 * p / max(pair)) for p in pair]
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    questions.balance_table.cache_clear()
    return table


def _count(seeds: range) -> Counter:
    counts: Counter = Counter()
    knobs = Knobs()
    for start in range(0, len(seeds), CHUNK):
        scene = draw_scene(seeds[start : start + CHUNK], knobs)
        for words, (facts, _) in zip(scene.question_words.tolist(), fact_tables(scene), strict=True):
            for _, c, _ in questions.pick(facts, words, knobs, n=4, closed=True):
                counts[c.subject, c.options.index(c.answer)] += 1
    return counts


if __name__ == "__main__":
    calibrate()
