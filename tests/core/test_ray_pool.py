"""What a cluster needs and no cluster is needed for: refusals, archives, a job on a node, what becomes of a loss."""

import importlib.util
import logging
import os
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightbox.claims import parcels, ray_connection, ray_pool, runner
from lightbox.claims.jobs import plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.runner import Finished
from lightbox.errors import RequestError
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Folder of the package `toy`; nodes of this test have their own temporary folder."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    write_toy_paper(tmp_path / "src")
    yield tmp_path / "src" / "toy"
    forget_toy_paper(tmp_path / "src")


@pytest.fixture
def todo(toy):
    return plan(choose_claims(load_papers(packages={"toy": "toy"})), "smoke")


@pytest.fixture
def order(todo, tmp_path):
    """A function: the order of one arm; the folders that it needs are the given ones."""

    def build(arm, needs=()):
        job = todo.jobs[todo.keys["toy", arm, 0]]
        found = Finished(folders=dict(zip(job.needs.values(), needs, strict=True)))
        return runner._order(job, tmp_path / "out" / "jobs" / job.key, found)

    return build


def shipped(order):
    """Run an order as a node does, and put what comes home into its folder."""
    delivery = parcels.run_parcel(*parcels.make_parcel(order, "a1"))
    order.folder.mkdir(parents=True, exist_ok=True)
    parcels.unpack(delivery.files, {parcels.OWN: order.folder})
    return delivery.outcome


def test_files_come_back_as_they_were_without_locks_and_staged_writes(tmp_path):
    folder = tmp_path / "job"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("scores.parquet", "checkpoints/state.json", ".lock", ".card.json.tmp-7"):
        (folder / name).write_bytes(os.urandom(100))
    (folder / "link").symlink_to("/etc/hostname")
    places = {"own": tmp_path / "there", "other": tmp_path / "unused"}
    parcels.unpack(parcels.pack({"own": folder, "needs-0": folder}), places)
    files = [path.relative_to(tmp_path / "there") for path in sorted((tmp_path / "there").rglob("*")) if path.is_file()]
    assert [str(path) for path in files] == ["checkpoints/state.json", "scores.parquet"]
    assert all((tmp_path / "there" / path).read_bytes() == (folder / path).read_bytes() for path in files)
    assert not (tmp_path / "unused").exists()


def test_an_archive_cannot_write_beside_its_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    buffer = tmp_path / "bad.tar.gz"
    with tarfile.open(buffer, "w:gz") as archive:
        for name in ("own/../../evil", "/evil", "own/good"):
            archive.add(tmp_path / "file", name)
    parcels.unpack(buffer.read_bytes(), {"own": tmp_path / "a" / "b"})
    assert [path.name for path in (tmp_path / "a").rglob("*") if path.is_file()] == ["good"]
    assert not (tmp_path / "evil").exists()


def test_a_job_runs_on_a_node_with_what_it_needs_and_comes_home_whole(order, tmp_path):
    first = order("true")
    assert shipped(first).error is None
    second = order("twice", [first.folder])
    outcome = shipped(second)
    assert outcome.error is None
    assert outcome.ran.keys() == {"commit", "hardware", "versions"}
    assert (second.folder / "log.txt").exists()
    direct = replace(second, folder=tmp_path / "direct")
    assert parcels.run_order(direct).error is None
    assert (second.folder / "scores.parquet").read_bytes() == (direct.folder / "scores.parquet").read_bytes()
    assert list((tmp_path / "node" / "lightbox-a1" / "jobs").iterdir()) == []  # the node keeps nothing of a job
    parcels.clear_node("a1")
    assert list((tmp_path / "node").iterdir()) == []


def test_a_job_that_was_begun_here_goes_on_on_the_node(order):
    begun = order("true")
    state = begun.folder / "checkpoints" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"step": 3, "sum": 100.0}')
    assert shipped(begun).error is None
    assert '"step": 4, "sum": 100.' in state.read_text()  # it did not begin again


