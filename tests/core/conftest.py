"""What several files of tests begin with."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


@pytest.fixture
def toy(tmp_path):
    """Folder of the package `toy`, importable during the test and by workers."""
    write_toy_paper(tmp_path / "src")
    yield tmp_path / "src" / "toy"
    forget_toy_paper(tmp_path / "src")


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
