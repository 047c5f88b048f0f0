"""The way into a Ray cluster: whether an address can be one, whether a head answers there, and the connection.

Ray itself would wait minutes for an address where nothing is, and cannot be interrupted meanwhile; here every answer
comes within 25 seconds. This is the one place that imports ray, and only when a cluster is asked for.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from typing import Any

import psutil

from lightbox.claims.worker import ENVIRONMENT
from lightbox.errors import RequestError

CONNECT_S = 5.0
PROBE_S = 20.0  # takes 2 s, and longer where the machine is busy
# Read by ray when it is imported: no telemetry; no copy of `uv run` and its project to the nodes; of the raylets'
# messages none, as the pool tells of a death in one line.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": r"[\s\S]"}


def check_address(address: str) -> None:
    """Raise `RequestError`, within `CONNECT_S`, where ray is not installed or nothing listens at the address."""
    given = f"--address is '{address}'"
    if importlib.util.find_spec("ray") is None:
        why = "The package ray is not installed here, and the cluster's nodes need it too"
        raise RequestError(
            given, why, "Install the extra 'ray' of lightbox-core (`uv sync` does), or use --engine local"
        )
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        why = "A cluster is named by host and port of its head, as `ray start --head` prints them"
        raise RequestError(given, why, "Give --address HOST:PORT, for example --address 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as err:
        why = f"Nothing listens there: {err.strerror or err}"
        raise RequestError(given, why, "Start the cluster with `ray start --head`, or correct host and port") from err


def check_answers(address: str) -> None:
    """Raise `RequestError`, within `PROBE_S`, unless a Ray head of our version answers.

    Asked in another process, because a client of Ray that gets no answer cannot be interrupted.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    given = f"--address is '{address}'"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired as err:
        why = f"Something listens there and did not answer as the head of a Ray cluster within {PROBE_S:.0f} s"
        raise RequestError(given, why, "Give the port that `ray start --head` printed, 6379 by default") from err
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RequestError(given, f"The cluster cannot be used: {last}", "Start Ray from the same checkout everywhere")


def check_membership(address: str) -> None:
    """Raise `RequestError` unless a node of the cluster runs on this machine: a driver talks to the node beside it."""
    port = address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if any(word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words):
            return
    raise RequestError(
        f"--address is '{address}'",
        "No node of that cluster runs on this machine, and Ray lets programs in through the node beside them",
        f"Join the cluster from here first: `ray start --address={address} --num-cpus=0`",
    )


def connect(address: str) -> Any:
    """Connect as a driver; the `ray` module.

    Raises:
        RequestError: where Ray refuses, with its reason.
    """
    os.environ.update(QUIET)
    import ray

    try:
        ray.init(
            address=address,
            configure_logging=False,
            log_to_driver=False,  # what a job prints is in its log.txt
            runtime_env={"env_vars": ENVIRONMENT},
        )
    except (ConnectionError, RuntimeError, ValueError) as err:
        why = f"Ray did not let this machine in: {first_line(err)}"
        raise RequestError(f"--address is '{address}'", why, "Start Ray from the same checkout everywhere") from err
    return ray


def first_line(err: BaseException) -> str:
    """First line of an error that says something, or its kind."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__
