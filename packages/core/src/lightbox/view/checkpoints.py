"""Trainings that can be asked, and the models that are held in memory: two at most, one question at a time.

No torch here; a paper's own modules bring it when the first of its models is opened.
"""

import gc
import importlib
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.claims.registry import installed_packages
from lightbox.errors import RequestError, WorkError
from lightbox.paper.entries import Entries
from lightbox.runs import folders

MOST_MODELS = 2
Key = tuple[str, Path, int]
"""Package of a paper, folder of a run, and when the run finished: one that was trained anew is another model."""


def viewable_papers() -> dict[str, Entries]:
    """Entries of each installed paper that can be asked about an image, by its name."""
    packages = installed_packages()
    return {
        name: importlib.import_module(f"{package}.cli").ENTRIES
        for name, package in packages.items()
        if importlib.util.find_spec(f"{package}.predict") is not None
    }


def list_checkpoints(out: Path, package: str) -> dict[str, Path]:
    """Finished trainings of a paper under `<out>/runs` that kept a model, newest first, by what the page calls them.

    A run whose record is damaged is left out: it must not keep the others from being asked.
    """
    runs: list[tuple[int, folders.Run]] = []
    for record in (out / folders.RUNS).glob(f"*/{folders.RECORD}"):
        try:
            run = folders.read_run(record.parent)
        except WorkError:
            continue
        if run is not None and run.paper == package and (run.folder / folders.MODEL).is_dir():
            runs.append((record.stat().st_mtime_ns, run))
    newest = [run for _, run in sorted(runs, key=lambda pair: pair[0], reverse=True)]
    return {f"{run.folder.name}, seed {run.seed}, {run.preset}": run.folder.resolve() for run in newest}


def checkpoint_folder(text: str) -> Path:
    """The folder that was chosen or typed.

    Raises:
        RequestError: nothing, or no folder.
    """
    folder = Path(text.strip()).expanduser()
    if not text.strip() or not folder.is_dir():
        raise RequestError(
            f"The checkpoint is '{text.strip()}'" if text.strip() else "No checkpoint is chosen",
            "A model is asked that a training left in its folder",
            "Choose one, or give the folder of a run; `lightbox train PAPER preset=quick` makes one",
        )
    return folder.resolve()


class HeldModels:
    """Models that were opened, the one used last at the end.

    One lock guards opening and asking: a model is asked one question at a time, and there are never more than
    `MOST_MODELS`, not even for the moment in which another is opened.
    """

    def __init__(self) -> None:
        self._opened: OrderedDict[Key, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._opened)

    def ask(
        self,
        entries: Entries,
        folder: Path,
        image: np.ndarray,
        question: str,
        *,
        options: Sequence[str] = (),
        region: Any = None,
    ) -> dict[str, Any]:
        """Open the model of a run unless it is held, and ask it; see `Entries.ask`.

        Raises:
            RequestError: what opening and asking refuse.
            WorkError: memory ran out.
        """
        with self._lock:
            try:
                opened = self._open(entries, folder)
                return entries.ask(opened, image, question, folder=folder, options=options, region=region)
            except (RuntimeError, MemoryError) as err:
                if not _is_shortage(err):
                    raise
                self._opened.clear()
                raise WorkError(
                    f"The run '{folder.name}'", "Memory ran out", "Close other models, or choose a smaller one"
                ) from err

    def _open(self, entries: Entries, folder: Path) -> Any:
        record = folder / folders.RECORD
        key = entries.package, folder, record.stat().st_mtime_ns if record.is_file() else 0
        if key not in self._opened:
            while len(self._opened) >= MOST_MODELS:
                self._opened.popitem(last=False)
                gc.collect()  # modules point at each other, so counting references frees none of them
            self._opened[key] = entries.open_run(folder)
        self._opened.move_to_end(key)
        return self._opened[key]


def _is_shortage(err: BaseException) -> bool:
    from lightbox.train.shortage import is_shortage  # noqa: PLC0415  torch, which is there once a model was opened

    return is_shortage(err)
