"""The port, and the guard in front of the page."""

import asyncio
import socket

import pytest

from lightbox.errors import RequestError
from lightbox.view.loopback import HOST, Guard, open_port


def answered(path, *, host="127.0.0.1:7", kind="http"):
    """Messages that a request gets, and whether it reached the application."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=9")]})

    async def note(message):
        sent.append(message)

    headers = [(b"host", host.encode())] if host is not None else []
    scope = {"type": kind, "path": path, "headers": headers}
    asyncio.run(Guard(app, frozenset({"127.0.0.1", "localhost"}))(scope, None, note))
    return sent[0], bool(reached)


def test_a_port_in_use_is_refused_and_leaves_the_other_program_alone():
    with open_port(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RequestError, match=f"--port is {port}.*Another program listens there"):
            open_port(port)
        with socket.create_connection((HOST, port), timeout=5):
            pass


def test_the_port_is_open_on_this_machine_alone():
    with open_port(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7", "127.0.0.1.evil.example:7", "", None])
def test_a_name_that_was_made_to_point_here_is_refused(host):
    start, is_reached = answered("/", host=host)
    assert (start["status"], is_reached) == (421, False)


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/file=/etc/passwd"])
def test_routes_to_disk_are_refused(path):
    start, is_reached = answered(path)
    assert (start["status"], is_reached) == (403, False)


def test_what_is_served_is_neither_kept_nor_does_it_load_from_elsewhere():
    start, is_reached = answered("/gradio_api/queue/data", host="localhost:7")
    headers = dict(start["headers"])
    assert is_reached
    assert headers[b"cache-control"] == b"no-store"
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert dict(answered("/assets/index.js")[0]["headers"])[b"cache-control"] == b"max-age=9"
