"""This machine's own address: a port on it, and a guard that refuses what the page never asks for. No gradio."""

import errno
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lightbox.errors import RequestError

HOST = "127.0.0.1"
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'; form-action 'none'"
)
"""What the browser may load: this server's own. gradio's components need inline scripts and `eval`."""
DISK_ROUTES = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/stream", "/gradio_api/proxy")
"""Routes of gradio that write an upload to disk, or read from there or from elsewhere; the page uses none."""
Scope = MutableMapping[str, Any]
Send = Callable[[Scope], Awaitable[None]]


def open_port(port: int) -> socket.socket:
    """A socket on this machine's own address; port 0 takes a free one.

    Raises:
        RequestError: a port that is in use, or that this user may not open.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)  # at once: two sockets may be bound to one port, and only one of them listens
    except OSError as err:
        listener.close()
        if err.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "Another program listens there" if err.errno == errno.EADDRINUSE else "This user may not open it"
        raise RequestError(f"--port is {port}", why, "Stop that program, or name another port, as --port 0") from err
    return listener


class Guard:
    """Refuses what the page never asks for, and tells the browser to keep and load nothing.

    Args:
        app: the application behind it.
        hosts: names that mean this machine, whatever the port, which a tunnel may change; another one in the Host
            header is a name that somebody made point here.
    """

    def __init__(self, app: Any, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].partition(":")[0] not in self._hosts:
            await _refuse(send, 421, b"This page answers on its own address alone.")
            return
        if scope["path"].startswith(DISK_ROUTES):
            await _refuse(send, 403, b"Uploads stay in memory; this server has no route to disk.")
            return

        async def send_marked(message: Scope) -> None:
            if message["type"] == "http.response.start":
                marks = {b"content-security-policy": POLICY.encode(), b"referrer-policy": b"no-referrer"}
                if "/assets/" not in scope["path"]:
                    marks[b"cache-control"] = b"no-store"
                others = [(name, value) for name, value in message["headers"] if name.lower() not in marks]
                message = {**message, "headers": [*others, *marks.items()]}
            await send(message)

        await self._app(scope, receive, send_marked)


async def _refuse(send: Send, status: int, why: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": why})
