"""What a cluster needs and no cluster is needed for: refusals, packing, a job on a node, what becomes of a loss."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightbox import machine
from lightbox.claims import ray_pool, runner
from lightbox.claims.jobs import plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.runner import Finished
from lightbox.claims.worker import run_order
from lightbox.errors import RequestError, WorkError
from lightbox.runs.sources import whole_digest
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


def shipped(order, *, versions=None):
    """Run an order as a node does, and put what comes home into its folder."""
    needs = [ray_pool.pack(folder) for folder in order.needs.values()]
    versions = versions or machine.versions(ray_pool.COMPARED)
    outcome, files = ray_pool.run_on_node(order, "lightbox-a1", versions, ray_pool.pack(order.folder), *needs)
    ray_pool.unpack(files, order.folder)
    return outcome


def test_files_come_back_as_they_were_without_locks_and_staged_writes(tmp_path):
    folder, copy = tmp_path / "job", tmp_path / "out" / "job"
    (folder / "checkpoints" / ".staged").mkdir(parents=True)
    for name in ("scores.parquet", "checkpoints/state.json", ".lock", ".card.json.tmp-7", "checkpoints/.staged/part"):
        (folder / name).write_bytes(os.urandom(100))
    ray_pool.unpack(ray_pool.pack(folder), copy)
    files = [str(path.relative_to(copy)) for path in sorted(copy.rglob("*")) if path.is_file()]
    assert files == ["checkpoints/state.json", "scores.parquet"]
    assert all((copy / path).read_bytes() == (folder / path).read_bytes() for path in files)
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("inside", ["../evil", "/evil", "checkpoints/../../evil"])
def test_what_arrives_cannot_write_beside_its_folder(inside, tmp_path):
    with pytest.raises(WorkError, match="would lie outside"):
        ray_pool.unpack({inside: b"x", "good": b"x"}, tmp_path / "out" / "job")
    assert list(tmp_path.iterdir()) == []


def test_files_that_a_node_deleted_are_gone_at_home(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / name).touch()
    ray_pool.unpack(ray_pool.pack(tmp_path / "new"), tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").rglob("*")] == ["checkpoints", "new"]


def test_a_folder_that_a_full_disk_cuts_short_leaves_the_earlier_one(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if path.name == "scores.parquet":
            raise OSError(28, "No space left on device")
        return write(path, content)

    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "state.json").write_text("earlier")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        ray_pool.unpack({"state.json": b"later", "scores.parquet": b"x"}, tmp_path / "job")
    assert (tmp_path / "job" / "state.json").read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [tmp_path / "job"]


def test_a_job_runs_on_a_node_with_what_it_needs_and_comes_home_whole(order, tmp_path):
    first = order("true")
    assert shipped(first).error is None
    second = order("twice", [first.folder])
    outcome = shipped(second)
    assert outcome.error is None
    assert outcome.ran.keys() == {"commit", "hardware", "versions"}
    assert (second.folder / "log.txt").exists()
    direct = replace(second, folder=tmp_path / "direct")
    assert run_order(direct).error is None
    assert (second.folder / "scores.parquet").read_bytes() == (direct.folder / "scores.parquet").read_bytes()
    assert list((tmp_path / "node" / "lightbox-a1" / "jobs").iterdir()) == []  # the node keeps nothing of a job
    ray_pool.clear_node("lightbox-a1")
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
    failing = replace(order("none"), source=whole_digest("toy"))
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
    outcome = shipped(replace(order("none"), source=whole_digest("toy")))
    assert "The disk is full" in outcome.error.why
    assert not outcome.is_disk_full


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "0" * 64}, r"toy none, seed 0 was given to node .*source of toy \(\w{12} there, 0{12} here\)"),
        ({"inputs": {"generator": "2"}}, r"differs in generator \(1 there, 2 here\), weights \(.*same files"),
        ({"inputs": {"generator": "1", "weights": "ab"}}, r"differs in weights \(\w{12} there, ab here\)"),
    ],
)
def test_a_node_with_other_code_or_other_inputs_refuses_the_job(order, changes, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        shipped(replace(order("none"), **changes))
    assert list((tmp_path / "node").iterdir()) == []  # nothing was begun


def test_a_node_with_other_switches_refuses_the_job_and_one_with_the_same_takes_it(order, monkeypatch):
    plain = order("none")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with pytest.raises(RequestError, match=r"differs in ATEN_CPU_CAPABILITY \(avx2 there,  here\)"):
        shipped(plain)
    same = replace(plain, inputs=plain.inputs | {"ATEN_CPU_CAPABILITY": "avx2"})
    assert shipped(same).error is None


def test_a_node_with_other_versions_refuses_the_job(order):
    versions = machine.versions(ray_pool.COMPARED) | {"torch": "1.0", "numpy": "1.1"}
    with pytest.raises(RequestError, match=r"numpy \(\S+ there, 1\.1 here\), torch \(\S+ there, 1\.0 here\).*uv sync"):
        shipped(order("none"), versions=versions)


def test_another_source_is_named_even_where_it_cannot_read_the_configuration(order, toy):
    before = order("none")
    (toy / "config.py").write_text("def resolve(overrides):\n    raise KeyError(overrides)\n")
    with pytest.raises(RequestError, match="source of toy"):
        shipped(before)


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


def test_a_listener_that_is_no_ray_head_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        runner.check_engine("ray", address)
        begun = time.monotonic()
        with pytest.raises(RequestError, match="No node of a cluster with that head.*Correct the port, 6379 by"):
            ray_pool.connect(address)
        assert time.monotonic() - begun < 5


def test_a_machine_outside_the_cluster_is_told_how_to_join():
    with pytest.raises(RequestError, match=r"runs on this machine.*join.*: `ray start --address=10\.0\.0\.5:1 "):
        ray_pool.connect("10.0.0.5:1")


@pytest.mark.parametrize(
    "err",
    [RuntimeError("Version mismatch: Ray 2.9 there\nPython"), ConnectionError("Version mismatch: Ray 2.9 there")],
)
def test_what_ray_says_against_this_machine_is_a_refusal(monkeypatch, err):
    def init(*_, **__):
        raise err

    beside = SimpleNamespace(info={"cmdline": ["raylet", "--gcs-address=10.0.0.5:6379"]})
    monkeypatch.setattr("psutil.process_iter", lambda _: [beside])
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(RequestError, match=r"let this machine in: Version mismatch: Ray 2\.9 there\. Start Ray from"):
        ray_pool.connect("10.0.0.5:6379")


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
        self.losses, self.error, self.sent = losses, error, []

    def put(self, value):
        return value

    def wait(self, references, **_):
        return references[:1], references[1:]

    def remote(self, *sent):
        self.sent.append(sent)
        return len(self.sent)

    def get(self, reference):
        if reference <= self.losses:
            raise self.error
        return ray_pool.run_on_node(*self.sent[reference - 1])


@pytest.fixture
def make_pool():
    """A function: a pool over a cluster that loses what it is sent at first."""

    def build(losses=0, error=None, size=None):
        pool = ray_pool.RayPool("here:1", size=size)
        pool._ray = pool._send = Cluster(losses, error or LostError("the worker\ndied"))
        pool._stored = ray_pool.pack
        pool._on_every_node = lambda *_, **__: []
        return pool

    return build


def collected(pool):
    outcomes = []
    while pool.busy:
        outcomes += pool.collect(timeout_s=1)
    return outcomes


def test_a_job_that_ray_gave_up_fails_alone_and_names_the_loss(make_pool, order):
    pool = make_pool(losses=1)
    pool.give(order("none"))
    pool.give(order("true"))
    first, second = collected(pool)
    assert "gave it up after up to 3 retries: LostError, the worker." in first.error.why
    assert str(order("none").folder) in first.error.given
    assert second.error is None


def test_a_node_that_cannot_begin_a_job_ends_the_run(make_pool, order):
    pool = make_pool(losses=99, error=TaskError("No module named 'toy'"))
    pool.give(order("none"))
    with pytest.raises(RequestError, match="could not even begin it: No module named 'toy'.*same commit"):
        collected(pool)
    assert len(pool._ray.sent) == 1


def test_what_a_node_says_against_a_job_ends_the_run(make_pool, order):
    refused = TaskError("traceback")
    refused.cause = RequestError("toy none was given to node b", "It differs in torch", "Sync it")
    pool = make_pool(losses=1, error=refused)
    pool.give(order("none"))
    with pytest.raises(RequestError, match=r"^toy none was given to node b\. It differs in torch\. Sync it\.$"):
        collected(pool)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (RequestError("toy none was given to node b", "It differs in torch", "Sync it"), "It differs in torch"),
        (ModuleNotFoundError("No module named 'toy'"), "toy none, seed 0.*could not even begin it: No module named"),
    ],
)
def test_all_nodes_are_asked_about_their_code_once_a_paper_before_a_job_is_sent(make_pool, order, cause, message):
    refused, asked = TaskError("traceback"), []
    refused.cause = cause
    pool = make_pool(losses=1, error=refused)
    pool._on_every_node = lambda function, *_, **__: asked.append(function) or [1]
    with pytest.raises(RequestError, match=message):
        pool.give(order("none"))
    assert pool._ray.sent == []
    assert asked == [ray_pool.check_code]
    pool._ray.losses = 0
    pool.give(order("true"))
    assert asked == [ray_pool.check_code]


def test_a_node_that_dies_while_it_is_asked_is_only_warned_of(make_pool, order, caplog):
    pool = make_pool(losses=1)
    pool._on_every_node = lambda *_, **__: [1]
    pool.give(order("none"))
    assert "A node could not be checked: the worker" in caplog.text
    assert len(pool._ray.sent) == 1


def test_a_full_disk_of_a_node_that_cannot_begin_fails_one_job_only(make_pool, order):
    full = TaskError("traceback")
    full.cause = OSError(28, "No space left on device")
    pool = make_pool(losses=1, error=full)
    pool.give(order("none"))
    pool.give(order("true"))
    first, second = collected(pool)
    assert "The disk is full" in first.error.why
    assert not first.is_disk_full
    assert second.error is None


def test_ray_is_handed_all_jobs_at_once_or_as_many_as_the_option_says(make_pool, order):
    pool, single = make_pool(), make_pool(size=1)
    for arm in ("none", "true", "filler"):
        assert pool.has_room
        pool.give(order(arm))
    assert pool.has_room
    assert len(collected(pool)) == 3
    single.give(order("none"))
    assert not single.has_room


def test_a_cluster_without_a_cpu_is_warned_of(monkeypatch, caplog):
    resources = {"CPU": 1.0}
    ray = SimpleNamespace(cluster_resources=lambda: resources, remote=lambda **_: lambda function: function)
    monkeypatch.setattr(ray_pool, "connect", lambda address: ray)
    ray_pool.RayPool("here:1", size=None).__enter__()
    assert caplog.text == ""
    resources.clear()
    ray_pool.RayPool("here:1", size=None).__enter__()
    assert "The cluster at here:1 has no CPU now" in caplog.text


def test_a_full_disk_here_ends_the_run(make_pool, order, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    pool = make_pool()
    pool.give(order("none"))
    monkeypatch.setattr(ray_pool, "unpack", full)
    (outcome,) = collected(pool)
    assert outcome.is_disk_full
