"""What happens around the jobs of one `reproduce`: progress, the MLflow index, and the page that fills in. No torch."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightbox.claims import document, published, results
from lightbox.claims.document import Document
from lightbox.claims.jobs import Job, Plan
from lightbox.claims.runner import Finished
from lightbox.runs.index_place import known_run_ids

PAGE = "report.html"


class Session:
    """Told of each finished job; as a context manager it ends the progress bar and the parent runs of the index.

    Args:
        plan: claims and jobs.
        out: output folder.
        root: folder of committed results, for the published effects beside ours.
        total: number of jobs that will run.
    """

    def __init__(self, plan: Plan, out: Path, *, root: Path, console: Console, total: int) -> None:
        self.plan, self.out, self.root, self.console, self.total = plan, out, root, console, total
        self.names = list(dict.fromkeys(paper.name for paper, _ in plan.claims))
        self.folder = out / "reproduce" / f"{'-'.join(self.names)}-{plan.preset}"
        self._began, self._started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._done = 0
        self._tracker: Any = None
        self._parents: dict[str, str] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console) if console.is_terminal and total else None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("jobs", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._tracker is not None:
            self._tracker.close("FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED")

    def open_index(self) -> None:
        """Open the MLflow index and one parent run a paper; workers import meanwhile, so its 3-9 s cost no time."""
        from lightbox.runs.index import open_tracker

        self._tracker = open_tracker(self.out)
        for name in self.names:
            self._parents[name] = self._tracker.parent(name, self.plan.preset, {})

    def job_done(self, job: Job, folder: Path) -> None:
        """Show and index one finished job."""
        self._done += 1
        line = f"{job.paper} {job.arm}, seed {job.seed}"
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, description=line)
        else:
            elapsed = time.monotonic() - self._began
            self.console.print(f"[{self._done}/{self.total}] {line} ({elapsed:.0f} s)")
        if self._tracker is not None:
            self._index(job, folder)

    def index_rest(self, finished: Finished) -> None:
        """Index finished jobs that the index lacks: a kill came between the two."""
        known = known_run_ids(self.out)
        missing = {key: folder for key, folder in finished.folders.items() if folder.name not in known}
        if missing and self._tracker is None:
            self.open_index()
        for key, folder in missing.items():
            self._index(self.plan.jobs[key], folder)

    def _index(self, job: Job, folder: Path) -> None:
        read = [c.id for p, c in self.plan.claims if p.name == job.paper and c.reads(job.arm)]
        self._tracker.child(self._parents[job.paper], folder, read)

    def write(self, finished: Finished) -> Document:
        """Write results.json and the page as far as the jobs have come; the document."""
        from lightbox.report.page import write_page

        new = results.build(
            self.plan,
            finished,
            started=self._started,
            wall_s=time.monotonic() - self._began,
            folder=self.folder,
            committed=published.committed_jobs(self.root, self.names, self.plan.preset) if finished.reused else None,
            published=published.committed_claims(self.root, self.names, self.plan.preset),
            root=self.root,
        )
        write_document(new, self.folder, write_page)
        return new


def write_document(new: Document, folder: Path, write_page: Callable[[Document, Path], None]) -> Path:
    """Write results.json and the page beside it; the path of the page."""
    document.write(new, folder / published.DOCUMENT)
    write_page(new, folder / PAGE)
    return folder / PAGE
