"""Trials in a process that is ended where one takes too long, and followed by a new one where it died."""

import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from lightbox.testing.spoiled.trial import Outcome

Trial = Callable[[str, int, Path], Outcome]
"""(kind, seed, folder to work in) -> outcome; a function of a module, which a new process can import."""
IMPORTS_S = 600.0  # on a busy machine; and the sound input is written
MEMORY_GIB = 12  # of addresses, beyond which a process gets no more: torch's libraries alone take 4


def in_child(trial: Trial, asked: Iterable[tuple[str, int]], *, limit_s: float) -> Iterator[tuple[Outcome, Path]]:
    """Each trial's outcome, in order, and the folder in which the input lies until the next one is asked for.

    Args:
        trial: run in the child.
        asked: kind and seed of each.
        limit_s: longest time of a trial, after the first of a process.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        child, pipe, started = None, None, 0
        seen: set[str] = set()
        for name, seed in asked:
            if child is None or pipe is None:
                pipe, far = context.Pipe()
                started, seen = started + 1, set()
                child = context.Process(target=_serve, args=(trial, far, Path(work, str(started))), daemon=True)
                child.start()
                far.close()
            pipe.send((name, seed))
            is_back = pipe.poll(limit_s + (0 if name in seen else IMPORTS_S))
            seen.add(name)
            try:
                outcome = pipe.recv() if is_back else Outcome(name, seed, "?", "?", "?", "hang", f"over {limit_s} s")
            except (EOFError, ConnectionError):
                outcome, is_back = Outcome(name, seed, "?", "?", "?", "traceback", "the process died"), False
            if not is_back:
                child.kill()
                child.join()
                child = None
            yield outcome, Path(work, str(started))
        if child is not None and pipe is not None:
            pipe.send(None)
            child.join()


def _serve(trial: Trial, pipe: Connection, work: Path) -> None:
    """In the child: run the trials that come, until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))
    while (asked := pipe.recv()) is not None:
        name, seed = asked
        pipe.send(trial(name, seed, work))
