"""The Ray engine on real clusters of this machine: each node has processes and a temporary folder of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEP_S = 0.3  # a job of the toy paper takes four of them
STORE_BYTES = 80_000_000

DRIVER = """
import signal, sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
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
    plan = reproduce.make_plan([], preset="smoke", claim_ids=["Y1", "Y2"], packages={"toy": "toy"})
    out, engine, address = Path(sys.argv[1]), *sys.argv[2:]
    reproduce.run_plan(plan, out, root=out / "none", engine=engine, address=address)
    assert not {"torch", "transformers"} & sys.modules.keys()
    assert ("ray" in sys.modules) == (engine == "ray")


if __name__ == "__main__":
    sys.exit(guard(main))
"""


class RayNode:
    """`ray start --block` in a process; everything that it started can be killed at once."""

    def __init__(self, folder, *options, source):
        folder.mkdir()
        self.tmp, self.log = folder, folder / "start.txt"
        environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(source), "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *options]
        command += [f"--object-store-memory={STORE_BYTES}", "--include-log-monitor=false", "--disable-usage-stats"]
        for _ in range(4):  # Ray itself gives up after 30 s, which are too few while both cores are busy
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            wait_until(lambda: self.has_started or self.process.poll() is not None, "a node", 120)
            if self.has_started:
                return
        pytest.fail(self.log.read_text())

    @property
    def has_started(self):
        return "Ray runtime started" in self.log.read_text()

    @property
    def processes(self):
        return [self.process, *psutil.Process(self.process.pid).children(recursive=True)]

    @property
    def steps(self):
        """Step of each job under way on this node, by key."""
        found = {}
        for path in self.tmp.glob("lightbox-*/jobs/*/checkpoints/state.json"):
            try:
                found[path.parts[-3]] = json.loads(path.read_text())["step"]
            except FileNotFoundError:
                continue  # the job ended meanwhile
        return found

    @property
    def worker(self):
        """The process that runs a job here now."""
        (running,) = jobs_under_way(self.process.pid)
        return running

    def kill(self):
        """SIGKILL to all of the node, as a power cut would."""
        if self.process.poll() is None:
            processes = self.processes
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # some end with the one that started them
                    process.kill()
            self.process.wait(20)
            psutil.wait_procs(processes[1:], timeout=20)


def jobs_under_way(pid=None):
    """Processes below a process, None for this one, that run a job now."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            found += [process] if "ray::run_on_node" in " ".join(process.cmdline()) else []
    return found


