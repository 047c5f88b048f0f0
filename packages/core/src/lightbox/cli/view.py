"""`lightbox view`: the page that asks two trained models about one image, on this machine alone."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from lightbox.errors import RequestError
from lightbox.paths import default_out

PORT = 7860


def view(
    out: Annotated[Path | None, typer.Option(help="Folder with trainings; left out, ./lightbox-out.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = PORT,
    is_shown: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Show an image, a question, and the answers of two trained models side by side, in the browser.

    Needs gradio. No model is opened before one is asked. Not for clinical use.
    """
    if importlib.util.find_spec("gradio") is None:
        raise RequestError(
            "`lightbox view` was asked for and gradio is not installed",
            "The page is made with it, and it is optional",
            'Run `uv sync` in the checkout, or `pip install "lightbox-core[demo]"`',
        )
    from lightbox.view.loopback import HOST, open_port

    listener = open_port(port)  # before gradio is imported, which takes seconds
    from lightbox.view.checkpoints import viewable_papers
    from lightbox.view.server import make_server
    from lightbox.view.viewer import Viewer

    address = f"http://{HOST}:{listener.getsockname()[1]}"
    server = make_server(Viewer(viewable_papers(), out or default_out()), listener)
    typer.echo(f"{address} (Ctrl-C ends it)")
    if is_shown:
        typer.launch(address)
    server.run(sockets=[listener])
