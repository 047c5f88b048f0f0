"""MLflow as an index of run folders: SQLite in the output folder, or the server that MLFLOW_TRACKING_URI names.

One experiment a paper, one parent run a `reproduce`, one child run a job. The run folder stays the truth, so tracking
is never on the critical path: a server that does not answer or a locked database is noticed in seconds, warned of once,
and `rebuild` makes the index later. Only the parent process writes. mlflow is imported in functions: it takes 3-9 s.
"""

import functools
import json
import logging
import platform
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from lightbox.errors import LightboxError, WorkError
from lightbox.files import digest
from lightbox.runs import folders, index_entry, index_place

CREATION_S = 120.0  # a migration takes long where many trainings begin at once on few cores
FILES = ("job.json", "scores.parquet", "history.json", "examples.json", "card.json")

_log = logging.getLogger("lightbox.runs.index")


def open_tracker(out: Path) -> "Tracker":
    """Open the index of an output folder; the database is created here, under a lock, before any worker starts.

    An index that cannot be reached gives a tracker that is off: it has warned once and its methods return "".
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
        try:
            run = folders.read_run(folder)
        except WorkError as err:
            _log.warning("%s", err)
            continue
        if run is not None and folder.parent.name == "runs":
            count += tracker.single(folder) != ""
        elif run is not None:
            count += tracker.child(tracker.parent(run.paper, run.preset, {}), folder, claims.get(run.key, [])) != ""
    tracker.close()
    if tracker.problem is not None:
        raise tracker.problem
    return count


class Tracker:
    """Writes runs to the index; made by `open_tracker`. `problem` is None while the index can be written."""

    def __init__(self, out: Path, uri: str) -> None:
        self.out, self.uri = out, uri
        self.problem: WorkError | None = None
        self.cause: Exception | None = None
        self.has_own_database = uri == index_place.sqlite_uri(out / "mlflow.db")
        # In an index that folders share, the same job of two folders is two runs.
        self._place = "" if self.has_own_database else digest(f"{platform.node()}:{out}")[:16]
        self._parents: dict[str, str] = {}

    def connect(self) -> None:
        """Create the database where there is none, then probe; switch off where that fails."""
        database = index_place.database_of(self.uri)
        if database is not None and not database.exists():
            self._attempt(lambda: _create_database(database), is_probed=False)
        self._attempt(lambda: "")

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
        key = f"reproduce:{paper}:{preset}"
        tags = {"kind": "reproduce", "paper": paper, "preset": preset} | tags

        def work() -> str:
            if key not in self._parents:
                self._parents[key], _ = self._start(paper, key, tags, name=f"{paper} {preset}")
                self._remember(key, self._parents[key])
                self._client.update_run(self._parents[key], status="RUNNING")
            return self._parents[key]

        return self._attempt(work)

    def child(self, parent_id: str, job_directory: Path, claims: list[str]) -> str:
        """Index one finished job under its parent; one already indexed only gains claims. Its run id, or ""."""
        tags = {"kind": "job", "mlflow.parentRunId": parent_id}
        return self._attempt(lambda: self._index(job_directory, tags, claims))

    def single(self, run_directory: Path) -> str:
        """Index one run of `lightbox train`; its run id, or ""."""
        return self._attempt(lambda: self._index(run_directory, {"kind": "train"}, []))

    def close(self, status: str = "FINISHED") -> None:
        """End the parent runs with an MLflow status: FINISHED, FAILED or KILLED."""
        for run_id in self._parents.values():
            self._attempt(lambda run_id=run_id: self._client.set_terminated(run_id, status) or "")
        self._parents.clear()

    @functools.cached_property
    def _client(self) -> Any:
        return _new_client(self.uri)

    def _index(self, folder: Path, tags: dict[str, str], claims: list[str]) -> str:
        run = folders.read_run(folder)
        if run is None:
            return ""
        tags = tags | index_entry.run_tags(run)
        run_id, is_new = self._start(run.paper or "lightbox", folder.name, tags, name=run.label, end_ms=_end_ms(run))
        if is_new:
            self._fill(run_id, run)
        self._remember(folder.name, run_id)  # after that, so that who reads it knows the run to be whole
        if claims:
            earlier = self._client.get_run(run_id).data.tags.get("claim", "")
            names = {name for name in earlier.split(",") if name} | set(claims)
            self._client.set_tag(run_id, "claim", ",".join(sorted(names)))
        return run_id

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
        run has no `end_ms` and is always continued.
        """
        experiment_id = self._experiment(paper)
        wanted = f"tags.job_key = '{key}'" + (f" and tags.place = '{self._place}'" if self._place else "")
        for run in self._client.search_runs([experiment_id], filter_string=wanted):
            if end_ms is None or (run.info.status == "FINISHED" and run.info.end_time == end_ms):
                for tag, value in tags.items():
                    self._client.set_tag(run.info.run_id, tag, value)
                return run.info.run_id, False
            self._client.delete_run(run.info.run_id)
        tags = tags | {"job_key": key} | ({"place": self._place} if self._place else {})
        run = self._client.create_run(experiment_id, tags=tags, run_name=name)
        return run.info.run_id, True

    def _experiment(self, paper: str) -> str:
        experiment = self._client.get_experiment_by_name(paper)
        if experiment is None:  # a server chooses its own artifact root
            root = None if index_place.database_of(self.uri) is None else (self.out / "artifacts" / paper).as_uri()
            return self._client.create_experiment(paper, artifact_location=root)
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

    def _attempt(self, work: Callable[[], str], *, is_probed: bool = True) -> str:
        """Do `work` if the index can be reached; otherwise switch off, warn once and return ""."""
        if self.problem is not None:
            return ""
        try:
            if is_probed:
                index_place.probe(self.uri)
            return work()
        except LightboxError as err:  # one damaged folder; the others go on
            _log.warning("%s", err)
        except (OSError, sqlite3.Error) as err:
            self._switch_off(err)
        except _mlflow_errors() as err:  # this line imports mlflow, and only where something was raised
            self._switch_off(err)
        return ""

    def _switch_off(self, err: Exception) -> None:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        self.cause = err
        self.problem = WorkError(
            f"The MLflow index is {self.uri}",
            f"It cannot be written: {reason}",
            f"Runs go on without it; later, run `lightbox compare --rebuild-index --out {self.out}`",
        )
        _log.warning("%s", self.problem)


def _new_client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def _mlflow_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError


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
