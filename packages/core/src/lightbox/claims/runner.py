"""Run a plan: jobs in order of need, on this machine or a Ray cluster, each marked finished as it ends.

What is finished is not run. A failing job is recorded and the others go on, except those that need it. The pool, and so
the worker's imports, come to life with the first job that has to run: with every job finished, no process is started,
no cluster is asked and no torch is imported.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightbox import machine
from lightbox.claims.jobs import Job, Plan
from lightbox.claims.pool import Pool
from lightbox.claims.ray_connection import check_address
from lightbox.claims.ray_pool import RayPool
from lightbox.claims.worker import Order, Outcome
from lightbox.errors import LightboxError, RequestError, WorkError
from lightbox.files import FULL_DISK, write_json
from lightbox.runs.folders import FAILURE, disk_full, finished_folder, folder_to_run, mark_finished
from lightbox.runs.sources import whole_digest

ENGINES = ("local", "ray")
LOCAL_WORKERS = 2
PROGRESS_S = 10.0
PROGRESS_SHARE = 20

_log = logging.getLogger("lightbox.claims")

OnJobDone = Callable[[Job, Path], None]
OnProgress = Callable[["Finished"], None]


@dataclass
class Finished:
    """What is there so far.

    Args:
        folders: folder of each finished job, by key.
        reused: committed scores of each job that was not run here, by key (`--reuse results`).
        errors: why a job has no scores, by key.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    reused: dict[str, Path] = field(default_factory=dict)
    errors: dict[str, LightboxError] = field(default_factory=dict)


def find_finished(
    plan: Plan, out: Path, *, fresh: bool = False, committed: Mapping[str, Path] | None = None
) -> Finished:
    """What needs no run: finished jobs of the output folder, and committed scores where these are wanted.

    Args:
        plan: the jobs.
        out: output folder; it need not exist.
        fresh: count no earlier job as finished.
        committed: parquet files of committed jobs by key; a job of the output folder goes before.
    """
    found = Finished()
    if fresh:
        return found
    for key in plan.jobs:
        folder = finished_folder(out, key)
        if folder is not None:
            found.folders[key] = folder
        elif committed is not None and key in committed:
            found.reused[key] = committed[key]
    return found


def jobs_to_run(plan: Plan, found: Finished, *, wanted: Collection[str] | None = None) -> list[Job]:
    """Jobs whose scores are wanted and missing, and the unfinished ones that they need, in order.

    A job that is needed must have its folder: committed scores do not hold its weights.
    """
    keys = plan.scored_keys() if wanted is None else wanted
    wanted = {key for key in keys if key not in found.folders and key not in found.reused}
    for job in reversed(plan.jobs.values()):  # needs come before what needs them
        if job.key in wanted:
            wanted |= {key for key in job.needs.values() if key not in found.folders}
    return [job for job in plan.jobs.values() if job.key in wanted]


def run(
    plan: Plan,
    out: Path,
    found: Finished,
    *,
    workers: int | None = None,
    engine: str = "local",
    address: str = "",
    fresh: bool = False,
    wanted: Collection[str] | None = None,
    on_started: Callable[[], None] | None = None,
    on_job_done: OnJobDone | None = None,
    on_progress: OnProgress | None = None,
) -> Finished:
    """Run what `found` lacks and add it there.

    Args:
        plan: the jobs.
        out: output folder, locked by the caller (`folders.open_output`).
        found: from `find_finished`; changed in place.
        workers: most jobs at once, one thread each, at least 1; None means 2 here, and all CPUs of a cluster. More than
            cores or jobs are not started.
        engine: "local", or "ray".
        address: HOST:PORT of a Ray cluster's head, for that engine.
        fresh: run in new folders beside earlier attempts.
        wanted: keys to run; None means those whose scores a claim of the plan reads.
        on_started: called once, when the first jobs were handed out: while workers import, the caller has time.
        on_job_done: called here, in this process, for each job that finished.
        on_progress: called at most every 10 s after jobs ended.

    Raises:
        RequestError: for an unknown engine, fewer than 1 worker, or a cluster that cannot be used.
        WorkError: where the disk is full. Failing jobs do not raise: they are in `errors`.
    """
    check_engine(engine, address)
    if workers is not None and workers < 1:
        raise RequestError(f"--workers is {workers}", "Someone must do the work", "Give --workers 1 or more")
    waiting = {job.key: job for job in jobs_to_run(plan, found, wanted=wanted)}
    if not waiting:
        return found
    folders: dict[str, Path] = {}
    commit, tell_at = machine.commit(), time.monotonic() + PROGRESS_S
    with _make_pool(list(waiting.values()), engine=engine, address=address, workers=workers) as pool:
        while waiting or pool.busy:
            _drop_hopeless(waiting, found)
            for job in [job for job in waiting.values() if set(job.needs.values()) <= found.folders.keys()]:
                if not pool.has_room:
                    break
                del waiting[job.key]
                folders[job.key] = folder_to_run(out, job.key, fresh=fresh)
                pool.give(_order(job, folders[job.key], found))
            if on_started is not None and pool.busy:
                on_started()
                on_started = None
            for outcome in pool.collect(timeout_s=1.0):
                job = plan.jobs[outcome.key]
                _settle(job, outcome, folders[job.key], found, commit=commit)
                if on_job_done is not None and job.key in found.folders:
                    on_job_done(job, found.folders[job.key])
                if on_progress is not None and time.monotonic() >= tell_at:
                    tell_at = _tell(on_progress, found)
    return found


