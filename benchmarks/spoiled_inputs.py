"""Give ten thousand spoiled inputs to what reads them: rows, images, DICOM, NIfTI, settings, weights, runs.

Run: uv run python benchmarks/spoiled_inputs.py [--inputs 10000] [--only KIND[/SEED]] [--out FILE]

Each must end in an error of three parts that says where, in a report of what was left out, or in a reading that
nobody could know for spoiled; what the verdicts mean is in `lightbox.testing.spoiled.trial`. A trial is a process's
work, which is ended where it takes longer than `--limit-s` or more than 12 GiB of addresses. Inputs are drawn from
their number, so `--only KIND/SEED` makes one again, and leaves it in a folder that it prints. Outcomes go to FILE, a
line of JSON each, and what is there already counts: an interrupted run goes on. The exit code is 1 where an input gave
a traceback, a hang or silence.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lightbox.testing.spoiled.children import in_child
from lightbox.testing.spoiled.every_kind import SHARES, shared_out, trial_of
from lightbox.testing.spoiled.trial import BAD, GOOD, Outcome

os.environ["OMP_NUM_THREADS"] = "1"


def one_again(name: str, seed: int) -> int:
    """Make one input again in this process, say what it gave, and keep it."""
    work = Path(tempfile.mkdtemp(prefix="spoiled-"))
    outcome = trial_of(name, seed, work)
    print(json.dumps(dataclasses.asdict(outcome), indent=1))
    print(f"it lies in {work / 'spoiled'}" if name != "settings" else "it is a word of a command line, above")
    return 1 if outcome.verdict in BAD else 0


def tell(outcome: Outcome, work: Path, kept: Path) -> None:
    """Print a fault, and keep the input beside the outcomes."""
    print(f"{outcome.verdict}: {outcome.set}/{outcome.seed}: {outcome.file}, {outcome.change} ({outcome.note})")
    print(f"    {outcome.detail[:300]}", flush=True)
    if outcome.set != "settings" and (work / "spoiled").is_dir():
        place = kept / f"{outcome.set.replace(' ', '-')}-{outcome.seed}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(work / "spoiled", place, symlinks=True, ignore=pipes)


def pipes(folder: str, names: list[str]) -> list[str]:
    """Names that are pipes, which nobody could copy."""
    return [name for name in names if Path(folder, name).is_fifo()]


def show_table(outcomes: list[Outcome]) -> int:
    """Print the table by kind and verdict; the number of faults."""
    columns = [*GOOD, *BAD]
    print("\n" + " | ".join(["kind", "inputs", *columns]))
    for name in [*SHARES, "all"]:
        own = [outcome for outcome in outcomes if name in (outcome.set, "all")]
        counts = Counter(outcome.verdict for outcome in own)
        print(" | ".join([name, str(len(own)), *(str(counts[column]) for column in columns)]))
    return sum(outcome.verdict in BAD for outcome in outcomes)


def main() -> None:
    """Run the inputs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="over all kinds together")
    parser.add_argument("--only", default="", help="one kind, or KIND/SEED for one input again")
    parser.add_argument("--limit-s", type=float, default=60.0, help="longest time of an input")
    parser.add_argument("--out", type=Path, help="file of outcomes; left out, a temporary one")
    options = parser.parse_args()
    name, _, seed = options.only.partition("/")
    if seed:
        sys.exit(one_again(name, int(seed)))
    out = options.out or Path(tempfile.mkdtemp(prefix="spoiled-"), "outcomes.jsonl")
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    done = {(outcome.set, outcome.seed) for outcome in outcomes}
    asked = [one for one in shared_out(options.inputs) if one not in done and name in ("", one[0])]
    began, last = time.monotonic(), ""
    with out.open("a", encoding="utf-8") as file:
        for outcome, work in in_child(trial_of, asked, limit_s=options.limit_s):
            if outcome.set != last:
                print(f"[{time.monotonic() - began:.0f} s] {outcome.set}", flush=True)
                last = outcome.set
            outcomes.append(outcome)
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            file.flush()
            if outcome.verdict in BAD:
                tell(outcome, work, out.with_suffix(".kept"))
    print(f"{len(asked)} inputs in {time.monotonic() - began:.0f} s; outcomes in {out}")
    sys.exit(1 if show_table(outcomes) else 0)


if __name__ == "__main__":
    main()
