"""`lightbox site`: every document of the checkout as pages, built strictly and without network."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from lightbox.errors import RequestError
from lightbox.paths import default_out, repo_root

NEEDED = ("sphinx", "myst_parser", "furo")


def site(
    out: Annotated[Path | None, typer.Option(help="Folder of the site; left out, ./lightbox-out/site.")] = None,
    is_run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run walkthroughs that changed, or show those without output.")
    ] = True,
) -> None:
    """Build pages of every document, executed walkthrough and published claim; refuse a dead link.

    Needs Sphinx. Runs and pages of claims are kept in .cache/site and made again only where their content changed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(
            f"`lightbox site` was asked for and {', '.join(missing)} is not installed",
            "Pages are made with Sphinx, its Markdown reader and a theme, which nothing else needs",
            "Run `uv sync --group site` in the checkout",
        )
    from lightbox.site.build import build

    typer.echo(str(build(repo_root(), out or default_out() / "site", is_run=is_run, say=_say)))


def _say(line: str) -> None:
    typer.echo(line, err=True)
