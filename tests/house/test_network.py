"""Tests have no network; this machine stays reachable for local servers and workers."""

import socket
import urllib.request

import pytest


def test_an_outside_address_is_refused():
    with pytest.raises(RuntimeError, match="tests have no network"):
        urllib.request.urlopen("http://example.org", timeout=2)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock, pytest.raises(RuntimeError, match="192.0.2.1"):
        sock.connect(("192.0.2.1", 80))


def test_this_machine_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 2) as client:
        assert client.getpeername()[0] == "127.0.0.1"
