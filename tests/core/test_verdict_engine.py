import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lightbox.claims.gate import gate_result
from lightbox.claims.spec import Verdict
from lightbox.claims.statistics import Scores, contrast_effect
from lightbox.claims.verdicts import decide

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "benchmarks"))  # as for a script that lies there
engine, simulation = (importlib.import_module(name) for name in ("verdict_engine", "verdict_simulation"))
sys.path.remove(str(REPO / "benchmarks"))
CLAIM, Tally, World = simulation.CLAIM, simulation.Tally, simulation.World
simulate, power_table = simulation.simulate, simulation.power_table


@pytest.fixture(scope="module")
def null_cells():
    return power_table([0.0], engine.SEED_SDS, seeds=engine.SEEDS, items=engine.ITEMS, experiments=500)


@pytest.mark.slow
def test_null_experiments_are_rarely_reproduced_and_the_interval_covers(null_cells):
    """The reduced form of the benchmark: 500 experiments a cell, and coverage over all cells of one seed SD."""
    assert len(null_cells) == 16
    for tally in null_cells:
        assert tally.share(Verdict.REPRODUCED) <= engine.MOST_FALSE, tally.world
    for sd in engine.SEED_SDS:
        coverage = np.mean([tally.coverage for tally in null_cells if tally.world.seed_sd == sd])
        assert engine.LEAST_COVERAGE <= coverage <= engine.MOST_COVERAGE, sd


@pytest.mark.slow
def test_large_null_experiments_without_seed_noise_are_called_absent(null_cells):
    large = next(t for t in null_cells if t.world == World(8, 2000, 0.0))
    assert large.share(Verdict.ABSENT) > 0.9


def test_planted_effect_is_reproduced():
    assert simulate(World(8, 2000, 0.02, effect=0.08), experiments=300).share(Verdict.REPRODUCED) > 0.98


def test_planted_effect_with_a_control_that_does_as_well_is_not():
    tally = simulate(World(8, 2000, 0.0, effect=0.08, control_effect=0.0), experiments=300)
    assert tally.share(Verdict.REPRODUCED) < 0.05
    assert tally.share(Verdict.CONTROL_FAILED) > 0.8


def test_planted_reversal_is_contradicted():
    assert simulate(World(8, 2000, 0.02, effect=-0.08), experiments=300).share(Verdict.CONTRADICTED) > 0.98


def test_two_untrained_arms_are_not_testable():
    tally = simulate(World(5, 500, 0.02, lead=0.0, control_effect=0.0), experiments=300)
    assert tally.share(Verdict.NOT_TESTABLE) > 0.98


def test_power_grows_with_seeds_items_and_effect_and_falls_with_seed_noise():
    def power(*size, effect=0.04):
        return simulate(World(*size, effect=effect), experiments=400).share(Verdict.REPRODUCED)

    base = power(5, 500, 0.02)
    assert power(8, 500, 0.02) > base + 0.1
    assert power(5, 2000, 0.02) > base + 0.1
    assert power(5, 500, 0.02, effect=0.06) > base + 0.1
    assert power(5, 500, 0.04) < base - 0.1


def test_draws_have_the_noise_of_items_and_seeds():
    d = simulation.draw_differences(World(5, 500, 0.03), 0.04, 20_000, np.random.default_rng(0))
    assert d.shape == (20_000, 5)
    assert d.mean() == pytest.approx(0.04, abs=0.001)
    assert d.std() == pytest.approx(np.sqrt(0.03**2 + 0.25 / 500), rel=0.02)
    assert np.abs(d * 500 - np.round(d * 500)).max() < 1e-9  # whole items


def test_the_same_simulation_gives_the_same_tally_and_another_seed_another():
    world = World(5, 500, 0.02)
    assert simulate(world, experiments=100) == simulate(world, experiments=100)
    assert simulate(world, experiments=100) != simulate(world, experiments=100, seed=1)


@pytest.mark.parametrize("level", [0.8, 0.55, 0.2])
def test_simulated_decision_is_the_one_that_scores_would_get(level):
    """The same experiment as score tables goes through pairing, gate and rules to the same verdict and interval."""
    levels = {"arm": level, "rival": 0.5, "control": 0.52}
    right = {name: np.random.default_rng(i).random((5, 300)) < p for i, (name, p) in enumerate(levels.items())}
    # the simulation holds the baseline's mean fixed, so give every seed the same one
    right["majority"] = np.tile(np.arange(300) < 300 * simulation.BASELINE_MEAN, (5, 1))
    scores = {
        (name, seed): pa.table({"item": [f"i{k:03d}" for k in range(300)], "correct": rows[seed].astype(float)})
        for name, rows in right.items()
        for seed in range(5)
    }
    scores = {pair: table.append_column("condition", [["image"] * 300]) for pair, table in scores.items()}
    scored = Scores(scores, "correct", "image")
    effects = [contrast_effect(c, scored, seeds=range(5), min_effect=CLAIM.min_effect) for c in CLAIM.contrasts]
    expected = decide(CLAIM, effects, gate_result(CLAIM.gate, scored, seeds=range(5)), planned_seeds=5).verdict
    d = {name: (right["arm"].astype(float) - right[name]).mean(axis=1) for name in ("rival", "control", "majority")}
    verdict, ends = simulation.decide_one([d["rival"], d["control"]], d["majority"], items=300)
    assert verdict is expected
    assert ends == pytest.approx(effects[0].ci95)


