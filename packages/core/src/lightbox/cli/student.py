"""`lightbox student`: watch the arms of one claim learn, on one seed, in about a minute; no verdict comes of it."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lightbox.claims import published, registry, runner
from lightbox.claims.budget import Ladder, load_pilot, steps
from lightbox.claims.document import ClaimEntry
from lightbox.claims.lesson import SECONDS, SEED, Lesson, Outcome, forecast_s, outcome, pilot_effects, plan_lesson
from lightbox.claims.lesson import progress as read_progress
from lightbox.claims.spec import base_arm
from lightbox.cli.claim_tables import plain_console
from lightbox.cli.reproduce import failure
from lightbox.errors import WorkError
from lightbox.files import write_json
from lightbox.paths import default_out, results_dir
from lightbox.report.numbers import decimals, signed
from lightbox.runs.folders import attempts, open_output

FOLDER, OUTCOMES = "student", "outcomes.json"
LOOK_S = 2.0


def student(
    claim: Annotated[str, typer.Argument(metavar="CLAIM", help="One that trains something, for example T1.")] = "T1",
    seed: Annotated[int, typer.Option(help="Of the training: another one for each of a class, 903 to 999.")] = SEED,
    budget: Annotated[int, typer.Option("--steps", min=0, help="Training budget; 0 is what fits --seconds.")] = 0,
    seconds: Annotated[int, typer.Option(min=1, help="To be done in, on two cores; a forecast.")] = SECONDS,
    out: Annotated[Path | None, typer.Option(help="Output folder; left out, ./lightbox-out.")] = None,
    is_shown: Annotated[bool, typer.Option("--browser", help="Open the page, which draws itself again.")] = False,
) -> None:
    """Train the arms of one claim on one seed and watch them: a page that draws itself again, and no verdict."""
    console, out = plain_console(), out or default_out()
    for paper, chosen in registry.choose_claims(registry.load_papers(), [claim]):
        lesson = plan_lesson(paper, chosen, seed=seed, steps=budget, seconds=seconds)
        with open_output(out):
            run_lesson(lesson, out, root=results_dir(), console=console, is_shown=is_shown)


def run_lesson(
    lesson: Lesson, out: Path, *, root: Path, console: Console, workers: int = runner.LOCAL_WORKERS, is_shown: bool
) -> Outcome:
    """Train and score the arms of a lesson and keep its page up to date; what came out.

    Args:
        lesson: from `plan_lesson`.
        out: output folder, locked by the caller; finished arms in it are not run again.
        root: folder of committed results.
        console: to print on.
        workers: arms at once.
        is_shown: open the page in the browser.

    Raises:
        RequestError: for a damaged pilot.
        WorkError: where an arm failed.
    """
    folder = out / FOLDER / lesson.claim.id
    sheet = _Sheet(lesson, out, folder, root=root)
    finished = runner.find_finished(lesson.plan, out)
    arms = ", ".join(base_arm(job.arm)[0] for job in lesson.plan.jobs.values())
    trained = f"{lesson.budget} {steps(lesson.claim.budget)}"
    console.print(f"{lesson.claim.id}: {arms}; seed {lesson.seed}, {trained}, about {forecast_s(lesson.plan):.0f} s")
    page = sheet.write(is_running=True)
    console.print(f"{page} draws itself again every two seconds")
    if is_shown:
        typer.launch(str(page))
    with _Watch(sheet, console):
        runner.run(lesson.plan, out, finished, workers=workers, keys=set(lesson.plan.jobs))
    if finished.errors:
        sheet.write(is_running=False)
        raise failure(lesson.plan, finished)
    result = outcome(lesson, finished.folders)
    sheet.add(result)
    sheet.write(is_running=False)
    digits = decimals(lesson.claim.min_effect * lesson.claim.unit_scale)
    effect = f"{signed(result.effect, digits)} {lesson.claim.unit} on {result.items} items"
    console.print(f"{lesson.link.name}: {effect}. One seed is no verdict: {page}")
    return result


class _Sheet:
    """The page of a lesson and what it is drawn from."""

    def __init__(self, lesson: Lesson, out: Path, folder: Path, *, root: Path) -> None:
        self.lesson, self.out, self.folder = lesson, out, folder
        self.pilot: tuple[Ladder, str] = pilot_effects(lesson, load_pilot(root, lesson.paper.claims))
        self.published: dict[str, ClaimEntry] = {}
        for preset in lesson.claim.presets:
            entries = published.committed_claims(root, [lesson.paper.name], preset)
            if entry := entries.get((lesson.paper.name, lesson.claim.id)):
                self.published[preset] = entry
        self.outcomes = _read_outcomes(folder / OUTCOMES)

    def folders(self) -> dict[str, Path]:
        """The newest folder of each job that was begun."""
        return {key: own[-1] for key in self.lesson.plan.jobs if (own := attempts(self.out, key))}

    def add(self, new: Outcome) -> None:
        """Keep an outcome beside those of other seeds; the same seed at the same budget is replaced."""
        others = [o for o in self.outcomes if (o.seed, o.budget) != (new.seed, new.budget)]
        self.outcomes = [*others, new]
        write_json(self.folder / OUTCOMES, [asdict(o) for o in self.outcomes])

    def write(self, *, is_running: bool) -> Path:
        """Draw the page; its path."""
        from lightbox.report.lesson_page import PAGE, write_lesson

        arms = read_progress(self.lesson, self.folders())
        path = (self.folder / PAGE).resolve()
        write_lesson(
            path,
            self.lesson,
            arms,
            self.outcomes,
            pilot=self.pilot,
            published=self.published,
            is_running=is_running,
        )
        return path


class _Watch:
    """Looks at the trainings every two seconds, from a thread of its own: page and bars follow them."""

    def __init__(self, sheet: _Sheet, console: Console) -> None:
        self.sheet = sheet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.tasks = {name: self.bars.add_task(name, total=None, loss="") for name in read_progress(sheet.lesson, {})}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.bars.start()
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.bars.stop()

    def _follow(self) -> None:
        seen: Mapping | None = None
        while not self.ended.wait(LOOK_S):
            arms = read_progress(self.sheet.lesson, self.sheet.folders())
            if arms == seen:
                continue
            seen = arms
            self.sheet.write(is_running=True)
            for name, arm in arms.items():
                loss = f"loss {arm.curve[-1][1]:.3g}" if arm.curve else ""
                self.bars.update(self.tasks[name], total=arm.of or None, completed=arm.step, loss=loss)


def _read_outcomes(path: Path) -> list[Outcome]:
    """Outcomes of seeds before this one.

    Raises:
        WorkError: for a damaged file.
    """
    if not path.is_file():
        return []
    try:
        return [Outcome(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as err:
        raise WorkError(
            f"Earlier seeds are in {path}", f"It is damaged: {err}", "Delete the file; only dots of the page are lost"
        ) from err