def _tell(on_progress: OnProgress, found: Finished) -> float:
    """Tell of the progress; when to do so again, late enough for it to take 5 % of the time at most."""
    begun = time.monotonic()
    on_progress(found)
    ended = time.monotonic()
    return ended + max(PROGRESS_S, PROGRESS_SHARE * (ended - begun))


def check_engine(engine: str, address: str) -> None:
    """Raise `RequestError` for an unknown engine, or an address that is missing, superfluous or answers nothing."""
    given = f"--engine is '{engine}'"
    if engine not in ENGINES:
        raise RequestError(given, f"The engines are {' and '.join(ENGINES)}", "Give --engine local, or leave it out")
    if engine == "local" and address:
        why = "Jobs of that engine run on this machine, so the address would not be used"
        raise RequestError(f"{given} and --address is '{address}'", why, "Give --engine ray, or leave --address out")
    if engine == "ray" and not address:
        why = "That engine uses a cluster that is running, and it starts none"
        do = "Start one with `ray start --head` and give --address HOST:PORT, or give --engine local"
        raise RequestError(f"{given} and --address is empty", why, do)
    if engine == "ray":
        check_address(address)


def _make_pool(waiting: list[Job], *, engine: str, address: str, workers: int | None) -> Pool | RayPool:
    if engine == "ray":
        return RayPool(address, size=workers, sources={job.package: whole_digest(job.package) for job in waiting})
    return Pool(min(LOCAL_WORKERS if workers is None else workers, machine.cores(), len(waiting)))


def _order(job: Job, folder: Path, found: Finished) -> Order:
    needs = {arm: found.folders[key].resolve() for arm, key in job.needs.items()}
    title = f"{job.paper} {job.arm}, seed {job.seed}"
    return Order(
        job.key, job.package, folder.resolve(), job.overrides, needs, title, whole_digest(job.package), job.inputs
    )


def _drop_hopeless(waiting: dict[str, Job], found: Finished) -> None:
    """Give up jobs that need a job which failed."""
    for job in list(waiting.values()):
        failed = [arm for arm, key in job.needs.items() if key in found.errors]
        if failed:
            del waiting[job.key]
            found.errors[job.key] = WorkError(
                f"Job {job.key} is arm '{job.arm}', seed {job.seed}",
                f"It needs arm '{failed[0]}' of that seed, which failed",
                "Correct that one; the same command then runs both",
            )


def _settle(job: Job, outcome: Outcome, folder: Path, found: Finished, *, commit: str) -> None:
    """Mark a job finished, or record why it is not; a full disk ends the run, as every job would fail on it."""
    if outcome.error is None:
        try:
            mark_finished(folder, _card(job, outcome, commit))
        except FileNotFoundError:
            outcome = _failed(outcome, folder, "It ended without an error and wrote no scores.parquet")
        except OSError as err:
            if err.errno not in FULL_DISK:
                raise
            raise disk_full(folder) from err
        else:
            found.folders[job.key] = folder
            return
    found.errors[job.key] = outcome.error
    if outcome.is_disk_full:
        raise disk_full(folder)
    error = outcome.error
    folder.mkdir(parents=True, exist_ok=True)  # a job that a node never began has none here
    write_json(folder / FAILURE, {"given": error.given, "why": error.why, "do": error.do})


def _failed(outcome: Outcome, folder: Path, why: str) -> Outcome:
    error = WorkError(f"The job folder is {folder}", why, "Correct the paper's run_job")
    return Outcome(outcome.key, outcome.wall_s, outcome.peak_gib, error)


def _card(job: Job, outcome: Outcome, commit: str) -> dict[str, Any]:
    own = {name: value for name, value in vars(job).items() if name not in ("package", "minutes", "mem_gib")}
    own["overrides"] = list(job.overrides)
    ran = outcome.ran or {"commit": commit, "hardware": machine.hardware(), "versions": machine.versions()}
    times = {"wall_s": round(outcome.wall_s, 3), "peak_gib": round(outcome.peak_gib, 3)}
    return own | ran | times | {"ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
