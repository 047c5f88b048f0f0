"""Kill trainings, evaluations and whole `reproduce`s of the five papers at random moments, and compare what they leave.

Run: uv run python benchmarks/kills.py [--kills 10] [--cold 2] [--only PAPER/KIND] [--seed 0] [--out FOLDER]

Each paper's commands run once undisturbed. Then they are killed at a moment drawn evenly from the time which that
took, and given again, until they are done; then anew. Per-item scores and predictions must have the bytes of the
undisturbed run, no file may be left over or lack, and no run may say that it is finished while it is not. `--cold` of
the kills hit the real commands, imports included; the others a process that has imported everything, and there
`reproduce` runs its jobs in one process. Rows go to OUT/kills.jsonl, and what is there already counts.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightbox.testing.kills import CHAINS, Chain, Runs, Whole, faults, half_finished, indexed, kept, moment, names

os.environ["OMP_NUM_THREADS"] = "1"  # no threads before a fork, and the bits of one
MODULES = ("train", "evaluate", "config", "claims", "cli")
TRIES = 6  # in a row; the last one is left to end


def warm_up(chains: list[Chain]) -> None:
    """Import all that the commands import, so that a forked try begins at once."""
    from lightbox.claims import runner  # noqa: PLC0415
    from lightbox.runs import index_place  # noqa: PLC0415
    from lightbox.testing.inline_pool import InlinePool  # noqa: PLC0415

    index_place.prepare_environment()
    more = ("mlflow", "mlflow.tracking", "lightbox.cli.reproduce", "lightbox.cli.train", "lightbox.report.page", "peft")
    for name in (*more, *(f"{chain.paper}.{module}" for chain in chains for module in MODULES)):
        importlib.import_module(name)
    runner.Pool = InlinePool


def undisturbed(runs: Runs) -> Whole:
    """What the commands leave where nothing kills them, and how long they take."""
    runs.forget()
    began = time.monotonic()
    runs.attempt()
    wall_s = time.monotonic() - began
    return Whole(kept(runs.out), names(runs.out), indexed(runs.out), wall_s)


def sequence(runs: Runs, whole: Whole, number: int, seed: int, left: int) -> list[dict[str, Any]]:
    """Kill and continue until the commands are done; a row a kill, and one for what is left in the end."""
    runs.forget()
    named = {"chain": runs.chain.name, "is_cold": runs.is_cold, "sequence": number, "seed": seed}
    rows: list[dict[str, Any]] = []
    while len(rows) < min(TRIES, left):
        at_s = moment(f"{seed} {runs.chain.name} {runs.is_cold} {number} {len(rows)}", whole.wall_s)
        kill = runs.attempt(kill_after_s=at_s)
        if kill is None:
            break
        wrong = half_finished(runs.out, whole)
        rows.append({"kind": "kill", **named, **asdict(kill), "of_s": whole.wall_s, "faults": wrong})
    else:
        runs.attempt()
    wrong = faults(runs.out, whole)
    return [*rows, {"kind": "end", **named, "kills": len(rows), "files": len(whole.kept), "faults": wrong}]


def wanted(runs: Runs, rows: list[dict[str, Any]], kills: int, cold: int) -> int:
    """Kills that a chain still lacks, where `kills` and `cold` are those of a paper with two chains."""
    own = [
        row for row in rows if (row["kind"], row["chain"], row["is_cold"]) == ("kill", runs.chain.name, runs.is_cold)
    ]
    cold = -(-cold // 2)
    return (cold if runs.is_cold else -(-kills // 2) - cold) - len(own)


def turns(chains: list[Chain], rows: list[dict[str, Any]], *, kills: int, cold: int, place: Path) -> Iterator[Runs]:
    """Chains in turns, for as long as one lacks kills; `rows` grows meanwhile."""
    for is_cold in (False, True):
        for is_training in (True, False):
            some = [chain for chain in chains if bool(chain.trainings) == is_training]
            left = [Runs(chain, place / chain.name.replace("/", "-"), is_cold) for chain in some]
            while left := [runs for runs in left if wanted(runs, rows, kills, cold) > 0]:
                yield from left


def show(rows: list[dict[str, Any]]) -> int:
    """Print the tables; the number of faults."""
    kills = [row for row in rows if row["kind"] == "kill"]
    papers = list(dict.fromkeys(row["chain"].partition("/")[0] for row in rows))
    print("\npaper | train + evaluate | reproduce | of these cold | ended alike | faults")
    for paper in papers:
        own = [row for row in kills if row["chain"].startswith(f"{paper}/")]
        by_kind = Counter(row["chain"].partition("/")[2] for row in own)
        ends = [row for row in rows if row["kind"] == "end" and row["chain"].startswith(f"{paper}/") and row["kills"]]
        alike = sum(not row["faults"] for row in ends)
        wrong = sum(len(row["faults"]) for row in rows if row["chain"].startswith(f"{paper}/"))
        cells = (by_kind["train"], by_kind["reproduce"], sum(row["is_cold"] for row in own))
        print(" | ".join([paper, *map(str, cells), f"{alike} of {len(ends)}", str(wrong)]))
    print("\nfell into | " + " | ".join(papers))
    for phase, _ in Counter(row["phase"] for row in kills).most_common():
        counts = Counter(row["chain"].partition("/")[0] for row in kills if row["phase"] == phase)
        print(f"{phase} | " + " | ".join(str(counts[paper]) for paper in papers))
    for row in rows:
        for fault in row["faults"]:
            how = Runs(CHAINS[0], Path(), row["is_cold"]).how
            print(f"FAULT {row['chain']} {how} sequence {row['sequence']}, seed {row['seed']}: {fault}")
    return sum(len(row["faults"]) for row in rows)


def main() -> None:
    """Run what was asked for and print the tables; the exit code is 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each paper, half of them of a reproduce")
    parser.add_argument("--cold", type=int, default=2, help="of these, of the real commands")
    parser.add_argument("--only", action="append", default=[], help="PAPER/train or PAPER/reproduce; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of runs and kills.jsonl; left out, a temporary one")
    options = parser.parse_args()
    chains = [chain for chain in CHAINS if not options.only or chain.name in options.only]
    place = (options.out or Path(tempfile.mkdtemp(prefix="kills-"))).resolve()
    place.mkdir(parents=True, exist_ok=True)
    log = place / "kills.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    warm_up(chains)
    wholes: dict[Runs, Whole] = {}
    # in turns, so that an interrupted run has something of each paper; trainings first, which are shorter
    for runs in turns(chains, rows, kills=options.kills, cold=options.cold, place=place):
        chain, own = runs.chain, [row for row in rows if row["chain"] == runs.chain.name]
        if runs not in wholes:
            wholes[runs] = undisturbed(runs)
            print(f"{chain.name}, {runs.how}: {wholes[runs].wall_s:.1f} s undisturbed", flush=True)
            warm = wholes.get(Runs(chain, runs.folder), wholes[runs])
            if warm.kept != wholes[runs].kept:
                print(f"FAULT {chain.name}: the cold run's scores are not those of the warm one")
                sys.exit(1)
        number = sum(row["kind"] == "end" for row in own)
        new = sequence(runs, wholes[runs], number, options.seed, wanted(runs, rows, options.kills, options.cold))
        rows += new
        with log.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        phases = ", ".join(row["phase"] for row in new[:-1]) or "none in time"
        print(f"{chain.name}, {runs.how}: killed at {phases}; faults: {new[-1]['faults'] or 'none'}", flush=True)
    sys.exit(1 if show(rows) else 0)


if __name__ == "__main__":
    main()
