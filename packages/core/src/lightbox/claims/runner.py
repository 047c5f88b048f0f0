"""Run a plan: jobs in order of need, on this machine or a Ray cluster, each marked finished as it ends.

What is finished is not run. A failing job is recorded and the others go on, except those that need it. The pool, and so
the worker's imports, come to life with the first job that has to run: with every job finished, no process is started,
no cluster is asked and no torch is imported.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import ArrowInvalid

from lightbox import machine
from lightbox.claims.jobs import Job, Plan
from lightbox.claims.pool import Pool
from lightbox.claims.ray_pool import RayPool, check_address
from lightbox.claims.worker import Order, Outcome, is_disk_full
from lightbox.errors import LightboxError, RequestError, WorkError
from lightbox.files import write_json
from lightbox.runs.finished import finished_folder, sweep
from lightbox.runs.folders import FAILURE, disk_full, folder_to_run, mark_finished
from lightbox.runs.sources import whole_digest

ENGINES = ("local", "ray")
LOCAL_WORKERS = 2
PROGRESS_S = 10.0
PROGRESS_SHARE = 20  # showing it takes at most one part in twenty of the time

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
    finished = Finished()
    if fresh:
        return finished
    for key in plan.jobs:
        folder = finished_folder(out, key)
        if folder is not None:
            finished.folders[key] = folder
        elif committed is not None and key in committed:
            finished.reused[key] = committed[key]
    return finished


def jobs_to_run(plan: Plan, finished: Finished, *, keys: Collection[str] | None = None) -> list[Job]:
    """Jobs whose scores are asked for and missing, and the unfinished ones that they need, in order.

    A job that is needed must have its folder: committed scores do not hold its weights.
    """
    scored = plan.scored_keys() if keys is None else keys
    missing = {key for key in scored if key not in finished.folders and key not in finished.reused}
    for job in reversed(plan.jobs.values()):  # needs come before what needs them
        if job.key in missing:
            missing |= {key for key in job.needs.values() if key not in finished.folders}
    return [job for job in plan.jobs.values() if job.key in missing]


def run(
    plan: Plan,
    out: Path,
    finished: Finished,
    *,
    workers: int | None = None,
    engine: str = "local",
    address: str = "",
    fresh: bool = False,
    keys: Collection[str] | None = None,
    on_started: Callable[[], None] | None = None,
    on_job_done: OnJobDone | None = None,
    on_progress: OnProgress | None = None,
) -> Finished:
    """Run what `finished` lacks and add it there.

    Args:
        plan: the jobs.
        out: output folder, locked by the caller (`folders.open_output`).
        finished: from `find_finished`; changed in place.
        workers: most jobs at once, one thread each, at least 1; None means 2 here, and all CPUs of a cluster. More than
            cores or jobs are not started.
        engine: "local", or "ray".
        address: HOST:PORT of a Ray cluster's head, for that engine.
        fresh: run in new folders beside earlier attempts.
        keys: jobs to run; None means those whose scores a claim of the plan reads.
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
    waiting = {job.key: job for job in jobs_to_run(plan, finished, keys=keys)}
    if not waiting:
        return finished
    folders: dict[str, Path] = {}
    commit = machine.commit()  # now, as a commit made meanwhile is not what the workers import
    show_at = time.monotonic() + PROGRESS_S
    with _make_pool(len(waiting), engine=engine, address=address, workers=workers) as pool:
        while waiting or pool.busy:
            _drop_hopeless(waiting, finished)
            for job in [job for job in waiting.values() if set(job.needs.values()) <= finished.folders.keys()]:
                if not pool.has_room:
                    break
                del waiting[job.key]
                folders[job.key] = folder_to_run(out, job.key, fresh=fresh)
                pool.give(_order(job, folders[job.key], finished))
            if on_started is not None and pool.busy:
                on_started()
                on_started = None
            for outcome in pool.collect(timeout_s=1.0):  # short, so that Ctrl-C is heard
                job = plan.jobs[outcome.key]
                _settle(job, outcome, folders[job.key], finished, commit=commit)
                if on_job_done is not None and job.key in finished.folders:
                    on_job_done(job, finished.folders[job.key])
                if on_progress is not None and time.monotonic() >= show_at:
                    show_at = _show(on_progress, finished)
    return finished


def _show(on_progress: OnProgress, finished: Finished) -> float:
    """Show the progress; when to do so again, late enough for it to take 5 % of the time at most."""
    begun = time.monotonic()
    on_progress(finished)
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


def _make_pool(n_jobs: int, *, engine: str, address: str, workers: int | None) -> Pool | RayPool:
    if engine == "ray":
        return RayPool(address, size=workers)
    return Pool(min(LOCAL_WORKERS if workers is None else workers, machine.cores(), n_jobs))


def _order(job: Job, folder: Path, finished: Finished) -> Order:
    needs = {arm: finished.folders[key].resolve() for arm, key in job.needs.items()}
    title = f"{job.paper} {job.arm}, seed {job.seed}"
    source = whole_digest(job.package)
    return Order(job.key, job.package, folder.resolve(), job.overrides, needs, title, source, job.inputs)


def _drop_hopeless(waiting: dict[str, Job], finished: Finished) -> None:
    """Give up jobs that need a job which failed."""
    for job in list(waiting.values()):
        failed = [arm for arm, key in job.needs.items() if key in finished.errors]
        if failed:
            del waiting[job.key]
            finished.errors[job.key] = WorkError(
                f"Job {job.key} is arm '{job.arm}', seed {job.seed}",
                f"It needs arm '{failed[0]}' of that seed, which failed",
                "Correct that one; the same command then runs both",
            )


def _settle(job: Job, outcome: Outcome, folder: Path, finished: Finished, *, commit: str) -> None:
    """Mark a job finished, or record why it is not; a full disk ends the run, as every job would fail on it."""
    if outcome.error is None:
        try:
            mark_finished(folder, _card(job, outcome, commit))
            sweep(folder)
        except (FileNotFoundError, ArrowInvalid):
            outcome = _failed(outcome, folder, "It ended without an error and wrote no scores.parquet that can be read")
        except OSError as err:
            if not is_disk_full(err):
                raise
            raise disk_full(folder) from err
        else:
            finished.folders[job.key] = folder
            return
    finished.errors[job.key] = outcome.error
    if outcome.is_disk_full:
        raise disk_full(folder)
    error = outcome.error
    folder.mkdir(parents=True, exist_ok=True)  # a job that a cluster lost has none here
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
