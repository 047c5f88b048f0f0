"""An index that is away, hangs, answers with a fault or is locked: it costs seconds, and nothing is lost."""

import json
import logging
import socket
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightbox.cli import doctor, main
from lightbox.errors import RequestError, WorkError
from lightbox.runs import index, index_place, index_server, index_waiting
from lightbox.testing.fake_runs import write_job

pytestmark = pytest.mark.usefixtures("own_index_environment")


@pytest.fixture
def out(indexed_out, monkeypatch):
    """An output folder whose index is tried again at once, and whose locks are waited for briefly."""
    monkeypatch.setattr(index_place.probe, "__kwdefaults__", {"timeout_s": 0.1})
    monkeypatch.setattr(index, "RETRY_S", 0.0)
    monkeypatch.setattr(index, "RETRY_SHARE", 0.0)
    monkeypatch.setattr(index, "LAST_GAP_S", 0.0)
    return indexed_out


@contextmanager
def locked(out):
    """Inside of the block nobody else can write the index."""
    with closing(sqlite3.connect(out / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield
        holder.execute("ROLLBACK")


def arms_of(out, *, kind="train"):
    """Arm and status of each run in the index, sorted."""
    client = index._new_client(index_place.sqlite_uri(out.resolve() / "mlflow.db"))
    experiment = client.get_experiment_by_name("medthink")
    found = [] if experiment is None else client.search_runs([experiment.experiment_id])
    return sorted((r.data.tags.get("arm", ""), r.info.status) for r in found if r.data.tags["kind"] == kind)


def waiting_of(out):
    path = out / index_waiting.FILE
    return json.loads(path.read_text()) if path.exists() else {}


def one_training(out, arm):
    return write_job(out, arm, 0, place="runs", key=f"{arm}-0123")


class Faulty(BaseHTTPRequestHandler):
    """Answers /health with `server.health`, and all else with `server.others`; 0 keeps the caller waiting."""

    def do_GET(self):
        self.server.seen.append(self.path)
        status = self.server.health if self.path == "/health" else self.server.others
        if status == 0:
            self.server.is_over.wait(30)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_GET

    def log_message(self, *arguments):
        """Say nothing on stderr."""


@contextmanager
def faulty_server(*, health, others=500, body=b""):
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        server.health, server.others, server.body = health, others, body
        server.seen, server.is_over = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


def free_port():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def log_one(out, monkeypatch, port):
    """What the end of a training does, against the server at a port; seconds and the tracker."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    folder = one_training(out, "explanation")
    start = time.monotonic()
    tracker = index.open_tracker(out)
    assert tracker.single(folder) == ""
    tracker.close()
    return time.monotonic() - start, tracker


def test_a_closed_port_is_noticed_at_once_and_warned_of_once(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, logger="lightbox.runs.index"):
        wall_s, tracker = log_one(tmp_path, monkeypatch, free_port())
    assert wall_s < 2
    assert len(caplog.records) == 1
    assert "Connection refused" in tracker.problem.why
    assert "--rebuild-index" in tracker.problem.do
    with pytest.raises(WorkError, match="Connection refused"):
        index.rebuild(tmp_path)


def test_a_server_that_answers_500_is_noticed_at_once_and_the_run_waits(tmp_path, monkeypatch, caplog):
    with faulty_server(health=500) as server, caplog.at_level(logging.WARNING, logger="lightbox.runs.index"):
        wall_s, tracker = log_one(tmp_path, monkeypatch, server.server_port)
    assert wall_s < 2
    assert server.seen == ["/health"]
    assert len(caplog.records) == 1
    assert "status 500" in tracker.problem.why
    uri = f"http://127.0.0.1:{server.server_port}"
    assert waiting_of(tmp_path) == {uri: {"runs": {"runs/explanation-0123": []}}}


def test_a_server_that_never_answers_costs_one_short_wait(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(index_place, "HEALTH_S", 0.5)
    with faulty_server(health=0) as server, caplog.at_level(logging.WARNING, logger="lightbox.runs.index"):
        wall_s, tracker = log_one(tmp_path, monkeypatch, server.server_port)
    assert 0.4 < wall_s < 2
    assert len(caplog.records) == 1
    assert "did not answer" in tracker.problem.why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "body"), [(500, ""), (0, ""), (404, ""), (200, ""), (200, "{}"), (200, "[]"), (200, "<p>It works")]
)
def test_a_server_that_is_well_and_cannot_work_costs_seconds_not_minutes(tmp_path, monkeypatch, others, body):
    """Its database is gone, so that requests fail or hang (0); or it is no MLflow at all."""
    index._mlflow_errors()  # the import is not what is measured
    with faulty_server(health=200, others=others, body=body.encode()) as server:
        wall_s, tracker = log_one(tmp_path, monkeypatch, server.server_port)
    assert tracker.problem is not None
    assert wall_s < 15
    assert waiting_of(tmp_path)


def test_an_index_that_is_away_is_not_asked_again_for_each_run(tmp_path, monkeypatch):
    with faulty_server(health=500) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        tracker = index.open_tracker(tmp_path)
        for arm in ("a", "b", "c", "d"):
            assert tracker.single(one_training(tmp_path, arm)) == ""
        tracker.close()
    assert server.seen == ["/health"]


def test_a_locked_database_is_waited_for_briefly_then_left_alone(out, caplog):
    before = (out / "mlflow.db").read_bytes()
    with locked(out), caplog.at_level(logging.WARNING, logger="lightbox.runs.index"):
        tracker = index.open_tracker(out)
        assert tracker.parent("medthink", "quick", {}) == ""
        assert len(caplog.records) == 1
        assert "locked" in tracker.problem.why
        with pytest.raises(WorkError, match="locked"):
            index.rebuild(out)
    assert (out / "mlflow.db").read_bytes() == before
    assert list(out.glob("*.aside-*")) == []


def test_the_next_run_brings_those_that_waited(out, caplog):
    tracker = index.open_tracker(out)
    with locked(out):
        assert tracker.single(one_training(out, "first")) == ""
    with caplog.at_level(logging.WARNING, logger="lightbox.runs.index"):
        assert tracker.single(one_training(out, "second")) != ""
    tracker.close()
    assert arms_of(out) == [("first", "FINISHED"), ("second", "FINISHED")]
    assert waiting_of(out) == {}
    assert "waited and are in it now: 1" in caplog.text


def test_the_end_of_the_work_brings_runs_that_waited_and_their_parent(out):
    with locked(out):
        tracker = index.open_tracker(out)
        assert tracker.parent("medthink", "quick", {}) == ""
        assert tracker.child("", write_job(out, "explanation", 0), ["T1"]) == ""
    tracker.close()
    assert arms_of(out, kind="job") == [("explanation", "FINISHED")]
    assert arms_of(out, kind="reproduce") == [("", "FINISHED")]
    assert waiting_of(out) == {}


def test_a_later_process_brings_runs_that_waited_and_says_how_their_parent_ended(out):
    tracker = index.open_tracker(out)
    parent = tracker.parent("medthink", "quick", {})
    with locked(out):
        assert tracker.child(parent, write_job(out, "explanation", 0), ["T1"]) == ""
        tracker.close("KILLED")
    assert arms_of(out, kind="job") == []
    index.open_tracker(out).close()
    assert arms_of(out, kind="job") == [("explanation", "FINISHED")]
    assert arms_of(out, kind="reproduce") == [("", "KILLED")]
    assert waiting_of(out) == {}


def test_a_run_whose_folder_is_gone_waits_no_longer(out):
    with locked(out):
        tracker = index.open_tracker(out)
        folder = one_training(out, "first")
        tracker.single(folder)
    folder.rename(out / "elsewhere")
    tracker.close()
    assert waiting_of(out) == {}
    assert arms_of(out) == []


def test_a_damaged_list_of_what_waits_is_set_aside_and_stops_nothing(out, caplog):
    (out / index_waiting.FILE).write_text("{")
    tracker = index.open_tracker(out)
    assert tracker.single(one_training(out, "first")) != ""
    assert (out / index_waiting.FILE).with_suffix(".damaged").read_text() == "{"
    assert "--rebuild-index" in caplog.text


def test_a_request_that_was_sent_twice_leaves_one_run(out):
    """Where an answer is lost on its way, mlflow sends the request again, and the server has done it twice."""
    tracker = index.open_tracker(out)
    create = tracker._client.create_run
    tracker._client.create_run = lambda *words, **options: (create(*words, **options), create(*words, **options))[1]
    assert tracker.single(one_training(out, "first")) != ""
    assert arms_of(out) == [("first", "FINISHED")]


def test_an_experiment_that_another_process_makes_meanwhile_is_used(out):
    tracker = index.open_tracker(out)
    index.open_tracker(out).single(one_training(out, "first"))
    find, misses = tracker._client.get_experiment_by_name, [None]
    tracker._client.get_experiment_by_name = lambda name: misses.pop() if misses else find(name)
    assert tracker.single(one_training(out, "second")) != ""
    assert arms_of(out) == [("first", "FINISHED"), ("second", "FINISHED")]


def test_a_run_that_the_index_refuses_holds_up_no_other_one(out, monkeypatch, caplog):
    refusal = index._mlflow_errors()[0].invalid_parameter_value("no such thing")
    fill = index.Tracker._fill

    def refuse_first(tracker, run_id, run):
        if run.arm == "first":
            raise refusal
        fill(tracker, run_id, run)

    monkeypatch.setattr(index.Tracker, "_fill", refuse_first)
    tracker = index.open_tracker(out)
    assert tracker.single(one_training(out, "first")) == ""
    assert tracker.single(one_training(out, "second")) != ""
    assert tracker.problem is None
    assert arms_of(out) == [("second", "FINISHED")]
    assert "refuses it: no such thing" in caplog.text


def test_two_processes_never_write_the_same_run_at_once(out, monkeypatch):
    monkeypatch.setattr(index, "BUSY_S", 0.1)
    folder = one_training(out, "first")
    tracker = index.open_tracker(out)
    with index.open_tracker(out)._alone(folder.name):
        assert tracker.single(folder) == ""
    assert tracker.problem is None
    tracker.close()
    assert arms_of(out) == [("first", "FINISHED")]


def test_a_password_in_the_address_is_neither_shown_nor_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}/mlflow")
    tracker = index.open_tracker(tmp_path)
    tracker.single(one_training(tmp_path, "first"))
    tracker.close()
    assert "127.0.0.1" in (tmp_path / index_waiting.FILE).read_text()
    assert "secret" not in (tmp_path / index_waiting.FILE).read_text() + caplog.text


def test_the_doctor_asks_the_server_and_counts_what_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    tracker = index.open_tracker(tmp_path)
    tracker.single(one_training(tmp_path, "first"))
    check = doctor.look_index(tmp_path / "mlflow.db")
    assert check.state == "missing"
    assert "Connection refused" in check.found
    assert "1 waits" in check.found


def test_a_port_in_use_is_said_in_three_parts_and_its_owner_goes_on(tmp_path, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as owner:
        port = owner.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            main(["index-server", str(tmp_path / "server"), "--port", str(port)])
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["What was given", "Why", "What to do"]
    assert f"--port is {port}" in lines[0]
    assert "Address already in use" in lines[1]
    assert not (tmp_path / "server").exists()


def test_a_machine_without_postgresql_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(index_server, "PLACES", (f"{tmp_path}/*/bin",))
    with pytest.raises(RequestError, match="apt-get install postgresql"):
        index_server.find_programs(tmp_path)


def test_a_database_of_another_postgresql_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(index_server, "version", lambda programs: 15)
    monkeypatch.setattr(index_server, "PLACES", (f"{tmp_path}/*/bin",))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "15" / "bin").mkdir(parents=True)
    (tmp_path / "15" / "bin" / "postgres").touch()
    assert index_server.find_programs(tmp_path / "server") == tmp_path / "15" / "bin"
    (tmp_path / "server" / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "server" / "postgres" / "data" / "PG_VERSION").write_text("13\n")
    with pytest.raises(RequestError, match="made by PostgreSQL 13"):
        index_server.find_programs(tmp_path / "server")


def test_a_folder_whose_socket_would_have_too_long_a_path_is_refused(tmp_path):
    with pytest.raises(RequestError, match="shorter path"):
        index_server.check_folder(tmp_path / ("long" * 30), index_server.Account())
