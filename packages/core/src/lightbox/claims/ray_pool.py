"""Jobs on a Ray cluster that is already there: the same orders and outcomes as the local pool, on other machines.

Ray schedules the jobs, carries their folders in its object store and notices what died. Nothing is assumed of the nodes
but that the same commit of Lightbox is installed there: a shared file system is neither needed nor in the way. This is
the one place that imports ray, and only when a cluster is asked for. No torch.
"""

import importlib.util
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from lightbox import machine
from lightbox.claims.worker import ENVIRONMENT, Order, Outcome, is_disk_full, output_to, run_order
from lightbox.errors import LightboxError, RequestError, WorkError
from lightbox.runs.folders import JOBS, LOG, disk_full
from lightbox.runs.key import switches
from lightbox.runs.sources import whole_digest

RETRIES = 3
CONNECT_S = 5.0
CHECK_S = 60.0  # a busy node takes this long to start a worker
CLEAR_S = 20.0  # a worker must start where the interrupted ones were ended
# mlflow is left out: only the parent process writes the index
COMPARED = tuple(name for name in machine.RECORDED if name != "mlflow")
# Read by ray when it is imported: no telemetry; no copy of `uv run` and its project to the nodes; of the raylets'
# messages only those that tell of a job sent again, also for want of memory, which would be without end; 20 s, not 60,
# to find the node beside this program; nothing about a late call whose answer nobody waits for any more.
RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
RAY_SETTINGS |= {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}
RAY_SETTINGS |= {"RAY_DEDUP_LOGS_ALLOW_REGEX": "retries remaining", "RAY_DEDUP_LOGS_SKIP_REGEX": r"[\s\S]"}
RAY_SETTINGS |= {"RAY_task_oom_retries": f"{RETRIES}", "RAY_gcs_server_request_timeout_seconds": "20"}

_log = logging.getLogger("lightbox.claims")


