"""A pool of persistent worker processes: hand out orders, collect outcomes, notice a worker that died.

Workers are spawned (a fork of a process with threads can hang), one thread each, and stay for several jobs, because
importing torch and transformers costs 11-16 s a process. No torch here.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from lightbox.claims.worker import ENVIRONMENT, Order, Outcome, work
from lightbox.errors import WorkError

STOP_S = 10.0  # a worker told to stop may finish its step and save


class _Worker:
    """One process and the two pipes to it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.orders, theirs = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        with _environment(ENVIRONMENT):
            self.process: BaseProcess = context.Process(target=work, args=(theirs, lifeline), daemon=True)
            self.process.start()
        theirs.close()
        lifeline.close()
        self.order: Order | None = None


class Pool:
    """At most `size` workers; used as a context manager, it leaves none behind, also after an exception."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(STOP_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.orders.close()

    @property
    def busy(self) -> int:
        """Number of workers with a job."""
        return sum(worker.order is not None for worker in self._workers)

    @property
    def has_room(self) -> bool:
        """True where another order can be taken now."""
        return self.busy < self.size

    def give(self, order: Order) -> None:
        """Hand an order to an idle worker, starting one where all that run are busy; `has_room` must be True."""
        idle = (worker for worker in self._workers if worker.order is None)
        worker = next((worker for worker in idle if worker.process.is_alive()), None)
        if worker is None:
            worker = _Worker()
            self._workers.append(worker)
        worker.order = order
        worker.orders.send(order)

    def collect(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that arrive within the time; a worker that died gives a failed outcome and is replaced later."""
        waiting = {worker.orders: worker for worker in self._workers if worker.order is not None}
        ready = wait(list(waiting), timeout_s) if waiting else []
        return [self._outcome(waiting[connection]) for connection in ready if isinstance(connection, Connection)]

    def _outcome(self, worker: _Worker) -> Outcome:
        order, worker.order = worker.order, None
        assert order is not None, "only workers with an order are waited for"
        try:
            return worker.orders.recv()
        except (EOFError, ConnectionError):
            worker.process.join(STOP_S)
            self._workers.remove(worker)
            return Outcome(order.key, 0.0, 0.0, _death(order, worker.process.exitcode))


def _death(order: Order, exit_code: int | None) -> WorkError:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        why = f"Its worker was ended by {name}" + (", as a system short of memory does" if name == "SIGKILL" else "")
    else:
        why = f"Its worker ended with exit code {exit_code}"
    do = f"Read {order.folder}/log.txt; the same command continues the job, with --workers 1 it takes less memory"
    return WorkError(f"The job folder is {order.folder}", why, do)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a process started inside, and put the former ones back."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
