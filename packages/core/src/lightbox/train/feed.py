"""Micro-batches for a step: made in line, or ahead of it by worker processes, to the same bits.

Workers are forked, as torch does by default on Linux: `collate` is a closure over samples and a tokenizer, which spawn
would have to pickle into processes that first import torch and transformers for ten seconds. What makes a fork safe
here: a worker computes with one thread, tokenizes with one thread, and never touches a GPU or the model.
"""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightbox.errors import LightboxError, RequestError, WorkError
from lightbox.train import processes
from lightbox.train.batches import BatchSource

SHOWN = 8
PATIENCE_S = 5
_DIED = "DataLoader worker (pid"
_TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


class Feed:
    """Gives a step its micro-batches; as a context manager it leaves no worker behind.

    Workers follow the order of `batches` from the step at hand, whatever that source's own position, which therefore
    counts what steps took. Where what they made next is not what a step asks for (at the start, or after a
    micro-batch was halved), they start anew from there.

    Args:
        batches: order and collate.
        workers: processes that run ahead, >= 0; 0 makes each micro-batch when it is asked for.
        has_prepare: True where a step prepares its items, see `driver.fit`.
    """

    def __init__(self, batches: BatchSource, *, workers: int, has_prepare: bool) -> None:
        self._batches = batches
        self.in_line_because = _why_in_line(has_prepare=has_prepare) if workers else ""
        self._workers = 0 if self.in_line_because else workers
        self._loader: Any = None
        self._ahead: deque[list[int]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._end()
        # torch says so in `next`, or wherever the signal of the death arrives
        if isinstance(err, RuntimeError) and str(err).startswith(_DIED):
            raise self._death(err) from err

    def micro_batches(self, items: dict[int, Any], size: int) -> Iterator[tuple[list[int], Any]]:
        """Indices and batch of each `size` items of a step, in order.

        Args:
            items: what the step learns from, by index.
            size: items of a forward pass, >= 1.

        Raises:
            Exception: what `collate` raised, in whichever process, with a note that names the items.
        """
        cuts = _cut(list(items), size)
        for at, indices in enumerate(cuts):
            if self._workers and (not self._ahead or self._ahead[0] != indices):
                self._start(cuts[at:], size)
            try:
                batch = next(self._loader) if self._workers else self._batches.collate([items[i] for i in indices])
                if isinstance(batch, LightboxError):
                    raise batch
            except Exception as err:
                if self._workers and _is_cut_off(err):
                    raise self._death(err) from err
                err.add_note(f"While a batch was made of {self._named(indices)}.")
                raise
            if self._workers:
                self._ahead.popleft()
            yield indices, batch

    def _start(self, cuts: Sequence[list[int]], size: int) -> None:
        self._end()
        self._ahead.clear()
        os.environ.setdefault(_TOKENIZER_THREADS, "false")  # else each fork prints a warning
        loader = DataLoader(
            range(self._batches.n_items),  # pyright: ignore[reportArgumentType]
            batch_sampler=self._handed_out(cuts, size),  # pyright: ignore[reportArgumentType]
            collate_fn=_checked(self._batches.collate),
            num_workers=self._workers,
            multiprocessing_context="fork",
            worker_init_fn=_begin,
            generator=torch.Generator(),  # else it draws from the generator that dropout draws from
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for any fork beside a thread
            self._loader = iter(loader)

    def _handed_out(self, cuts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
        """What workers are to make: `cuts`, then micro-batches of this process's share of all batches to come."""
        shares = (processes.shares(batch)[processes.rank()] for batch in self._batches.upcoming())
        for indices in itertools.chain(cuts, (cut for share in shares for cut in _cut(share, size))):
            self._ahead.append(indices)
            yield indices

    def _end(self) -> None:
        if self._loader is None:
            return
        loader, self._loader = self._loader, None
        try:
            loader._shutdown_workers()  # a loader without end has no public way, and a traceback may hold it
        except RuntimeError as err:
            if not str(err).startswith(_DIED):
                raise
            # the signal of a death arrived in the middle of the shutdown, when nobody waits for that worker any more;
            # torch has told the others to end and forgotten them
            for worker in loader._workers:
                worker.join(timeout=PATIENCE_S)
                worker.kill()
                worker.join()

    def _death(self, err: Exception) -> WorkError:
        names = self._named(itertools.chain.from_iterable(self._ahead))
        return WorkError(
            f"A worker process that prepared {names} died ({err})",
            "Most often the system ends it where memory, or shared memory in /dev/shm, runs out",
            "Set fewer train.workers, or 0, and run the same command again; it continues from the last checkpoint",
        )

    def _named(self, indices: Iterable[int]) -> str:
        names = self._batches.names(list(indices))
        return "items " + ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _why_in_line(*, has_prepare: bool) -> str:
    """Why workers cannot run ahead here; "" where they can."""
    if has_prepare:
        return "the step prepares its items from the model as it is then"
    if multiprocessing.current_process().daemon:
        return "this job is one of a pool, whose processes may start none and share the cores already"
    return "" if sys.platform == "linux" else f"a fork is not safe on {sys.platform}"


def _is_cut_off(err: Exception) -> bool:
    """Whether a worker died while it handed over a batch, before torch can see its death; not what collate raised."""
    return isinstance(err, ConnectionError | EOFError) and not str(err).startswith("Caught ")


def _begin(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the training decides when it stops
    os.environ[_TOKENIZER_THREADS] = "false"  # a fork has none of the threads that a tokenizer would wait for


def _checked(collate: Callable[[list[int]], Any]) -> Callable[[list[int]], Any]:
    """Collate in a worker: errors of ours are returned, since torch would not keep their kind; draws are refused."""

    def checked(indices: list[int]) -> Any:
        before = _generators()
        try:
            batch = collate(indices)
        except LightboxError as err:
            return err
        if _generators() == before:
            return batch
        return RequestError(
            "train.workers is above 0, and collate draws random numbers",
            "A worker has generators of its own, so the run would have other bits, and a continued one others again",
            "Draw in the step, or from a generator seeded by the item, or set train.workers=0",
        )

    return checked


def _generators() -> tuple[Any, ...]:
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().numpy().tobytes()


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[at : at + size] for at in range(0, len(indices), size)]