def test_a_job_that_a_dead_worker_of_the_node_began_goes_on_from_there(order, tmp_path):
    begun = order("true")
    state = tmp_path / "node" / "lightbox-a1" / "jobs" / begun.key / "checkpoints" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"step": 3, "sum": 100.0}')
    assert shipped(begun).error is None
    assert '"step": 4, "sum": 100.' in (begun.folder / "checkpoints" / "state.json").read_text()


def test_a_failing_job_sends_its_log_home_and_names_the_folder_there(order, toy, capfd):
    text = (toy / "world.py").read_text()
    fail = "    import os\n    os.write(1, b'so far')\n    raise ValueError(cfg)"
    (toy / "world.py").write_text(text.replace("    return cfg", fail))
    failing = replace(order("none"), source=parcels.whole_digest("toy"))
    outcome = shipped(failing)
    assert "ValueError" in outcome.error.why
    assert str(failing.folder) in outcome.error.do
    assert (failing.folder / "log.txt").read_text() == "so far"
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"  # standard output is what it was


def test_a_full_disk_of_a_node_fails_one_job_only(order, toy):
    text = (toy / "world.py").read_text()
    write = "    with open('/dev/full', 'wb', buffering=0) as file:\n        file.write(b'x')\n    return cfg"
    (toy / "world.py").write_text(text.replace("    return cfg", write))
    outcome = shipped(replace(order("none"), source=parcels.whole_digest("toy")))
    assert "The disk is full" in outcome.error.why
    assert not outcome.is_disk_full


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "0" * 64}, r"toy none, seed 0 was given to node .*Its source of toy is another one.*same commit"),
        ({"inputs": {"generator": "2"}}, r"Its generator and weights differ from those of this machine.*same files"),
    ],
)
def test_a_node_with_other_code_or_other_inputs_refuses_the_job(order, changes, message):
    other = replace(order("none"), **changes)
    outcome = shipped(other)
    with pytest.raises(RequestError, match=message):
        raise outcome.error
    assert not (other.folder / "scores.parquet").exists()


def test_a_node_with_other_versions_refuses_the_job(order):
    parcel, luggage = parcels.make_parcel(order("none"), "a1")
    other = replace(parcel, versions=parcel.versions | {"torch": "1.0", "numpy": "1.0"})
    error = parcels.run_parcel(other, luggage).outcome.error
    assert "where this machine has 1.0, 1.0" in error.why
    assert "uv.lock" in error.do


@pytest.mark.parametrize(
    ("engine", "address", "message"),
    [
        ("slurm", "", r"--engine is 'slurm'\. The engines are local and ray"),
        ("ray", "", r"--address is empty.*starts none.*ray start --head"),
        ("local", "127.0.0.1:6379", r"--address is '127.0.0.1:6379'.*would not be used.*Give --engine ray"),
        ("ray", "nonsense", r"named by host and port.*--address HOST:PORT"),
        ("ray", "ray://127.0.0.1:10001", "named by host and port"),
        ("ray", "127.0.0.1:99999", "named by host and port"),
        ("ray", ":6379", "named by host and port"),
    ],
)
def test_an_engine_and_an_address_that_do_not_fit_are_refused(engine, address, message):
    with pytest.raises(RequestError, match=message):
        runner.check_engine(engine, address)


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(RequestError, match=rf"127\.0\.0\.1:{port}.*Nothing listens there: Connection refused"):
        runner.check_engine("ray", f"127.0.0.1:{port}")
    assert time.monotonic() - begun < 5


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(RequestError, match="ray is not installed here.*extra 'ray' of lightbox-core"):
        runner.check_engine("ray", "127.0.0.1:6379")


