"""MLflow as an index of run folders: SQLite in the output folder, or the server that MLFLOW_TRACKING_URI names.

One experiment a paper, one parent run a `reproduce`, one child run a job. The run folder stays the truth, so tracking
is never on the critical path: a server that does not answer or a locked database is noticed in seconds and warned of
once. Runs that end meanwhile wait in a file (`index_waiting`); they are written when the index answers again, by this
process or a later one, or all of them by `rebuild`. Only the parent process writes. mlflow is imported in functions: it
takes 3-9 s.
"""

import functools
import json
import logging
import math
import platform
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock, Timeout

from lightbox.errors import LightboxError, WorkError
from lightbox.files import digest
from lightbox.runs import folders, index_entry, index_place
from lightbox.runs.index_waiting import Waiting

CREATION_S = 120.0  # a migration takes long where many trainings begin at once on few cores
BUSY_S = 10.0  # how long to wait where another process writes the same run
RETRY_S, RETRY_SHARE = (
    15.0,
    20.0,
)  # an index that is away is tried again after so long, or so many times what a try took
WORK_FLUSH_S, LAST_FLUSH_S = 10.0, 60.0  # what waits is written for so long while work goes on, and at the end
LAST_GAP_S = 5.0  # no last try so soon after one that failed
FILES = ("job.json", "scores.parquet", "history.json", "examples.json", "card.json")

_log = logging.getLogger("lightbox.runs.index")


def open_tracker(out: Path) -> "Tracker":
    """Open the index of an output folder; the database is created here, under a lock, before any worker starts.

    Of an index that cannot be reached it warns once; what is written then waits, and the methods return "".
    """
    index_place.prepare_environment()
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(out, index_place.index_uri(out))
    tracker.connect()
    return tracker


def rebuild(out: Path) -> int:
    """Index every finished run under `out`; runs already indexed stay, so a second call changes nothing.

    A database that cannot be opened, or that was made while the folder had another place, is set aside, not deleted.

    Returns:
        The number of runs in the index: jobs and single trainings, parents not counted.

    Raises:
        WorkError: where the index cannot be written.
    """
    tracker = open_tracker(out)
    if not tracker.is_sound() and tracker.has_own_database and not index_place.is_locked(tracker.cause):
        _log.warning("The old index is now %s", index_place.set_aside(tracker.out / "mlflow.db"))
        tracker = open_tracker(out)
    claims, count = _claims_by_job(tracker.out), 0
    for folder in folders.run_folders(tracker.out):
        count += bool(tracker.write(folder, claims.get(folder.name) or claims.get(folder.name.rpartition("-")[0], [])))
    tracker.close()
    if tracker.problem is not None:
        raise tracker.problem
    return count


