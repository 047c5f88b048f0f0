"""Stages of long work: one function of one item, each result kept in a line of a file. No torch.

`NAME.jsonl` in the folder has a line for every item that was done, named by a digest of the stage, its settings and the
item's inputs. A line is on the disk before the next item begins, so a stage that was killed goes on behind it. A last
line that was cut is dropped and its item done again. An item that failed has a line with the reason, and is tried again
by the next run. Lines of other settings stay in the file and do no harm.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightbox.errors import LightboxError, RequestError, WorkError
from lightbox.files import canonical_json, digest, sync_folder, to_plain

SAY_EVERY_S = 10.0
_log = logging.getLogger(__name__)

Result = dict[str, Any]
"""What a stage finds of an item, as JSON can hold it."""


@dataclass(frozen=True)
class Item:
    """One thing to be done.

    Args:
        id: names it, once in a stage.
        inputs: all that decides its result beside the settings, as JSON can hold it; large content by its digest.
        content: what `inputs` stands for, where that is not plain.
    """

    id: str
    inputs: Any
    content: Any = None


@dataclass(frozen=True)
class Stage:
    """A pure function of an item.

    Args:
        name: of its file.
        settings: all that decides results and is the same for each item, as JSON can hold it.
        work: the function.
        fails_on: kind of error that is about one item and is recorded; any other ends the stage.
        still_holds: whether a kept result is still good, for one that names a file which may be gone.
        stops_after: failures in a row after which no further item is tried, as of a server that is down; 0 tries all.
    """

    name: str
    settings: Mapping[str, Any]
    work: Callable[[Item], Result]
    fails_on: type[LightboxError] = WorkError
    still_holds: Callable[[Result], bool] = lambda _: True
    stops_after: int = 0


@dataclass
class Outcome:
    """What a stage gave: results and failures by item, items that were not tried, and how many were done just now."""

    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, LightboxError] = field(default_factory=dict)
    not_tried: list[str] = field(default_factory=list)
    done_now: int = 0


def run_stage(stage: Stage, items: Sequence[Item], folder: Path) -> Outcome:
    """Do what is not done yet.

    Args:
        stage: the function and its settings.
        items: in the order in which they are done.
        folder: of the stage's file; it must exist.

    Raises:
        RequestError: an id met before, or a line of the file that was edited.
        LightboxError: what `work` raises that is not about one item; finished items are kept.
    """
    if len({item.id for item in items}) < len(items):
        raise RequestError(f"{len(items)} items of stage '{stage.name}'", "An id occurs twice", "Give each its own")
    path = folder / f"{stage.name}.jsonl"
    known = _read(path)
    outcome, failed_in_a_row, said = Outcome(), 0, time.monotonic()
    for place, item in enumerate(items):
        key = digest([stage.name, to_plain(stage.settings), to_plain(item.inputs)])
        result = known.get(key)
        if result is None or not stage.still_holds(result):
            if stage.stops_after and failed_in_a_row >= stage.stops_after:
                outcome.not_tried.append(item.id)
                continue
            try:
                result = json.loads(canonical_json(stage.work(item)))  # the same as a later run will read
            except stage.fails_on as err:
                failed_in_a_row += 1
                outcome.failures[item.id] = err
                _append(path, {"item": item.id, "key": key, "failed": [err.given, err.why, err.do]})
                _log.warning("%s: %s failed: %s", stage.name, item.id, err)
                continue
            failed_in_a_row = 0
            outcome.done_now += 1
            _append(path, {"item": item.id, "key": key, "result": result})
            known[key] = result
        outcome.results[item.id] = result
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            _log.info("%s: %d of %d", stage.name, place + 1, len(items))
    counts = len(outcome.results), len(items), outcome.done_now, len(outcome.failures), len(outcome.not_tried)
    _log.info("%s: %d of %d done, %d of them now; %d failed, %d not tried", stage.name, *counts)
    return outcome


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make a folder where it is absent, and keep other processes from writing stages in it.

    Raises:
        RequestError: it cannot be made, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as err:
        raise RequestError(f"Folder '{folder}'", "Another process is writing to it", "Wait, or name another") from err
    except OSError as err:
        raise RequestError(f"Folder '{folder}'", f"It cannot be written: {err.strerror}", "Name another") from err
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> dict[str, Result]:
    """Results by key; a last line without an end is cut off the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        _log.warning("%s: its last line was cut and is dropped", path.name)
        os.truncate(path, whole)
    results: dict[str, Result] = {}
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            is_whole = record.pop("sha256") == digest(record)
        except (ValueError, TypeError, AttributeError, KeyError):
            is_whole = False
        if not is_whole:
            do = "Delete that line; its item is then done again"
            raise RequestError(f"Line {number} of '{path}'", "It was cut or edited", do)
        if "result" in record:
            results[record["key"]] = record["result"]
    return results


def _append(path: Path, record: dict[str, Any]) -> None:
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(canonical_json(record | {"sha256": digest(record)}) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)