def check_address(address: str) -> None:
    """Raise `RequestError`, within `CONNECT_S`, where ray is not installed or nothing listens at the address."""
    given = f"--address is '{address}'"
    if importlib.util.find_spec("ray") is None:
        why = "The package ray is not installed here, and the cluster's nodes need it too"
        do = "Install the extra 'ray' of lightbox-core (`uv sync` does), or use --engine local"
        raise RequestError(given, why, do)
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        why = "A cluster is named by host and port of its head, as `ray start --head` prints them"
        raise RequestError(given, why, "Give --address HOST:PORT, for example --address 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as err:
        why = f"Nothing listens there: {err.strerror or err}"
        raise RequestError(given, why, "Start the cluster with `ray start --head`, or correct host and port") from err


def connect(address: str) -> Any:
    """Connect as a driver; the `ray` module.

    Raises:
        RequestError: where no node of the cluster runs on this machine, or Ray refuses, with its reason.
    """
    given, port = f"--address is '{address}'", address.rpartition(":")[2]
    flags = [flag for process in psutil.process_iter(["cmdline"]) for flag in process.info["cmdline"] or ()]
    # Ray itself would wait for minutes, deaf to Ctrl-C, where no head or no node of its cluster is
    if not any(flag.startswith("--gcs-address=") and flag.endswith(f":{port}") for flag in flags):
        why = "No node of a cluster with that head runs on this machine, and Ray lets programs in through one"
        do = f"Correct the port, 6379 by default, or join from here first: `ray start --address={address} --num-cpus=0`"
        raise RequestError(given, why, do)
    os.environ.update(RAY_SETTINGS)
    import ray

    try:
        # what a job prints is in its log.txt
        ray.init(address, configure_logging=False, log_to_driver=False, runtime_env={"env_vars": ENVIRONMENT})
    except (ConnectionError, RuntimeError, ValueError) as err:
        why = f"Ray did not let this machine in: {_first_line(err)}"
        raise RequestError(given, why, "Start Ray from the same checkout everywhere") from err
    return ray


def run_on_node(
    order: Order, run: str, versions: Mapping[str, str], own: Mapping[str, bytes], *needs: Mapping[str, bytes]
) -> tuple[Outcome, dict[str, bytes]]:
    """Run a job on this node, after `check_node`: how it ended, and the files of its folder, whether it worked or not.

    Args:
        run: name of the node's folder for all jobs of this run.
        versions: of `COMPARED` on the machine that asks.
        own: files that an earlier attempt left there.
        needs: files of each folder that the job reads, in the order of `order.needs`.
    """
    check_node(order, versions)
    base = Path(tempfile.gettempdir(), run)
    base.mkdir(mode=0o700, exist_ok=True)
    # laid out like an output folder, so that the jobs of this node share a cache
    place = base / JOBS / order.key
    with tempfile.TemporaryDirectory(dir=base) as luggage:
        needed = {arm: Path(luggage, arm) for arm in order.needs}
        for folder, files in zip(needed.values(), needs, strict=True):
            unpack(files, folder)
        if own and not place.exists():  # else a worker of this node died over the job, and was further
            unpack(own, place)
        with output_to(place / LOG):
            outcome = run_order(replace(order, needs=needed), place=place)
    files = pack(place)
    shutil.rmtree(place)
    if outcome.is_disk_full:  # this node's disk, so the other nodes go on
        outcome = replace(outcome, is_disk_full=False, error=disk_full(place))
    facts = {"commit": machine.commit(), "hardware": machine.hardware(), "versions": machine.versions()}
    return replace(outcome, ran=facts), files


def check_code(order: Order, versions: Mapping[str, str]) -> None:
    """Raise `RequestError` where this node has another source of the job's paper, or other versions, than home."""
    source = f"source of {order.package}"
    home, node = {**versions, source: order.source}, {**machine.versions(COMPARED), source: whole_digest(order.package)}
    _compare(order, home, node)


def check_node(order: Order, versions: Mapping[str, str]) -> None:
    """As `check_code`; then also where this node has other weights and data."""
    check_code(order, versions)  # first, as another source need not even resolve the overrides
    config = importlib.import_module(f"{order.package}.config")
    _compare(order, order.inputs, {**config.inputs(config.resolve(list(order.overrides))), **switches()})


def _compare(order: Order, home: Mapping[str, str], node: Mapping[str, str]) -> None:
    facts = [
        f"{name} ({node.get(name, '')[:12]} there, {home.get(name, '')[:12]} here)"
        for name in sorted(home.keys() | node.keys())
        if home.get(name) != node.get(name)
    ]
    if facts:
        given = f"{order.title} was given to node {os.uname().nodename}, at commit {machine.commit()}"
        do = "On every node check the same commit out, run `uv sync --locked`, and put the same files at the same place"
        raise RequestError(given, f"Results would be mixed, as it differs in {', '.join(facts)}", do)


def pack(folder: Path) -> dict[str, bytes]:
    """Contents of the files of a folder, by path inside; hidden ones (locks, staged writes) stay behind."""
    paths = {f"{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()}
    return {inside: path.read_bytes() for inside, path in paths.items() if "/." not in f"/{inside}"}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Put packed files in the place of `folder`, which is never half there: not for a reader, not after a crash.

    Raises:
        WorkError: for a path that leads out of the folder.
    """
    for inside in files:
        if Path(inside).is_absolute() or ".." in Path(inside).parts:
            why = f"What arrived for it names the file '{inside}', which would lie outside"
            raise WorkError(f"The folder is {folder}", why, "Look at who may send jobs and files to the cluster")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as staged:
        for inside, content in files.items():
            path = Path(staged, "run", inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        Path(staged, "run").rename(folder)


def clear_node(run: str) -> None:
    """Remove the folder of a run from this node."""
    shutil.rmtree(Path(tempfile.gettempdir(), run), ignore_errors=True)


class RayPool:
    """Hands orders to a cluster; as a context manager it connects, and leaves nothing behind on the nodes.

    Args:
        address: HOST:PORT of the head.
        size: most jobs sent at once; None means all, as Ray keeps back those that no CPU is free for.

    Raises:
        RequestError: on entering, from `connect`.
    """

    def __init__(self, address: str, *, size: int | None) -> None:
        self.address, self.size = address, size
        self._run, self._versions = f"lightbox-{uuid.uuid4().hex[:12]}", machine.versions(COMPARED)
        self._flights: dict[Any, Order] = {}
        self._checked: set[str] = set()

    def __enter__(self) -> Self:
        self._ray = connect(self.address)
        if not self._ray.cluster_resources().get("CPU"):
            _log.warning("The cluster at %s has no CPU now; jobs wait for a node to join", self.address)
        self._send = self._ray.remote(num_cpus=1, max_retries=RETRIES)(run_on_node)
        self._stored = cache(lambda folder: self._ray.put(pack(folder)))
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for flight in self._flights:
            self._ray.cancel(flight, force=True)
        self._flights.clear()
        self._on_every_node(clear_node, self._run, timeout_s=CLEAR_S)
        self._ray.shutdown()

    def _on_every_node(self, function: Callable[..., None], *arguments: Any, timeout_s: float) -> list[Any]:
        """Call a function on each node that is there; the calls that ended within the time."""
        on_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        places = [on_node(node["NodeID"], soft=False) for node in self._ray.nodes() if node["Alive"]]
        remote = self._ray.remote(num_cpus=0, max_retries=0)(function)
        calls = [remote.options(scheduling_strategy=place).remote(*arguments) for place in places]
        ended, _ = self._ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
        return ended

    def _check_nodes(self, order: Order) -> None:
        """Refuse, before the first job of a paper, a node with other code; one that joins later checks each job too."""
        if order.package in self._checked:
            return
        self._checked.add(order.package)
        for call in self._on_every_node(check_code, order, self._versions, timeout_s=CHECK_S):
            try:
                self._ray.get(call)
            except self._ray.exceptions.RayTaskError as err:
                raise _refusal(err, order.title) from err
            except self._ray.exceptions.RayError as err:  # it died meanwhile, so it gets no job
                _log.warning("A node could not be checked: %s", _first_line(err))

    @property
    def busy(self) -> int:
        """Number of jobs on their way."""
        return len(self._flights)

    @property
    def has_room(self) -> bool:
        """True where another order may be sent."""
        return self.size is None or self.busy < self.size

    def give(self, order: Order) -> None:
        """Send an order to whichever node is free first.

        Raises:
            RequestError: for the first order of a paper, where a node has other code.
        """
        self._check_nodes(order)
        needs = [self._stored(folder) for folder in order.needs.values()]  # several jobs may read one folder
        self._flights[self._send.remote(order, self._run, self._versions, pack(order.folder), *needs)] = order

    def collect(self, timeout_s: float) -> list[Outcome]:
        """An outcome that arrives within the time, if any; a job whose worker or node died is sent again by Ray.

        Raises:
            RequestError: where a node is not fit to begin a job.
        """
        if not self._flights:
            return []
        landed, _ = self._ray.wait(list(self._flights), timeout=timeout_s)
        return [self._land(flight, self._flights.pop(flight)) for flight in landed]

    def _land(self, flight: Any, order: Order) -> Outcome:
        """Bring a job's folder home."""
        given = f"{order.title}: the job folder is {order.folder}"
        try:
            outcome, files = self._ray.get(flight)
            unpack(files, order.folder)
        except self._ray.exceptions.RayTaskError as err:
            if not is_disk_full(err.cause):  # such a node would soon have taken, and failed, all jobs
                raise _refusal(err, given) from err
            return Outcome(order.key, 0.0, 0.0, disk_full(order.folder))
        except self._ray.exceptions.RayError as err:
            why = f"Ray gave it up after up to {RETRIES} retries: {type(err).__name__}, {_first_line(err)}"
            do = "Look at the memory of the nodes; the same command runs the job again"
            return Outcome(order.key, 0.0, 0.0, WorkError(given, why, do))
        except OSError as err:
            if not is_disk_full(err):
                raise
            return Outcome(order.key, 0.0, 0.0, disk_full(order.folder), is_disk_full=True)
        return outcome


def _refusal(err: Any, given: str) -> LightboxError:
    """What a node said against a job, or that it could not even begin it; `err` is Ray's, around the cause."""
    if isinstance(err.cause, LightboxError):
        return err.cause
    why = f"A node could not even begin it: {_first_line(err.cause or err)}"
    do = "Check the same commit out on every node and start Ray there from it; the same command goes on"
    return RequestError(given, why, do)


def _first_line(err: BaseException) -> str:
    """First line of an error that says something, or its kind."""
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
