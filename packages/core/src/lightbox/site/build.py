"""Build the site: lay it out, let Sphinx make pages of it in strict mode, and look at what came out."""

import io
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import docutils_namespace, patch_docutils

from lightbox.errors import RequestError, WorkError
from lightbox.site.check import faults
from lightbox.site.documents import START
from lightbox.site.staging import stage

ASSETS = Path(__file__).with_name("assets")
MADE = ".buildinfo"
"""Sphinx leaves it in what it has built: a folder with it may be replaced."""
SHOWN = 5
SETTINGS = {
    "project": "Lightbox",
    "html_title": "Lightbox",
    "root_doc": START.removesuffix(".md"),
    "extensions": ["myst_parser", "lightbox.site.python_pages"],
    "myst_heading_anchors": 6,  # a heading's anchor is the code host's
    "smartquotes": False,  # they would make one dash of the two before an option
    "nitpicky": True,
    "html_theme": "furo",
    "html_static_path": [str(ASSETS)],
    "html_css_files": ["site.css"],
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_copyright": False,
    "html_use_index": False,
}


def build(root: Path, out: Path, *, is_run: bool = True, say: Callable[[str], object] = lambda line: None) -> Path:
    """Build the site of a checkout and return its first page. Nothing is fetched, and nothing written but `out`.

    What is costly, runs of walkthroughs and pages of claims, is kept in the checkout's `.cache/site` by content.

    Args:
        root: the checkout.
        out: folder of the site; one of an earlier build is replaced as a whole.
        is_run: whether walkthroughs without a kept run are run; else they are shown without output.
        say: called with a line before each thing that takes long.

    Raises:
        RequestError: where `out` holds something else.
        WorkError: for a dead link, another warning of Sphinx, a page that would fetch something from elsewhere, a
            walkthrough that fails, or published scores that are not what was published.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MADE).is_file():
        why = "It holds files and is no earlier build, and a build replaces the folder as a whole"
        raise RequestError(f"--out is '{out}'", why, "Name a new or empty folder")
    with tempfile.TemporaryDirectory() as work:
        source, finished, made = Path(work, "source"), Path(work, "finished"), Path(work, "made")
        source.mkdir()
        finished.mkdir()
        stage(root, source, finished, is_run=is_run, say=say)
        say("pages")
        make_pages(source, finished, made)
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    return out / "index.html"


def make_pages(source: Path, finished: Path, made: Path) -> None:
    """Make pages of a staged folder, and refuse what is wrong in it or with them.

    Raises:
        WorkError: see `build`.
    """
    warnings = io.StringIO()
    settings = SETTINGS | {"html_extra_path": [str(finished)]}
    try:
        with patch_docutils(), docutils_namespace():  # a second build in one process finds nothing of the first
            read = made.with_name("read")
            app = Sphinx(source, None, made, read, "html", settings, status=None, warning=warnings, freshenv=True)
            app.build(force_all=True)
    except SphinxError as err:
        raise WorkError("The documents of the checkout", f"Sphinx stops: {err}", "Mend what it names") from err
    _refuse("Sphinx warns", _lines(warnings.getvalue(), source))
    shutil.copyfile(made / f"{SETTINGS['root_doc']}.html", made / "index.html")
    _refuse("A page is broken", faults(made))


def _lines(text: str, source: Path) -> list[str]:
    """Warnings without colours, each naming the document of the checkout."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(f"{source}/", "")
    return [line for line in plain.splitlines() if line.strip()]


def _refuse(what: str, found: list[str]) -> None:
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        why = f"{what}, {len(found)} time{'s' * (len(found) > 1)}: {'; '.join(found[:SHOWN])}{more}"
        raise WorkError("The documents of the checkout", why, "Mend them, and build again")