def wait_until(holds, what, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of the toy paper, on the path of nodes and drivers."""
    folder = tmp_path_factory.mktemp("source")
    write_toy_paper(folder, step_s=STEP_S)
    forget_toy_paper(folder)
    return folder


@pytest.fixture(scope="module")
def place():
    """A folder with a short name: the addresses of Unix sockets have room for 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="lb"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def address(place, source):
    """A cluster of one node with one CPU."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    head = RayNode(place / "a", "--head", f"--port={port}", "--include-dashboard=false", source=source)
    yield f"127.0.0.1:{port}"
    head.kill()


@pytest.fixture
def second(place, source, address):
    """A second node with one CPU, for one test."""
    node = RayNode(place / "b", f"--address={address}", source=source)
    yield node
    node.kill()
    shutil.rmtree(place / "b")


@pytest.fixture(scope="module")
def expected(tmp_path_factory, source):
    """Scores that the local engine gives, by key of the job."""
    out = tmp_path_factory.mktemp("local")
    driver = Driver(source, out, engine="local")
    assert driver.wait() == 0, driver.said
    return scores(out)


class Driver:
    """A whole run as a process; `said` is what it printed so far, on both streams."""

    def __init__(self, source, out, engine="ray", address=""):
        out.mkdir(exist_ok=True)
        self.log, self.out = out / "said.txt", out
        environment = os.environ | {"PYTHONPATH": str(source)}
        command = [sys.executable, "-W", "error", "-c", DRIVER, str(out), engine, address]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, process_group=0)

    @property
    def said(self):
        return self.log.read_text()

    def wait(self):
        """Exit code."""
        return self.process.wait(200)

    def wait_for_a_job_in_the_middle_on(self, node):
        wait_until(
            lambda: self.process.poll() is not None or any(step in (1, 2) for step in node.steps.values()),
            "a job in the middle",
            180,
        )
        assert self.process.poll() is None, self.said


def scores(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("jobs/*/scores.parquet")}


def test_a_worker_killed_in_the_middle_of_a_job_loses_nothing(source, address, second, expected, tmp_path):
    driver = Driver(source, tmp_path, address=address)
    driver.wait_for_a_job_in_the_middle_on(second)
    second.worker.kill()
    assert driver.wait() == 0, driver.said
    assert driver.said.count("Task run_on_node failed. There are 3 retries remaining") == 1
    assert scores(tmp_path) == expected
    assert len(expected) == 5


def test_a_node_killed_in_the_middle_of_a_job_loses_nothing(source, address, second, expected, tmp_path):
    driver = Driver(source, tmp_path, address=address)
    driver.wait_for_a_job_in_the_middle_on(second)
    second.kill()
    assert driver.wait() == 0, driver.said
    assert "3 retries remaining" in driver.said
    assert scores(tmp_path) == expected


def test_ctrl_c_keeps_what_is_done_ends_the_jobs_and_the_same_command_goes_on(
    source, place, address, expected, tmp_path
):
    driver = Driver(source, tmp_path, address=address)
    wait_until(lambda: "[2/5]" in driver.said or driver.process.poll() is not None, "two finished jobs", 180)
    assert driver.process.poll() is None, driver.said
    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does
    assert driver.wait() == 130, driver.said
    assert "finished jobs and checkpoints are kept" in driver.said
    kept = set(tmp_path.glob("jobs/*/job.json"))
    assert 2 <= len(kept) < 5
    wait_until(lambda: not jobs_under_way(), "the end of interrupted jobs", 30)
    left = set(place.glob("*/lightbox-*"))  # cleared in a moment, unless the machine is busy
    times = {path: path.stat().st_mtime_ns for path in kept}
    again = Driver(source, tmp_path, address=address)
    assert again.wait() == 0, again.said
    assert {path: path.stat().st_mtime_ns for path in kept} == times  # these were not run again
    assert set(place.glob("*/lightbox-*")) <= left
    assert scores(tmp_path) == expected


def test_a_job_that_raises_and_one_that_kills_its_worker_take_no_others_along(source, address, tmp_path):
    world = source / "toy" / "world.py"
    text = world.read_text()
    body = "    import os, signal\n    print('hello from python', flush=True)\n"
    body += "    os.write(1, b'hello from below\\n')\n"
    body += "    if cfg.level == 0.61:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    body += "    assert cfg.level != 0.72, 'no such thing'\n"
    world.write_text(text.replace("    return cfg", body + "    return cfg"))
    try:
        driver = Driver(source, tmp_path, address=address)
        assert driver.wait() == 1, driver.said
    finally:
        world.write_text(text)
    assert driver.said.count("retries remaining, so the task will be retried") == 3
    assert "3 of 5 jobs failed: toy true, seed 0" in driver.said
    errors = {json.loads(path.read_text())["why"] for path in tmp_path.glob("jobs/*/error.json")}
    assert len(errors) == 2  # the job that needs the failed one was never begun
    assert "AssertionError: no such thing." in str(errors)
    assert "gave it up after up to 3 retries: WorkerCrashedError" in str(errors)
    assert len(scores(tmp_path)) == 2
    logs = [path.read_text() for path in tmp_path.glob("jobs/*/log.txt")]
    assert len(logs) == 3
    assert all("hello from python\nhello from below\n" in log for log in logs)
    assert sum("Traceback" in log for log in logs) == 1


def test_a_node_with_another_source_is_refused_before_any_job_is_run(source, place, address, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (other / "toy" / "world.py").write_text("def level_of(cfg):\n    return cfg.level + 0.1\n")
    node = RayNode(place / "c", f"--address={address}", source=other)
    left = set(place.glob("*/lightbox-*"))  # by an interrupted run before, on a busy machine
    try:
        driver = Driver(source, tmp_path / "out", address=address)
        assert driver.wait() == 2, driver.said
    finally:
        node.kill()
    assert [line.partition(":")[0] for line in driver.said.splitlines()] == ["What was given", "Why", "What to do"]
    assert "differs in source of toy (" in driver.said
    assert list((tmp_path / "out").glob("jobs/*")) == []
    assert set(place.glob("*/lightbox-*")) <= left  # this run left nothing