class Tracker:
    """Writes runs to the index; made by `open_tracker`. `problem` is None while the index can be written.

    Methods return "" for what could not be written now; a later call may find the index in order again.
    """

    def __init__(self, out: Path, uri: str) -> None:
        self.out, self.uri = out, uri
        self.problem: WorkError | None = None
        self.cause: Exception | None = None
        self.has_own_database = uri == index_place.sqlite_uri(out / "mlflow.db")
        # In an index that folders share, the same job of two folders is two runs.
        self._place = "" if self.has_own_database else digest(f"{platform.node()}:{out}")[:16]
        self._waiting = Waiting(out, index_place.shown(uri))
        self._parents: dict[str, str] = {}  # run ids of those opened here
        self._own: set[str] = set()  # keys of those that `parent` was asked for, also where it could not be opened
        self._tried_at = self._failed_at = self._retry_at = -math.inf

    def connect(self) -> None:
        """Create the database where there is none, probe, and write what earlier processes could not."""
        database = index_place.database_of(self.uri)
        if database is not None and not database.exists():
            self._attempt(lambda: _create_database(database), is_probed=False)
        self._attempt(lambda: "")
        self._flush(WORK_FLUSH_S)

    def is_sound(self) -> bool:
        """True where mlflow itself can read the index and its artifacts belong to this folder."""

        def work() -> str:
            for experiment in self._client.search_experiments():
                if experiment.experiment_id != "0":  # mlflow's own "Default"
                    self._check_home(experiment)
            return ""

        self._attempt(work)
        return self.problem is None

    def parent(self, paper: str, preset: str, tags: dict[str, str]) -> str:
        """Open the parent run of one paper's `reproduce`, or continue this folder's earlier one; its run id, or ""."""
        self._own.add(_parent_key(paper, preset))
        return self._attempt(lambda: self._open_parent(paper, preset, tags)) or ""

    def child(self, parent_id: str, job_directory: Path, claims: list[str]) -> str:
        """Index one finished job under its parent; one already indexed only gains claims. Its run id, or "".

        Without `parent_id`, as where the index was away when the parent was to be opened, that is opened now.
        """
        return self._write_or_wait(job_directory, claims, parent_id)

    def single(self, run_directory: Path) -> str:
        """Index one run of `lightbox train`; its run id, or ""."""
        return self._write_or_wait(run_directory, [])

    def write(self, folder: Path, claims: list[str], parent_id: str = "") -> str | None:
        """Index the run in a folder; its run id, "" where there is nothing to write, None where that must wait."""
        run_id = self._attempt(lambda: self._index(folder, claims, parent_id))
        if run_id is not None:
            self._note(lambda: self._waiting.drop_run(self._name(folder)))
        return run_id

    def close(self, status: str = "FINISHED") -> None:
        """Write what waits, then end the parent runs with an MLflow status: FINISHED, FAILED or KILLED."""
        self._retry_at = min(self._retry_at, self._failed_at + LAST_GAP_S)
        self._flush(LAST_FLUSH_S)
        recorded = self._waiting.parents()
        for key in dict.fromkeys([*self._own, *self._parents, *recorded]):
            wanted = status if key in self._own else recorded.get(key, "FINISHED")
            if self._attempt(lambda key=key, wanted=wanted: self._end_parent(key, wanted)) is None:
                self._note(lambda key=key, wanted=wanted: self._waiting.add_parent(key, wanted))
            else:
                self._note(lambda key=key: self._waiting.drop_parent(key))
        self._own.clear()
        self._parents.clear()

    def _write_or_wait(self, folder: Path, claims: list[str], parent_id: str = "") -> str:
        was_away = self.problem is not None
        run_id = self.write(folder, claims, parent_id)
        if run_id is None:
            self._note(lambda: self._waiting.add_run(self._name(folder), claims))
        elif was_away:
            self._flush(WORK_FLUSH_S)
        return run_id or ""

    def _flush(self, limit_s: float) -> None:
        """Write runs that wait, for about `limit_s` at most."""
        end, written = time.monotonic() + limit_s, 0
        for name, claims in self._waiting.runs().items():
            if time.monotonic() > end:
                return
            run_id = self.write(self.out / name, claims)
            if run_id is None:  # it is still away, or another process is at it
                break
            written += run_id != ""
        if written:
            _log.warning("The MLflow index is in order again; runs that waited and are in it now: %d", written)

    def _note(self, change: Callable[[], None]) -> None:
        """Change the list of what waits; where even that cannot be written, say so and go on."""
        try:
            change()
        except (LightboxError, OSError) as err:
            _log.warning("%s cannot be written: %s; `lightbox compare --rebuild-index` helps", self._waiting.path, err)

    def _name(self, folder: Path) -> str:
        return f"{folder.parent.name}/{folder.name}"

    def _open_parent(self, paper: str, preset: str, tags: dict[str, str]) -> str:
        key = _parent_key(paper, preset)
        if key not in self._parents:
            tags = {"kind": "reproduce", "paper": paper, "preset": preset} | tags
            with self._alone(key):
                self._parents[key], _ = self._start(paper, key, tags, name=f"{paper} {preset}")
            self._remember(key, self._parents[key])
            self._client.update_run(self._parents[key], status="RUNNING")
        return self._parents[key]

    def _end_parent(self, key: str, status: str) -> str:
        _, paper, preset = key.split(":")
        run_id = self._open_parent(paper, preset, {})
        self._client.set_terminated(run_id, status)
        return run_id

    @functools.cached_property
    def _client(self) -> Any:
        return _new_client(self.uri)

    def _index(self, folder: Path, claims: list[str], parent_id: str) -> str:
        run = folders.read_run(folder)
        if run is None:
            return ""
        tags = index_entry.run_tags(run) | {"kind": "train"}
        if folder.parent.name == folders.JOBS:
            parent_id = parent_id or self._open_parent(run.paper, run.preset, {})
            tags |= {"kind": "job", "mlflow.parentRunId": parent_id}
        with self._alone(folder.name):
            run_id, is_new = self._start(
                run.paper or "lightbox", folder.name, tags, name=run.label, end_ms=_end_ms(run)
            )
            if is_new:
                self._fill_or_refuse(run_id, run)
        self._remember(folder.name, run_id)  # after that, so that who reads it knows the run to be whole
        if claims:
            earlier = self._client.get_run(run_id).data.tags.get("claim", "")
            names = {name for name in earlier.split(",") if name} | set(claims)
            self._client.set_tag(run_id, "claim", ",".join(sorted(names)))
        return run_id

    def _fill_or_refuse(self, run_id: str, run: folders.Run) -> None:
        """Raise `WorkError` where the index is alive and does not take this run, so that others are not held up."""
        try:
            self._fill(run_id, run)
        except (requests.HTTPError, *_mlflow_errors()) as err:
            if not _is_refusal(err):
                raise
            with suppress(*_mlflow_errors()):
                self._client.delete_run(run_id)
            why = f"The index refuses it: {_first_line(err)}"
            do = f"Correct that, then run `lightbox compare --rebuild-index --out {self.out}`"
            raise WorkError(f"The run is {run.folder}", why, do) from err

    def _fill(self, run_id: str, run: folders.Run) -> None:
        """Parameters, curves, score means and files of one run; FINISHED only after all of them."""
        from mlflow.entities import Metric, Param

        end_ms = _end_ms(run)
        params = [Param(*pair) for pair in index_entry.run_params(run).items()]
        metrics = [Metric(key, value, end_ms, step) for key, value, step in index_entry.run_metrics(run)]
        for first in range(0, len(params), 100):  # the server's limits of one request: 100 and 1000
            self._client.log_batch(run_id, params=params[first : first + 100])
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000])
        for name in FILES:
            if (run.folder / name).is_file():
                self._client.log_artifact(run_id, str(run.folder / name))
        self._client.set_terminated(run_id, "FINISHED", end_ms)

    def _start(
        self, paper: str, key: str, tags: dict[str, str], *, name: str, end_ms: int | None = None
    ) -> tuple[str, bool]:
        """Find the run of this key or create it; (run id, True where it is new).

        A run is replaced where a kill left it half written, or where its folder has been trained anew since. A parent
        run has no `end_ms` and is always continued. More than one of a key come from a request that was answered too
        late and sent again; one stays.
        """
        experiment_id = self._experiment(paper)
        wanted = f"tags.job_key = '{key}'" + (f" and tags.place = '{self._place}'" if self._place else "")
        found = list(self._client.search_runs([experiment_id], filter_string=wanted))
        whole = [r for r in found if end_ms is None or (r.info.status == "FINISHED" and r.info.end_time == end_ms)][:1]
        is_new = not whole
        if whole:
            for tag, value in tags.items():
                self._client.set_tag(whole[0].info.run_id, tag, value)
        else:
            tags = tags | {"job_key": key} | ({"place": self._place} if self._place else {})
            whole = [self._client.create_run(experiment_id, tags=tags, run_name=name)]
            found = list(self._client.search_runs([experiment_id], filter_string=wanted))
        run_id = whole[0].info.run_id
        if not run_id:  # what mlflow makes of an empty answer
            raise ConnectionError("a server answers there, and not as MLflow does")
        for run in found:
            if run.info.run_id != run_id:
                self._client.delete_run(run.info.run_id)
        return run_id, is_new

    def _experiment(self, paper: str) -> str:
        experiment = self._client.get_experiment_by_name(paper)
        if experiment is None:  # a server chooses its own artifact root
            root = None if index_place.database_of(self.uri) is None else (self.out / "artifacts" / paper).as_uri()
            try:
                return self._client.create_experiment(paper, artifact_location=root)
            except _mlflow_errors() as err:
                if getattr(err, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self._client.get_experiment_by_name(paper)  # another process made it meanwhile
        self._check_home(experiment)
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _check_home(self, experiment: Any) -> None:
        """The database holds an absolute artifact root, so a moved folder would write to its old place."""
        home = (self.out / "artifacts").as_uri()
        if self.has_own_database and not experiment.artifact_location.startswith(home):
            raise FileNotFoundError(f"it keeps artifacts in {experiment.artifact_location}; the folder has moved")

    def _remember(self, key: str, run_id: str) -> None:
        path = self.out / "mlflow-runs.json"
        with FileLock(f"{path}.lock", timeout=CREATION_S):  # two trainings may end at once
            ids = index_place.known_run_ids(self.out)
            if ids.get(key) != run_id:
                half = path.with_suffix(".new")
                half.write_text(json.dumps(ids | {key: run_id}, indent=0, sort_keys=True), encoding="utf-8")
                half.replace(path)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Hold what keeps two processes from writing the same run, such as a training and a `rebuild`."""
        place = self.out / folders.CACHE / "index"
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / f"{digest(key)[:16]}.lock", timeout=BUSY_S)
        try:
            lock.acquire()
        except Timeout as err:
            raise _BusyError(key) from err
        try:
            yield
        finally:
            lock.release()

    def _attempt(self, work: Callable[[], str], *, is_probed: bool = True) -> str | None:
        """Do `work` if the index can be reached, and say what it gives.

        Otherwise warn, once for as long as that lasts, and give None; then no call but one every `RETRY_S` tries again.
        """
        if self.problem is not None and time.monotonic() < self._retry_at:
            return None
        self._tried_at = time.monotonic()
        try:
            if is_probed:
                index_place.probe(self.uri)
            value = work()
        except LightboxError as err:  # one damaged or refused run; the others go on
            _log.warning("%s", err)
            value = ""
        except _BusyError:
            return None
        except (OSError, sqlite3.Error) as err:
            self._switch_off(err)
            return None
        except _mlflow_errors() as err:  # this line imports mlflow, and only where something was raised
            self._switch_off(err)
            return None
        self.problem = self.cause = None
        return value

    def _switch_off(self, err: Exception) -> None:
        self._failed_at = time.monotonic()
        self._retry_at = self._failed_at + max(RETRY_S, RETRY_SHARE * (self._failed_at - self._tried_at))
        self.cause = err
        is_first = self.problem is None
        self.problem = WorkError(
            f"The MLflow index is {self._waiting.index}",
            f"It cannot be written: {_first_line(err)}",
            "Runs go on without it, and wait for it in mlflow-waiting.json; a later run writes them, or now "
            f"`lightbox compare --rebuild-index --out {self.out}`",
        )
        if is_first:
            _log.warning("%s", self.problem)


class _BusyError(Exception):
    """Another process is writing this run."""


def _new_client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def _mlflow_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError


def _is_refusal(err: Exception) -> bool:
    """True where a server is alive and does not take what it was sent; its faults and closed doors are no refusals."""
    if isinstance(err, requests.HTTPError):
        status = 500 if err.response is None else err.response.status_code
    else:
        status = getattr(err, "get_http_status_code", lambda: 500)()
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def _first_line(err: Exception) -> str:
    if "Read timed out" in str(err):  # four nested errors say so in 400 characters
        return "it did not answer a request in time"
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__


def _parent_key(paper: str, preset: str) -> str:
    return f"reproduce:{paper}:{preset}"


def _create_database(database: Path) -> str:
    """Migrate a new database beside its place, then move it there: a kill leaves none half migrated."""
    with FileLock(f"{database}.lock", timeout=CREATION_S):
        if not database.exists():
            for leftover in database.parent.glob(f"{database.name}.*.new"):
                leftover.unlink()
            half = database.with_name(f"{database.name}.{time.time_ns()}.new")  # mlflow remembers addresses: no reuse
            _new_client(index_place.sqlite_uri(half)).search_experiments(max_results=1)
            half.replace(database)
    return ""


def _claims_by_job(out: Path) -> dict[str, list[str]]:
    """Claim ids by job key, from every `reproduce/*/results.json`; a damaged one is skipped with a warning."""
    claims: dict[str, list[str]] = {}
    for path in sorted((out / "reproduce").glob("*/results.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["claims"]
        except (OSError, ValueError, KeyError) as err:
            _log.warning("%s cannot be read: %s", path, err)
            continue
        for claim in entries:
            for key in claim.get("run_ids", []):
                claims.setdefault(key, []).append(claim["id"])
    return claims


def _end_ms(run: folders.Run) -> int:
    """When the run ended, in milliseconds: its card is its last file."""
    return int((run.folder / "job.json").stat().st_mtime * 1000)
