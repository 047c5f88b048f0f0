"""Spoil files by the thousand, read them as a user does, and count what the readers said.

Run: uv run python benchmarks/fuzz_readers.py [--trials 2000] [--only SET] [--seed 0]

Small sets are cut from the real data below $LIGHTBOX_DATA_ROOT, and written by hand, with real pictures, for the forms
that are not there; without that variable only the second kind runs. Each trial is a process's work, which is ended
where it takes longer than `--limit-s`. The exit code is 1 where a trial gave a traceback, a hang or silence; what the
verdicts mean is in `lightbox.testing.spoiled.trial`. `--only SET --seed N --trials 1` makes one trial again.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from lightbox.readers.catalog import ROOT_VARIABLE
from lightbox.testing.spoiled.sets import SETS
from lightbox.testing.spoiled.trial import BAD, GOOD, Outcome, run_trial

TRIALS_A_VARIANT = 40


def serve(pipe: Connection, work: Path, data_root: Path | None) -> None:
    """In the child: run the trials that come, until there are no more."""
    while (asked := pipe.recv()) is not None:
        name, seed = asked
        outcome = run_trial(name, seed, work, data_root, variant=seed // TRIALS_A_VARIANT)
        pipe.send(outcome)


def outcomes(trials: list[tuple[str, int]], data_root: Path | None, limit_s: float) -> Iterator[Outcome]:
    """Each trial's outcome, in order; a child that hangs is ended and followed by a new one."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        child, pipe, started = None, None, 0
        for name, seed in trials:
            if child is None or pipe is None:
                pipe, far = context.Pipe()
                started += 1
                child = context.Process(target=serve, args=(far, Path(work, str(started)), data_root), daemon=True)
                child.start()
                far.close()
                pipe.send((name, seed))
                is_back = pipe.poll(limit_s + 60)  # imports, and the sound set
            else:
                pipe.send((name, seed))
                is_back = pipe.poll(limit_s)
            try:
                outcome = pipe.recv() if is_back else Outcome(name, seed, "?", "?", "?", "hang", f"over {limit_s} s")
            except EOFError:
                outcome, is_back = Outcome(name, seed, "?", "?", "?", "traceback", "the process died"), False
            if not is_back:
                child.kill()
                child.join()
                child = None
            yield outcome
        if child is not None and pipe is not None:
            pipe.send(None)
            child.join()


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
    for outcome in outcomes(trials, data_root, options.limit_s):
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
