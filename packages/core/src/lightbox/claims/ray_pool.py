"""Jobs on a Ray cluster that is already there: the same orders and outcomes as the local pool, on other machines.

Nothing is assumed of the nodes but that the same commit of Lightbox is installed there: a job's folders go with it and
its files come home (`parcels`), so a shared file system is neither needed nor in the way. A job whose worker or node
dies is run again elsewhere, a few times; a job that raises is not. The driver alone writes the output folder. No torch.
"""

import logging
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from lightbox import machine
from lightbox.claims.parcels import (
    COMPARED,
    OWN,
    Parcel,
    clear_node,
    compare_node,
    make_parcel,
    node_facts,
    run_parcel,
    unpack,
)
from lightbox.claims.ray_connection import check_answers, check_membership, connect, first_line
from lightbox.claims.worker import Order, Outcome
from lightbox.errors import RequestError, WorkError
from lightbox.files import FULL_DISK
from lightbox.runs.folders import disk_full

RETRIES = 3
NODES_S = 60.0  # a busy node takes this long to start a worker
CLEAR_S = 20.0  # a worker must start where the interrupted ones were ended

_log = logging.getLogger("lightbox.claims")


@dataclass
class _Flight:
    """A job on its way: its parcel, the luggage in Ray's object store, how often it was sent."""

    parcel: Parcel
    luggage: Any
    attempts: int = 1


class RayPool:
    """Hands orders to a cluster; as a context manager it connects, compares the nodes, and leaves nothing behind.

    Args:
        address: HOST:PORT of the head.
        size: most jobs at once; None means the CPUs that the cluster has at the moment.
        sources: source digest by package, for the comparison with the nodes.

    Raises:
        RequestError: on entering: nothing answers at the address, or a node has other code or other versions.
    """

    def __init__(self, address: str, *, size: int | None, sources: dict[str, str]) -> None:
        self.address, self.size, self.sources = address, size, sources
        self._run = uuid.uuid4().hex[:12]
        self._flights: dict[Any, _Flight] = {}
        self._is_starved = False

    def __enter__(self) -> Self:
        check_answers(self.address)
        check_membership(self.address)
        self._ray = connect(self.address)
        try:
            self._compare_nodes()
        except BaseException:
            self._ray.shutdown()
            raise
        self._send = self._ray.remote(num_cpus=1, max_retries=0)(run_parcel)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for flight in self._flights:
            self._ray.cancel(flight, force=True)
        self._flights.clear()
        self._on_every_node(clear_node, self._run, timeout_s=CLEAR_S)
        self._ray.shutdown()

    @property
    def busy(self) -> int:
        """Number of jobs on their way."""
        return len(self._flights)

    @property
    def has_room(self) -> bool:
        """True where another order would start now; a cluster may grow and shrink."""
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        if not cpus and not self._is_starved:
            _log.warning("The cluster at %s has no CPU now; jobs wait for a node to join", self.address)
        self._is_starved = not cpus
        return self.busy < (cpus if self.size is None else min(cpus, self.size))

    def give(self, order: Order) -> None:
        """Send an order to whichever node is free."""
        parcel, luggage = make_parcel(order, self._run)
        self._launch(_Flight(parcel, self._ray.put(luggage)))

    def collect(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that arrive within the time; a job whose worker or node died is sent again and gives none."""
        if not self._flights:
            return []
        if not self._ray.wait(list(self._flights), timeout=timeout_s)[0]:
            return []
        landed, _ = self._ray.wait(list(self._flights), num_returns=self.busy, timeout=0)
        outcomes = (self._land(reference) for reference in landed)
        return [outcome for outcome in outcomes if outcome is not None]

    def _launch(self, flight: _Flight) -> None:
        self._flights[self._send.remote(flight.parcel, flight.luggage)] = flight

    def _land(self, reference: Any) -> Outcome | None:
        """Write a job's files and give its outcome; None where it was lost and sent again."""
        flight = self._flights.pop(reference)
        order = flight.parcel.order
        try:
            delivery = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as err:
            return Outcome(order.key, 0.0, 0.0, _refused_by_worker(order, err.cause or err))
        except self._ray.exceptions.RayError as err:
            return self._send_again(flight, err)
        try:
            order.folder.mkdir(parents=True, exist_ok=True)
            unpack(delivery.files, {OWN: order.folder})
        except OSError as err:
            if err.errno not in FULL_DISK:
                raise
            return Outcome(order.key, 0.0, 0.0, disk_full(order.folder), is_disk_full=True)
        return delivery.outcome

    def _send_again(self, flight: _Flight, err: Exception) -> Outcome | None:
        """Send a lost job again, or give it up after `RETRIES` more attempts."""
        order, why = flight.parcel.order, f"{type(err).__name__}: {first_line(err)}"
        if flight.attempts <= RETRIES:
            flight.attempts += 1
            _log.warning("%s was lost (%s); attempt %d of %d", order.title, why, flight.attempts, RETRIES + 1)
            self._launch(flight)
            return None
        lost = WorkError(
            f"{order.title}: the job folder is {order.folder}",
            f"Its worker or node died {flight.attempts} times, at last with {why}",
            "Look at the memory of the nodes; the same command runs the job again",
        )
        return Outcome(order.key, 0.0, 0.0, lost)

    def _compare_nodes(self) -> None:
        """Refuse the cluster where a node that answers has other code or versions; each job checks its node again."""
        versions = machine.versions(COMPARED)
        for node, facts in self._on_every_node(node_facts, list(self.sources), timeout_s=NODES_S).items():
            given = f"--address is '{self.address}', and node {node} belongs to it"
            if isinstance(facts, Exception):
                why = f"Lightbox and its papers do not load there: {first_line(facts)}"
                raise RequestError(given, why, "Check the same commit out on every node and start Ray from it")
            compare_node(given, versions, self.sources, facts)

    def _on_every_node(self, function: Any, argument: Any, *, timeout_s: float) -> dict[str, Any]:
        """What a function returned, or the exception it met, by node; a node that died or is late is left out."""
        on_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = self._ray.remote(num_cpus=0, max_retries=0)(function)
        asked = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                here = on_node(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
                asked[name] = task.options(scheduling_strategy=here).remote(argument)
        self._ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
        answers = {}
        for name, reference in asked.items():
            try:
                answers[name] = self._ray.get(reference, timeout=0)
            except self._ray.exceptions.RayTaskError as err:
                answers[name] = err.cause or err
            except self._ray.exceptions.RayError as err:
                _log.warning("Node %s does not answer (%s)", name, type(err).__name__)
        return answers


def _refused_by_worker(order: Order, err: Exception) -> WorkError:
    """The error for a job that its worker could not even begin."""
    return WorkError(
        f"{order.title}: the job folder is {order.folder}",
        f"The worker could not run it: {first_line(err)}",
        "Check that the same commit is installed on every node; the same command runs the job again",
    )
