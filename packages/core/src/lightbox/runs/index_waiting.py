"""Runs that wait for an MLflow index which could not be written when they ended. Imports no mlflow.

They stand in `<out>/mlflow-waiting.json`, by the index that they wait for, so that a later process can write them. Any
number of processes may add and drop at once. The folder of a run stays the truth: where the file is lost, an index is
rebuilt from all folders.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lightbox.files import write_json

FILE = "mlflow-waiting.json"
LOCK_S = 60.0  # each holds it for milliseconds
RUNS, PARENTS = "runs", "parents"

_log = logging.getLogger("lightbox.runs.index")


class Waiting:
    """What waits for one index, in the file of one output folder.

    Args:
        out: output folder.
        index: the index, by an address that may be written down.
    """

    def __init__(self, out: Path, index: str) -> None:
        self.path, self.index = out / FILE, index

    def runs(self) -> dict[str, list[str]]:
        """Claims of each waiting run, by its folder relative to the output folder, in order of name."""
        return self._read().get(self.index, {}).get(RUNS, {})

    def parents(self) -> dict[str, str]:
        """Status of each parent run that could not be ended, by its key."""
        return self._read().get(self.index, {}).get(PARENTS, {})

    def add_run(self, folder: str, claims: list[str]) -> None:
        """Note a run; claims of the same run add up."""

        def change(runs: dict[str, list[str]]) -> None:
            runs[folder] = sorted({*runs.get(folder, []), *claims})

        self._change(RUNS, change)

    def drop_run(self, folder: str) -> None:
        """Forget a run that was written, or whose folder is gone."""
        if folder in self.runs():
            self._change(RUNS, lambda runs: runs.pop(folder, None))

    def add_parent(self, key: str, status: str) -> None:
        """Note how a parent run ended."""
        self._change(PARENTS, lambda parents: parents.update({key: status}))

    def drop_parent(self, key: str) -> None:
        """Forget a parent run that was ended."""
        if key in self.parents():
            self._change(PARENTS, lambda parents: parents.pop(key, None))

    def _change(self, part: str, change: Callable[[dict], object]) -> None:
        with FileLock(f"{self.path}.lock", timeout=LOCK_S):
            whole = self._read()
            own = whole.setdefault(self.index, {})
            change(own.setdefault(part, {}))
            whole = {index: parts for index, parts in whole.items() if any(parts.values())}
            if whole:
                write_json(self.path, whole)
            else:
                self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            damaged = self.path.replace(self.path.with_suffix(".damaged"))
            _log.warning("%s could not be read: `lightbox compare --rebuild-index` writes what waited", damaged)
            return {}
