"""A worker process: takes jobs one after another and imports the paper, hence torch, once for all of them.

It is started by `pool` and never by hand. It dies with its parent, however the parent dies: a thread reads a pipe
whose other end only the parent holds. A job folder is locked while a job runs in it, so that a worker which outlived
its parent for a moment and its successor never write to one folder. `run_order` is the one way in which a job is run,
on a cluster too.
"""

import importlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightbox.errors import LightboxError, WorkError
from lightbox.files import FULL_DISK
from lightbox.runs.folders import LOG, disk_full

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PATIENCE_S = 30.0

logger = logging.getLogger("lightbox.claims.worker")


@dataclass(frozen=True)
class Order:
    """One job for a worker: `package.cli.run_job(folder, overrides, needs)`.

    `title`, `source` and `inputs` are what to call it, the digest of its code and the digests of what it reads; a
    cluster compares the digests with those of the node.
    """

    key: str
    package: str
    folder: Path
    overrides: tuple[str, ...]
    needs: dict[str, Path]
    title: str = ""
    source: str = ""
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `error` is None where it worked. `peak_gib` is the worker's highest memory so far.

    `ran` holds commit, hardware and versions of the machine that it ran on; empty means this one.
    """

    key: str
    wall_s: float
    peak_gib: float
    error: LightboxError | None = None
    is_disk_full: bool = False
    ran: dict[str, Any] = field(default_factory=dict)


def work(orders: Connection, lifeline: Connection) -> None:
    """Take orders for as long as the parent lives; the body of a worker process.

    Args:
        orders: receives `Order`, sends `Outcome`.
        lifeline: never written to; at its end of file the process leaves at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what stops
    threading.Thread(target=_leave_with_parent, args=(lifeline,), daemon=True).start()
    while True:
        order = orders.recv()
        with output_to(order.folder / LOG):
            orders.send(run_order(order))  # in here, because leaving writes to the log, which a full disk refuses


def run_order(order: Order, *, place: Path | None = None) -> Outcome:
    """Run one job; where it fails, the traceback is logged and the outcome says why.

    Args:
        order: the job; errors name its folder.
        place: folder to work in, where the job's own is on another machine; None means the job's own.
    """
    place = place or order.folder
    place.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    error: LightboxError | None = None
    is_full = False
    try:
        with FileLock(place / ".lock", timeout=PATIENCE_S):
            job = importlib.import_module(f"{order.package}.cli").run_job
            job(place, list(order.overrides), dict(order.needs))
    except Timeout:
        error = WorkError(f"The job folder is {place}", "Another process runs a job in it", "End that one")
    except LightboxError as err:
        logger.exception("job %s", order.key)
        error = err
    except Exception as err:  # a bug in a paper must not take the other jobs along; the log keeps the traceback
        logger.exception("job %s", order.key)
        error, is_full = _as_work_error(order, err), is_disk_full(err)
    return Outcome(order.key, time.monotonic() - started, peak_memory_gib(), error, is_full)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Point standard output and error at the end of a file, also for code outside Python, and back again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    former = os.dup(1), os.dup(2)
    with path.open("a", encoding="utf-8") as log:
        try:
            _redirect(log.fileno(), log.fileno())
            yield
        finally:
            _redirect(*former)
            for descriptor in former:
                os.close(descriptor)


def is_disk_full(err: BaseException | None) -> bool:
    """True for an error that says the disk, or the share of it that we may use, is full."""
    return isinstance(err, OSError) and err.errno in FULL_DISK


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1024**3  # bytes on macOS, KiB elsewhere


def _as_work_error(order: Order, err: Exception) -> WorkError:
    if is_disk_full(err):
        return disk_full(order.folder)
    first = str(err).splitlines()[0] if str(err) else "no message"
    return WorkError(
        f"The job folder is {order.folder}",
        f"The job stopped with {type(err).__name__}: {first}",
        f"Read the traceback in {order.folder / LOG}; the same command runs the job again",
    )


def _redirect(output: int, error: int) -> None:
    """Make two descriptors standard output and error; what is still buffered goes to the former ones."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(error, 2)


def _leave_with_parent(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