def test_courses_are_what_they_say():
    """Arms that cross are behind at the end of the pilot and turn before twice that; the late one is not half-way."""
    crossing, late = simulation.crossing(200).effects, simulation.late(200).effects
    assert crossing.shape == late.shape == (200, 4)
    assert (crossing[:, -1] <= 1e-12).all()
    assert (crossing.min(axis=1) < 0).all()
    assert (np.diff(late, axis=1) > 0).all()
    assert (late[:, -1] <= 0.04 + 1e-12).all()


@pytest.mark.slow
@pytest.mark.parametrize("course", [simulation.crossing, simulation.late])
def test_stopped_too_early_few_negative_verdicts_stand(course):
    tally = simulation.simulate_course(course(400), World(8, 2000, 0.03))
    assert engine.negative(tally) <= engine.MOST_FALSE_NEGATIVE
    assert tally.share(Verdict.STILL_LEARNING) > 0.05


@pytest.mark.slow
def test_a_flat_effect_keeps_its_verdict_more_often_in_a_quiet_pilot(monkeypatch):
    """And a course is not still learning by itself: with a pilot of many items each verdict stands."""
    course, world = simulation.flat(-0.06, 200), World(8, 2000, 0.0)
    noisy = simulation.simulate_course(course, world).share(Verdict.CONTRADICTED)
    monkeypatch.setattr(simulation, "PILOT_ITEMS", 50_000)
    assert simulation.simulate_course(course, world).share(Verdict.CONTRADICTED) > 0.98 > 0.5 > noisy
    assert simulation.simulate_course(simulation.flat(0.0, 200), world).share(Verdict.ABSENT) > 0.9


def test_benchmark_reports_negative_verdicts_of_courses_stopped_too_early():
    world = World(5, 500, 0.0)
    bad, fine = Tally(world, 100, {"absent": 2, "contradicted": 1}, 0), Tally(world, 100, {"contradicted": 2}, 0)
    assert engine.early_violations({"a": [fine], "b": [fine], "flat": [bad]}) == []
    [line] = engine.early_violations({"a": [fine], "b": [fine, bad], "flat": [bad]})
    assert "b, World(" in line
    assert "3.00%" in line
    [row] = engine.early_rows({"a": [fine], "b": [fine, bad], "flat": [bad]})
    assert (row["value"], row["ratio"]) == ("3.00", "1.20")


def test_pilot_reads_the_between_seed_noise_of_primary_contrasts_in_points():
    path = REPO / "results" / "medthink" / "full" / "results.json"
    sds = simulation.pilot_sds(path)
    by_id = {claim["id"]: claim for claim in json.loads(path.read_text())["claims"]}
    assert sds["medthink T1, Explanation - answer only"] == by_id["T1"]["contrasts"][0]["between_sd"] / 100
    assert "medthink T1, true rationale - filler" not in sds
    assert by_id["T6"]["unit"] == "BLEU"
    assert not [name for name in sds if name.startswith("medthink T6")]


@pytest.mark.slow
def test_benchmark_reports_each_broken_bound(null_cells):
    world = World(5, 500, 0.0)
    good, bad = null_cells[0], Tally(world, 100, {"reproduced": 4}, covered=99)
    planted, untrained = Tally(world, 100, {"reproduced": 100}, 95), Tally(world, 100, {"not testable": 100}, 95)
    assert engine.violations([good], planted, untrained) == []
    broken = engine.violations([good, bad], untrained, planted)
    assert [line.split(":")[0].split(" ")[0] for line in broken] == ["World(seeds=5,"] * 2 + ["planted", "untrained"]
    assert "4.00%" in broken[0]


def test_benchmark_page_has_a_row_for_each_size(null_cells):
    power = [replace(null_cells[0]) for _ in range(2 * len(engine.EFFECTS))]
    page = engine.null_section(null_cells, null_cells[0], null_cells[0]) + engine.power_section(
        power, {"toy": power[:5]}
    )
    assert sum(line.startswith(("| 5 |", "| 8 |")) for line in page) == 16 + 2
    assert sum(line.startswith("| toy | 5 | 500 | 0 |") for line in page) == 1


def test_committed_power_page_is_the_one_the_script_writes():
    text = (REPO / "docs" / "power.md").read_text()
    assert "2000 experiments a row" in text
    assert text.count("\n| 5 |") == text.count("\n| 8 |") == 16
