"""Test the verdict rules by simulation and write docs/power.md: false verdicts, coverage, and power to plan a run.

Run: uv run python benchmarks/verdict_engine.py [--pilot results/medthink/quick/results.json]
"""

import argparse
import sys
import time
from pathlib import Path

from verdict_simulation import (
    PILOT_ITEMS,
    PILOT_SEEDS,
    Tally,
    World,
    crossing,
    flat,
    late,
    pilot_sds,
    power_table,
    simulate,
    simulate_course,
)

from lightbox.bench import ledger
from lightbox.claims.spec import Verdict

PAGE = Path(__file__).resolve().parents[1] / "docs" / "power.md"
ROWS = Path(__file__).parent / "results.csv"
SEEDS, ITEMS, SEED_SDS = (5, 8), (500, 2000), (0.0, 0.01, 0.02, 0.04)
EFFECTS = (0.02, 0.03, 0.04, 0.06, 0.08)
MOST_FALSE = 0.035
LEAST_COVERAGE, MOST_COVERAGE = 0.93, 0.97
LEAST_PLANTED = 0.95
LEAST_UNTRAINED = 0.975
MOST_FALSE_NEGATIVE = 0.025


def main() -> int:
    """Simulate, write the page, and return 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=2000, help="simulated experiments a null cell")
    parser.add_argument("--power-experiments", type=int, default=500, help="simulated experiments a power cell")
    parser.add_argument(
        "--pilot", type=Path, help="results.json of a run, whose between-seed SDs get rows of their own"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the page and do not write it")
    options = parser.parse_args()
    begun = time.perf_counter()
    null = power_table([0.0], SEED_SDS, seeds=SEEDS, items=ITEMS, experiments=options.experiments)
    planted = simulate(World(8, 2000, 0.02, effect=0.08), experiments=options.experiments)
    untrained = simulate(World(5, 2000, 0.02, lead=0.0, control_effect=0.0), experiments=options.experiments)
    power = power_table(EFFECTS, SEED_SDS, seeds=SEEDS, items=ITEMS, experiments=options.power_experiments)
    pilot = {
        name: power_table(EFFECTS, [sd], seeds=SEEDS, items=[2000], experiments=options.power_experiments)
        for name, sd in (pilot_sds(options.pilot) if options.pilot else {}).items()
    }
    courses = budget_courses(options.experiments)
    broken = violations(null, planted, untrained) + early_violations(courses)
    sections = null_section(null, planted, untrained), budget_section(courses), power_section(power, pilot)
    page = "\n".join([*(line for section in sections for line in section), ""])
    print(page)
    print(f"{time.perf_counter() - begun:.1f} s")
    print("\n".join(broken) or "every bound holds")
    if not options.dry_run:
        PAGE.write_text(page, encoding="utf-8")
        ledger.append(ROWS, "verdict_engine", rows(null) + early_rows(courses))
    return 1 if broken else 0


def rows(null: list[Tally]) -> list[dict[str, object]]:
    """Rows of the ledger: the worst null cell of each promise."""
    worst = max(tally.share(Verdict.REPRODUCED) for tally in null)
    least = min(tally.coverage for tally in null)
    size = f"worst of {len(null)} null cells, {null[0].experiments} experiments each"
    return [
        {"case": "false reproduced", "peer": "bound of 3.5 %", "value": f"{100 * worst:.2f}", "unit": "%"}
        | {"ratio": f"{worst / MOST_FALSE:.2f}", "notes": f"{size}; below 1 holds"},
        {"case": "coverage of the 95 % interval", "peer": "nominal 95 %", "value": f"{100 * least:.2f}", "unit": "%"}
        | {"ratio": f"{least / 0.95:.3f}", "notes": f"{size}; 0.979 to 1.021 holds"},
    ]


def violations(null: list[Tally], planted: Tally, untrained: Tally) -> list[str]:
    """One line for each bound that does not hold."""
    broken = []
    for tally in null:
        if tally.share(Verdict.REPRODUCED) > MOST_FALSE:
            broken.append(f"{tally.world}: reproduced in {tally.share(Verdict.REPRODUCED):.2%} of null experiments")
        if not LEAST_COVERAGE <= tally.coverage <= MOST_COVERAGE:
            broken.append(f"{tally.world}: the interval covers {tally.coverage:.2%}")
    if planted.share(Verdict.REPRODUCED) < LEAST_PLANTED:
        broken.append(f"planted effect reproduced in {planted.share(Verdict.REPRODUCED):.2%}")
    if untrained.share(Verdict.NOT_TESTABLE) < LEAST_UNTRAINED:
        broken.append(f"untrained arms not testable in {untrained.share(Verdict.NOT_TESTABLE):.2%}")
    return broken


def null_section(null: list[Tally], planted: Tally, untrained: Tally) -> list[str]:
    """Lines of the page: what the rules do where nothing is there, where much is, and where nothing was learned."""
    lines = [
        "# How often verdicts are right, and how many seeds a claim needs",
        "",
        "Written by `benchmarks/verdict_engine.py`, which hands simulated scores to the real verdict rules",
        "(`lightbox.claims.verdicts`). An item is right or wrong, two arms disagree on a quarter of the items, and",
        "each seed has an effect of its own, normal around the true one with the between-seed SD of the row.",
        "",
        "## No true effect",
        "",
        f"{null[0].experiments} experiments a row; the minimum effect is 2 points; the control and the gate are",
        "planted to hold, so neither prevents a false verdict. Chance alone moves a share of 2.5 % by 0.7 points, and",
        "a coverage of 95 % by 1.0 points (two standard errors at 2,000 experiments).",
        "",
        "| seeds | items | seed SD, points | reproduced | absent | contradicted | inconclusive | coverage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shown = (Verdict.REPRODUCED, Verdict.ABSENT, Verdict.CONTRADICTED, Verdict.INCONCLUSIVE)
    for tally in null:
        world = tally.world
        shares = " | ".join(f"{tally.share(verdict):.2%}" for verdict in shown)
        lines.append(f"| {world.seeds} | {world.items} | {world.seed_sd * 100:g} | {shares} | {tally.coverage:.2%} |")
    at = planted.world
    found, unlearned = planted.share(Verdict.REPRODUCED), untrained.share(Verdict.NOT_TESTABLE)
    lines += [
        "",
        f"A planted effect of {at.effect * 100:g} points ({at.seeds} seeds, {at.items} items, seed SD"
        f" {at.seed_sd * 100:g} points) comes out reproduced in {found:.1%} of experiments.",
        f"Two untrained arms, at the level of the strongest baseline, come out not testable in {unlearned:.1%}.",
    ]
    return lines


def budget_courses(experiments: int) -> dict[str, list[Tally]]:
    """Tallies by course: effects that a longer training would turn or bring, and flat ones, which show the price."""
    n = experiments
    courses = (crossing(n), late(n), flat(0.0, n), flat(-0.06, n), flat(0.06, n))
    worlds = [World(seeds, items, sd) for seeds, items in ((5, 500), (8, 2000)) for sd in (0.01, 0.03)]
    return {course.name: [simulate_course(course, world) for world in worlds] for course in courses}


def negative(tally: Tally) -> float:
    """Share of experiments that come out contradicted or absent."""
    return tally.share(Verdict.CONTRADICTED) + tally.share(Verdict.ABSENT)


def early(courses: dict[str, list[Tally]]) -> list[tuple[str, Tally]]:
    """The cells of courses that were stopped too early for a negative verdict: the first two."""
    return [(name, tally) for name in list(courses)[:2] for tally in courses[name]]


def early_violations(courses: dict[str, list[Tally]]) -> list[str]:
    """One line for each such cell with too many negative verdicts."""
    return [
        f"{name}, {tally.world}: contradicted or absent in {negative(tally):.2%}"
        for name, tally in early(courses)
        if negative(tally) > MOST_FALSE_NEGATIVE
    ]


def early_rows(courses: dict[str, list[Tally]]) -> list[dict[str, object]]:
    """Row of the ledger: the worst of those cells."""
    name, worst = max(early(courses), key=lambda pair: negative(pair[1]))
    row = {"case": "contradicted or absent, stopped too early", "peer": "bound of 2.5 %", "unit": "%"}
    row |= {"value": f"{100 * negative(worst):.2f}", "ratio": f"{negative(worst) / MOST_FALSE_NEGATIVE:.2f}"}
    return [row | {"notes": f"worst of {len(early(courses))} cells ({name}), {worst.experiments} experiments each"}]


def budget_section(courses: dict[str, list[Tally]]) -> list[str]:
    """Lines of the page: what becomes of effects that a longer training would turn, and what guarding them costs."""
    shown = (Verdict.REPRODUCED, Verdict.ABSENT, Verdict.CONTRADICTED, Verdict.STILL_LEARNING, Verdict.INCONCLUSIVE)
    lines = [
        "",
        "## Stopped too early",
        "",
        f"Each experiment has a pilot of {PILOT_SEEDS} seeds, {PILOT_ITEMS} items and four budgets, the run's being",
        "the third, and is judged by the rule of `lightbox.claims.budget`. Where arms cross or one learns late, the",
        "pilot ends before that, so every negative verdict would be a mistake. The flat effects show the price: what",
        "is true, and comes out still learning all the same. They have a control, which must not move either.",
        "",
        f"| true effect | seeds | items | seed SD, points | {' | '.join(shown)} |",
        f"|---|---|---|---|{'---|' * len(shown)}",
    ]
    for name, tallies in courses.items():
        for tally in tallies:
            cells = " | ".join(f"{tally.share(verdict):.2%}" for verdict in shown)
            lines.append(f"| {name} | {sizes(tally.world)} | {cells} |")
    return lines


def power_section(power: list[Tally], pilot: dict[str, list[Tally]]) -> list[str]:
    """Lines of the page: the share of experiments that come out reproduced, by size and true effect."""
    heads = " | ".join(f"{effect * 100:g} points" for effect in EFFECTS)
    lines = [
        "",
        "## Power",
        "",
        f"Share of {power[0].experiments} experiments that come out reproduced, by true effect. Read the seed SD of a",
        "contrast from a pilot: it is `between_sd` in `results.json`. A true effect of exactly the minimum passes",
        "about half of the time at best, as the estimate must reach the minimum too: plan for an effect well above it.",
        "",
        f"| seeds | items | seed SD, points | {heads} |",
        f"|---|---|---|{'---|' * len(EFFECTS)}",
    ]
    lines += [f"| {sizes(row[0].world)} | {shares(row)} |" for row in rows_by_size(power)]
    if pilot:
        lines += ["", "With the between-seed SDs of a published run:", ""]
        lines += [
            f"| contrast | seeds | items | seed SD, points | {heads} |",
            f"|---|---|---|---|{'---|' * len(EFFECTS)}",
        ]
        for name, tallies in pilot.items():
            lines += [f"| {name} | {sizes(row[0].world)} | {shares(row)} |" for row in rows_by_size(tallies)]
    return lines


def rows_by_size(tallies: list[Tally]) -> list[list[Tally]]:
    """Tallies in rows of one size and seed SD, a column each effect."""
    return [tallies[start : start + len(EFFECTS)] for start in range(0, len(tallies), len(EFFECTS))]


def sizes(world: World) -> str:
    """Seeds, items and seed SD as table cells."""
    return f"{world.seeds} | {world.items} | {world.seed_sd * 100:.3g}"


def shares(row: list[Tally]) -> str:
    """Share reproduced of each tally as table cells."""
    return " | ".join(f"{tally.share(Verdict.REPRODUCED):.0%}" for tally in row)


if __name__ == "__main__":
    sys.exit(main())
