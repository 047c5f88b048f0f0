"""A `reproduce` killed at any moment and run again ends with the bytes of one that was never interrupted."""

import json
import random
import subprocess
import sys
import time

import pytest

from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper

pytestmark = pytest.mark.slow
KILLS = 5

SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, {source!r})
from lightbox.runs import index
from lightbox.cli import reproduce
from lightbox.errors import guard


class Index:
    def parent(self, *_):
        return ""

    def child(self, *_):
        return ""

    def close(self, *_):
        pass


index.open_tracker = lambda out: Index()  # opening the real one takes longer than the whole run


def main():
    plan = reproduce.make_plan([], preset="quick", claim_ids=["Y2"], packages={{"toy": "toy"}})
    reproduce.run_plan(plan, Path({out!r}), root=Path({root!r}))


if __name__ == "__main__":
    sys.exit(guard(main))
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    source = tmp_path_factory.mktemp("src")
    write_toy_paper(source, step_s=0.03)
    yield source
    forget_toy_paper(source)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The output folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert start(toy, out).wait(250) == 0
    return out


def start(toy, out):
    code = SCRIPT.format(source=str(toy), out=str(out), root=str(out / "none"))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)


def scores(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("jobs/*/scores.parquet")}


def numbers(out):
    document = json.loads((out / "reproduce" / "toy-quick" / "results.json").read_text())
    changing = ("wall_s", "commits")
    return [{name: value for name, value in claim.items() if name not in changing} for claim in document["claims"]]


def kill_at_random(process, out, rng):
    """SIGKILL, once a random number of further jobs has begun and a random time has passed."""
    begun = len(list(out.glob("jobs/*/checkpoints")))
    wanted, deadline = begun + rng.randint(1, 4), time.monotonic() + 60
    while len(list(out.glob("jobs/*/checkpoints"))) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.15))
    process.kill()
    process.wait(10)


def test_reproduce_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_one(toy, whole, tmp_path):
    broken = tmp_path / "broken"
    rng = random.Random(0)
    interrupted = 0
    for _ in range(KILLS):
        process = start(toy, broken)
        kill_at_random(process, broken, rng)
        interrupted += process.returncode == -9
        for path in broken.glob("jobs/*/job.json"):
            assert json.loads(path.read_text())["finished"] is True  # never half a file
    assert interrupted >= 3, "most kills must hit a run at work, or this shows nothing"
    assert start(toy, broken).wait(250) == 0
    assert scores(broken) == scores(whole)
    assert len(scores(whole)) == 20
    assert numbers(broken) == numbers(whole)


def test_two_runs_of_the_same_command_give_the_same_bytes(toy, whole, tmp_path):
    """No kill, two folders."""
    assert start(toy, tmp_path / "again").wait(250) == 0
    assert scores(tmp_path / "again") == scores(whole)
    assert numbers(tmp_path / "again") == numbers(whole)