def test_a_listener_that_is_no_ray_head_is_refused_within_the_patience(monkeypatch):
    monkeypatch.setattr(ray_connection, "PROBE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        runner.check_engine("ray", address)
        with pytest.raises(RequestError, match="did not answer as the head of a Ray cluster within 1 s.*6379"):
            ray_connection.check_answers(address)


def test_a_machine_outside_the_cluster_is_told_how_to_join():
    with pytest.raises(RequestError, match=r"No node of that cluster runs on this.*ray start --address=10\.0\.0\.5:1 "):
        ray_connection.check_membership("10.0.0.5:1")


def test_the_refusal_of_an_address_exits_2_and_imports_neither_torch_nor_ray():
    code = (
        "import sys; from lightbox.cli import main\n"
        "sys.argv = ['lightbox', 'reproduce', '--preset', 'smoke', '--engine', 'ray', '--address', '127.0.0.1:1']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n"
        "    sys.exit(9 if {'torch', 'transformers', 'ray', 'mlflow'} & sys.modules.keys() else stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["What was given", "Why", "What to do"]
    assert not Path("lightbox-out").exists()


class LostError(Exception):
    """Stands for what Ray raises where a worker died."""


class TaskError(LostError):
    """Stands for what Ray raises where the task raised."""

    cause = None


class Cluster:
    """Stands for the module ray: what is sent is lost as often as `losses` says, and then runs here."""

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=TaskError)

    def __init__(self, losses, error):
        self.losses, self.error, self.cpus, self.sent = losses, error, 2.0, []

    def cluster_resources(self):
        return {"CPU": self.cpus} if self.cpus else {}

    def put(self, value):
        return value

    def wait(self, references, **_):
        return references, []

    def remote(self, parcel, luggage):
        self.sent.append((parcel, luggage))
        return len(self.sent)

    def get(self, reference):
        if reference <= self.losses:
            raise self.error
        return parcels.run_parcel(*self.sent[reference - 1])


@pytest.fixture
def make_pool():
    """A function: a pool over a cluster that loses what it is sent at first."""

    def build(losses=0, error=None, size=None):
        pool = ray_pool.RayPool("here:1", size=size, sources={})
        pool._ray = pool._send = Cluster(losses, error or LostError("the worker\ndied"))
        return pool

    return build


def collected(pool):
    outcomes = []
    while pool.busy:
        outcomes += pool.collect(timeout_s=1)
    return outcomes


def test_a_lost_job_is_sent_again_and_the_log_says_so(make_pool, order, caplog):
    pool = make_pool(losses=ray_pool.RETRIES)
    pool.give(order("none"))
    (outcome,) = collected(pool)
    assert outcome.error is None
    assert (order("none").folder / "scores.parquet").exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "toy none, seed 0 was lost (LostError: the worker); attempt 2 of 4" in caplog.text


def test_a_job_that_is_lost_every_time_is_given_up(make_pool, order):
    pool = make_pool(losses=99)
    pool.give(order("none"))
    (outcome,) = collected(pool)
    assert "died 4 times, at last with LostError: the worker" in outcome.error.why
    assert len(pool._ray.sent) == 1 + ray_pool.RETRIES


def test_a_worker_that_cannot_run_the_job_is_not_asked_twice(make_pool, order):
    pool = make_pool(losses=99, error=TaskError("No module named 'toy'"))
    pool.give(order("none"))
    (outcome,) = collected(pool)
    assert "No module named 'toy'" in outcome.error.why
    assert len(pool._ray.sent) == 1


def test_jobs_at_once_follow_the_cluster_and_the_option(make_pool, order, caplog):
    pool = make_pool()
    pool.give(order("none"))
    assert pool.has_room
    pool.give(order("true"))
    assert not pool.has_room
    pool._ray.cpus = 4.0
    assert pool.has_room  # a node joined
    pool._ray.cpus = 0
    assert not pool.has_room
    assert not pool.has_room
    assert caplog.text.count("has no CPU now") == 1
    assert len(collected(pool)) == 2
    single = make_pool(size=1)
    single.give(order("none"))
    assert not single.has_room


def test_a_full_disk_here_ends_the_run(make_pool, order, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    pool = make_pool()
    pool.give(order("none"))
    monkeypatch.setattr(ray_pool, "unpack", full)
    (outcome,) = collected(pool)
    assert outcome.is_disk_full
