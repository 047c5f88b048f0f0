"""Serving the page on this machine alone, with nothing that could write an upload to disk or ask another machine."""

import os
import socket

import fastapi
import gradio as gr
import uvicorn

from lightbox.view.loopback import HOST, Guard
from lightbox.view.page import ASSETS, build_page
from lightbox.view.viewer import Viewer

FONTS = ("system-ui", "sans-serif")
SWITCHES = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000"}
"""Of gradio: it asks no server of its own, and makes no table of who asked what after each question."""


def make_app(viewer: Viewer, port: int) -> fastapi.FastAPI:
    """The application that serves the page behind the guard."""
    os.environ.update(SWITCHES)
    app = fastapi.FastAPI(openapi_url=None)
    theme = gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))  # others are fetched from elsewhere
    gr.mount_gradio_app(
        app,
        build_page(viewer),
        path="/",
        server_name=HOST,
        server_port=port,
        theme=theme,
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        allowed_paths=[],
        max_file_size=1,
    )
    app.add_middleware(Guard, hosts=frozenset((HOST, "localhost")))
    return app


class PageServer(uvicorn.Server):
    """A server that hangs up when it is told to stop: an open page holds a connection for as long as it is open."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close every connection, and then what uvicorn closes."""
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.close()
        await super().shutdown(sockets)


def make_server(viewer: Viewer, listener: socket.socket) -> PageServer:
    """A server for `listener`; `run(sockets=[listener])` serves until it is told to stop.

    Nothing is logged of a request: its address would be all, and there is only one client.
    """
    config = uvicorn.Config(
        make_app(viewer, listener.getsockname()[1]),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    return PageServer(config)
