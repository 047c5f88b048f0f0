"""Lay out a folder for Sphinx: documents, and every file that they link to, at the same relative paths as here.

So a link that works on the code host works on the site: to a document or a Python file as a page, to any other file as
a download. What links to nothing is left as it is, and Sphinx refuses it with its file and line.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

from lightbox.site import claim_pages, walkthroughs
from lightbox.site.documents import CLAIMS, START, contents, pages_below, paper_of, presets_of


def stage(root: Path, source: Path, finished: Path, *, is_run: bool, say: Callable[[str], object]) -> None:
    """Copy every document with what it links to and what hangs below it.

    Args:
        root: the checkout.
        source: an empty folder, for what Sphinx reads.
        finished: an empty folder, for pages that are ready: the full pages of published claims.
        is_run: whether walkthroughs without a kept run are run; else they are shown without output.
        say: called with a line before each thing that takes long.

    Raises:
        WorkError: where a walkthrough fails, or published scores are not what was published.
    """
    sections = contents(root)
    below = {document: pages_below(root, document) for paths in sections.values() for document in paths}
    blocks = [_contents_block([_page_name(path) for path in paths], title) for title, paths in sections.items()]
    _write(source / START, "\n".join([(root / START).read_text(encoding="utf-8"), *blocks]))
    for document, pages in below.items():
        entries = [f"{title} </{_page_name(path)}>" for title, path in pages]
        text = (root / document).read_text(encoding="utf-8")
        _write(source / document, f"{text}\n{_contents_block(entries)}" if entries else text)
    paths = [path for pages in below.values() for _, path in pages]
    for path in paths:
        if Path(path).name != CLAIMS:
            _copy(root / path, source / path)
    _stage_claims(root, source, finished, [path for path in paths if Path(path).name == CLAIMS], say)
    _stage_runs(root, source, [path for path in paths if Path(path).name == walkthroughs.NAME], is_run, say)
    for path in sorted(_linked(source)):
        if (root / path).is_file() and not (source / path).exists():
            _copy(root / path, source / path)


def linked_paths(text: str, folder: Path) -> Iterator[Path]:
    """Local files that a Markdown text in `folder` links to or shows, whether they exist or not.

    Read with the parser that Sphinx uses as well, so that both agree on what a link is.
    """
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        for token in block.children or []:
            target = str(token.attrGet("href") or token.attrGet("src") or "")
            path = unquote(target.partition("#")[0])
            if path and "://" not in target and not target.startswith("mailto:"):
                yield Path(os.path.normpath(folder / path))


def _linked(source: Path) -> set[Path]:
    """Files that staged documents and walkthroughs link to, relative to the checkout; none outside of it."""
    found: set[Path] = set()
    for path in (*source.rglob("*.md"), *source.rglob(walkthroughs.NAME)):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = "\n\n".join(cell.body for cell in walkthroughs.split_cells(text) if cell.is_text)
        found.update(linked_paths(text, path.parent.relative_to(source)))
    return {path for path in found if path.parts[:1] != ("..",) and not path.is_absolute()}


def _stage_claims(root: Path, source: Path, finished: Path, pages: Sequence[str], say: Callable[[str], object]) -> None:
    folders = {paper_of(Path(page).parent): Path(page).parent for page in pages}
    wanted: Mapping[str, list[str]] = {paper: presets_of(root, paper) for paper in folders}
    say(f"pages of published claims: {', '.join(wanted)}")
    for (paper, preset), report in claim_pages.make_reports(wanted, root).items():
        _copy(report, finished / folders[paper] / claim_pages.full_page(preset))
    for paper, folder in folders.items():
        text = claim_pages.page_text(paper, wanted[paper], root=root, folder=root / folder)
        _write(source / folder / CLAIMS, text)


def _stage_runs(root: Path, source: Path, scripts: Sequence[str], is_run: bool, say: Callable[[str], object]) -> None:
    for script in scripts:
        is_kept = walkthroughs.recorded(root, root / script, is_run=False) is not None
        if not is_kept:
            what = "running it, about a minute" if is_run else "no run is kept, so it is shown without output"
            say(f"{script}: {what}")
        run = walkthroughs.recorded(root, root / script, is_run=is_run)
        if run is not None:
            shutil.copytree(run, walkthroughs.run_beside(source / script))


def _contents_block(entries: Sequence[str], title: str = "") -> str:
    """A hidden table of contents: it orders pages and shows in the side bar, and not in the text."""
    caption = [f":caption: {title}"] if title else []
    return "\n".join(["", "```{toctree}", ":hidden:", *caption, "", *entries, "```", ""])


def _page_name(path: str) -> str:
    return path.removesuffix(".md").removesuffix(".py")


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
