"""Every test runs without network, with one thread, in its own folder.

The variables are set here, before any test module is imported, and child processes inherit them.
"""

import gc
import ipaddress
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import lightbox.testing.typecheck  # noqa: F401  the checker that pyproject.toml names must be importable as an attribute

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)


def pytest_collection_finish():
    """What was imported stays to the end, so collections of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()


class NetworkBlockedError(RuntimeError):
    """A test reached for an address outside this machine."""


def _refuse_outside(address):
    host = address[0] if isinstance(address, tuple) else address
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        is_here = ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        is_here = name == "localhost"
    if not is_here:
        raise NetworkBlockedError(f"tests have no network, and this one asked for {name}")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Let sockets reach this machine and nothing else."""
    lookup = socket.getaddrinfo

    def guarded(method):
        def call(self, *arguments):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_outside(arguments[-1])
            return method(self, *arguments)

        return call

    def guarded_lookup(host, *arguments, **options):
        _refuse_outside(host)
        return lookup(host, *arguments, **options)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    """Run in an empty folder, so that a default `./lightbox-out` never lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("LIGHTBOX_HOME", raising=False)


class Endpoint(ThreadingHTTPServer):
    """An OpenAI-compatible server on this machine: it gives `replies` in turn, the last one again and again.

    A reply is (status, body, headers); None keeps the caller waiting. `seen` holds path, headers and body of requests.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.seen, self.is_over = [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def answers(self, *texts):
        """Replies with these texts of a model."""
        for text in texts:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self.replies.append((200, json.dumps({"choices": [choice]}), {}))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply is None:
            self.server.is_over.wait(10)
            return
        status, text, headers = reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        """Say nothing on stderr."""


@pytest.fixture
def endpoint(monkeypatch):
    """A running `Endpoint`, and no key in the environment."""
    monkeypatch.delenv("LIGHTBOX_CHAT_KEY", raising=False)
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()
