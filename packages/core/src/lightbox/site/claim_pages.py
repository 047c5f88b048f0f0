"""What was published of a paper: a page with its tables, and the full page that `lightbox report` writes. No torch."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from lightbox import machine
from lightbox.claims import published
from lightbox.claims.registry import load_papers
from lightbox.report.page import write_page
from lightbox.report.readme import results_lines
from lightbox.site.kept import kept_place

PAGE = "report.html"


def page_text(paper: str, presets: Sequence[str], *, root: Path, folder: Path) -> str:
    """The Markdown page of a paper's published claims; links are relative to `folder`, where it will lie."""
    parts = [
        f"# {paper}: published claims",
        "Every table is made from the runs recorded in `results/`. The full page of a size has what belongs to it: "
        "every contrast with its interval, gates and baselines, training budgets, items with their images. It is the "
        f"page that `lightbox report {paper} --preset PRESET` writes, with every interval recomputed from scores.",
    ]
    for preset in presets:
        parts += [
            f"## {preset}",
            f'<a class="full-page" href="{full_page(preset)}">The full page of {paper} at {preset}</a>',
            "\n".join(results_lines(f"{paper}/{preset}", root=root, folder=folder)),
        ]
    return "\n\n".join([*parts, ""])


def full_page(preset: str) -> str:
    """File name of the full page of a preset, beside the page of the paper's claims."""
    return f"published-{preset}.html"


def make_reports(wanted: Mapping[str, Sequence[str]], root: Path) -> dict[tuple[str, str], Path]:
    """The full pages by paper and preset: kept ones, and new ones from two processes where the machine has two cores.

    Args:
        wanted: presets by paper.
        root: the checkout.

    Raises:
        WorkError: where published scores are not what was published, see `claims.published.recompute`.
    """
    places = {(paper, preset): _place(root, paper, preset) for paper in wanted for preset in wanted[paper]}
    missing = {pair: place for pair, place in places.items() if not place.is_file()}
    if missing:
        # spawned, as a fork would share the locks of whatever threads run here
        with ProcessPoolExecutor(min(2, machine.cores()), mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_write_report, *pair, root, place) for pair, place in missing.items()]
            for job in jobs:
                job.result()
    return places


def _write_report(paper: str, preset: str, root: Path, path: Path) -> None:
    document = published.recompute(root / "results" / paper / preset, load_papers([paper])[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(published.joined([document]), path)


def _place(root: Path, paper: str, preset: str) -> Path:
    folder = "packages/core" if paper == "core" else f"projects/{paper}"
    parts = ("packages/core/src", folder, f"results/{paper}", "results/runs.csv", "uv.lock", "shared_data")
    return kept_place(root, f"claims-{paper}-{preset}", parts) / PAGE
