"""`lightbox index-server`: 8 writers at once, the server killed in their middle, and nothing lost.

PostgreSQL refuses to run as root and then runs as another user, who must be able to enter the folder: hence one under
the system's temporary folder instead of pytest's, which is closed to others.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import requests

from lightbox.runs import folders, index, index_entry, index_place, index_waiting
from lightbox.testing.fake_runs import write_job

_log = logging.getLogger(__name__)  # shown by `-o log_cli=true --log-cli-level=INFO`
pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.usefixtures("own_index_environment")]

ARMS, ROUNDS = 8, 3
WAIT_S = 20.0  # the start of the next server comes on top, so that it is away for more than 30 s

# One process imports mlflow and divides into 8, each of which does what the end of a training does, in three rounds.
WRITERS = """
import json, os, sys, time
from pathlib import Path
from lightbox.runs import index, index_place
index_place.prepare_environment()
index._mlflow_errors(), index._new_client(index_place.index_uri(Path('.')))  # the slow imports, once
out, arms, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
(out / 'imported').touch()

def write(arm):
    tracker, seconds = index.open_tracker(out), []
    for number in range(rounds):
        while not (out / f'go-{number}').exists():
            time.sleep(0.02)
        begun = time.monotonic()
        tracker.single(out / 'runs' / f'arm-{arm}-{number}')
        seconds.append(time.monotonic() - begun)
        (out / f'done-{number}-{arm}').write_text(json.dumps(seconds))
        if number == 1 and arm % 2:
            break  # half of them end while the server is away
    begun = time.monotonic()
    tracker.close()
    (out / f'closed-{arm}').write_text(json.dumps(time.monotonic() - begun))

for arm in range(arms):
    if os.fork() == 0:
        write(arm)
        os._exit(0)
for _ in range(arms):
    assert os.wait()[1] == 0
"""


@pytest.fixture
def home():
    """A folder that the user `postgres` can enter; what runs in it is ended."""
    folder = Path(tempfile.mkdtemp(prefix="lightbox-"))
    folder.chmod(0o755)
    yield folder
    kill_all(folder)
    shutil.rmtree(folder)


def start(folder, port):
    """The documented command, and when it was given."""
    command = [str(Path(sys.executable).with_name("lightbox")), "index-server", str(folder), "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def await_ready(process):
    """Read what it prints up to the address."""
    for line in process.stdout:
        if line.startswith("Elsewhere: "):
            return line.split("=")[1].strip()
    pytest.fail(f"it ended: {process.stderr.read()}")


def kill_all(folder):
    """SIGKILL for all processes that name the folder: the command, MLflow's, PostgreSQL's."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and str(folder / "server") in " ".join(process.cmdline()):
                process.kill()


def await_files(out, pattern, count, *, timeout_s=300):
    end = time.monotonic() + timeout_s
    while len(list(out.glob(pattern))) < count:
        assert time.monotonic() < end, f"{pattern}: {sorted(path.name for path in out.glob(pattern))}"
        time.sleep(0.05)


def seconds_of(out, pattern):
    return [float(path.read_text().strip("[]").split(",")[-1]) for path in out.glob(pattern)]


def check_index(out, uri):
    """Each run is in the index once, with all that its folder holds, and files are the same to the byte."""
    client = index._new_client(uri)
    experiment = client.get_experiment_by_name("medthink")
    found = list(client.search_runs([experiment.experiment_id], max_results=1000))
    written = {path.name: path for path in (out / "runs").iterdir()}
    assert Counter(run.data.tags["job_key"] for run in found) == dict.fromkeys(written, 1)
    for run in found:
        folder = written[run.data.tags["job_key"]]
        own = folders.read_run(folder)
        assert run.info.status == "FINISHED"
        assert index_entry.run_tags(own).items() <= run.data.tags.items()
        assert run.data.params == index_entry.run_params(own)
        points = list(index_entry.run_metrics(own))
        assert set(run.data.metrics) == {key for key, _, _ in points}
        curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert curve == [(step, pytest.approx(value)) for key, value, step in points if key == "train/loss"]
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        place = run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
        for name in index.FILES:
            address = f"{uri}/api/2.0/mlflow-artifacts/artifacts/{place}/{name}"
            assert requests.get(address, timeout=60).content == (folder / name).read_bytes()


@pytest.mark.timeout(900)
def test_eight_writers_lose_nothing_where_the_server_is_killed_in_their_middle(home, monkeypatch):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = home / "out"
    for arm in range(ARMS):
        for number in range(ROUNDS):
            write_job(out, f"arm-{arm}", number, place="runs", key=f"arm-{arm}-{number}")
    clock = time.monotonic()
    server = start(home / "server", port)
    uri = await_ready(server)
    _log.info("first start %.1f s", time.monotonic() - clock)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    writers = subprocess.Popen([sys.executable, "-c", WRITERS, str(out), str(ARMS), str(ROUNDS)])
    await_files(out, "imported", 1)
    (out / "go-0").touch()
    await_files(out, "done-0-*", ARMS)
    _log.info("8 writers at once, slowest %.1f s", max(seconds_of(out, "done-0-*")))

    (out / "go-1").touch()
    time.sleep(0.3)  # some have begun to write, none has ended
    killed = time.monotonic()
    kill_all(home)
    server.communicate()  # which closes its pipes, too
    await_files(out, "done-1-*", ARMS)
    await_files(out, "closed-*", ARMS // 2)
    slowest = max(seconds_of(out, "done-1-*")), max(seconds_of(out, "closed-*"))
    _log.info("killed under them, slowest %.1f s; an end without a server %.1f s", slowest[0], slowest[1])
    assert max(slowest) < 15
    assert (out / index_waiting.FILE).exists()

    time.sleep(max(0.0, WAIT_S - (time.monotonic() - killed)))
    server = start(home / "server", port)
    assert await_ready(server) == uri
    _log.info("away for %.1f s", time.monotonic() - killed)
    (out / "go-2").touch()
    assert writers.wait(timeout=300) == 0
    _log.info("the rest written, slowest %.1f s", max(seconds_of(out, "done-2-*")))
    index.open_tracker(out).close()  # a later command brings what is left
    assert not (out / index_waiting.FILE).exists()
    left_out = {f"arm-{arm}-2" for arm in range(1, ARMS, 2)}  # of those that ended early: never logged
    for name in left_out:
        shutil.rmtree(out / "runs" / name)
    check_index(out, uri)

    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(timeout=0.1)
    server.send_signal(signal.SIGTERM)
    said, _ = server.communicate(timeout=60)
    assert (server.returncode, "Stopped." in said) == (0, True)
    with pytest.raises(OSError, match="Connection refused"):
        index_place.probe(uri)
    assert "database system is shut down" in (home / "server" / "postgres.log").read_text()
    _log.info("in all %.1f s", time.monotonic() - clock)
