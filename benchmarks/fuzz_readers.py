"""Spoil files by the thousand, read them as a user does, and count what the readers said.

Run: uv run python benchmarks/fuzz_readers.py [--trials 2000] [--only SET] [--seed 0]

Small sets are cut from the real data below $LIGHTBOX_DATA_ROOT, and written by hand, with real pictures, for the forms
that are not there; without that variable only the second kind runs. Each trial is a process's work, which is ended
where it takes longer than `--limit-s`. The exit code is 1 where a trial gave a traceback, a hang or silence; what the
verdicts mean is in `lightbox.testing.spoiled.trial`. `--only SET --seed N --trials 1` makes one trial again.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections import Counter
from pathlib import Path

from lightbox.readers.catalog import ROOT_VARIABLE
from lightbox.testing.spoiled.children import in_child
from lightbox.testing.spoiled.sets import SETS
from lightbox.testing.spoiled.trial import BAD, GOOD, Outcome, run_trial

TRIALS_A_VARIANT = 40


def read_trial(name: str, seed: int, work: Path, *, data_root: Path | None) -> Outcome:
    """One trial, in the child."""
    return run_trial(name, seed, work, data_root, variant=seed // TRIALS_A_VARIANT)


def main() -> None:
    """Run the trials and print a table by set and verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000, help="over all sets together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first trial of each set")
    parser.add_argument("--only", action="append", default=[], help="only this set; may be given several times")
    parser.add_argument("--limit-s", type=float, default=20.0, help="longest time of a trial")
    parser.add_argument("--out", type=Path, help="file that gets a line of JSON a trial")
    options = parser.parse_args()
    data_root = Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None
    names = [name for name in SETS if name in (options.only or SETS) and (data_root or not SETS[name].folder)]
    each = -(-options.trials // len(names))
    trials = [(name, seed) for name in names for seed in range(options.seed, options.seed + each)]
    table: dict[str, Counter[str]] = {name: Counter() for name in names}
    lines = []
    trial = functools.partial(read_trial, data_root=data_root)
    for outcome, _ in in_child(trial, trials, limit_s=options.limit_s):
        table[outcome.set][outcome.verdict] += 1
        lines.append(json.dumps(dataclasses.asdict(outcome)))
        if outcome.verdict in BAD:
            print(f"{outcome.verdict}: {outcome.set} {outcome.seed}: {outcome.file}, {outcome.change} ({outcome.note})")
            print(f"    {outcome.detail[:300]}")
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = [*GOOD, *BAD]
    print(" | ".join(["set", *columns]))
    for name, counts in table.items():
        print(" | ".join([name, *(str(counts[column]) for column in columns)]))
    total = sum(table.values(), Counter())
    print(" | ".join(["all", *(str(total[column]) for column in columns)]), f"({len(trials)} trials)")
    sys.exit(1 if any(total[verdict] for verdict in BAD) else 0)


if __name__ == "__main__":
    main()
