"""What the mixtures of one model share while it runs: a forced choice, a loss of balance, a table of who went where.

Each is a context: outside it nothing is forced and nothing is recorded. What the official settings cost, where every
expert is padded to one capacity, is counted by `padded_rows`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightbox.errors import RequestError

EVERY, TASK, TYPE = "every token", "task", "token type"
"""What a row of a `RoutingTable` counts over."""


@dataclass
class RoutingTable:
    """How many rows each expert took, as `rows[layer, over, group, expert]`, summed over the calls that were counted.

    Args:
        tasks: of each row of the batch; none counts no tasks.
        token_types: name -> which tokens are of that type, b t.
    """

    tasks: tuple[str, ...] = ()
    token_types: Mapping[str, Bool[Tensor, "b t"]] = field(default_factory=dict)
    rows: Counter[tuple[int, str, str, str]] = field(default_factory=Counter)

    def add(
        self, layer: int, names: Sequence[str], choice: Int[Tensor, "n k"], places: Int[Tensor, " n"], t: int
    ) -> None:
        """Count the choices of one layer; `places` are those of its rows in the batch, read row by row."""
        groups = {(EVERY, ""): torch.ones_like(places, dtype=torch.bool)}
        row_of = (places // t).tolist() if self.tasks else []
        for task in dict.fromkeys(self.tasks):
            is_task = [self.tasks[row] == task for row in row_of]
            groups[TASK, task] = torch.tensor(is_task, dtype=torch.bool, device=places.device)
        for name, is_type in self.token_types.items():
            groups[TYPE, name] = is_type.to(places.device).flatten()[places]
        for (over, group), is_in in groups.items():
            counts = torch.bincount(choice[is_in].flatten(), minlength=len(names)).tolist()
            self.rows.update({(layer, over, group, name): n for name, n in zip(names, counts, strict=True)})

    def shares(self, over: str = EVERY) -> dict[tuple[int, str], dict[str, float]]:
        """For each layer and group, the share of its rows that each expert took, in [0, 1]; no empty groups."""
        table: dict[tuple[int, str], dict[str, int]] = {}
        for (layer, kind, group, name), n in self.rows.items():
            if kind == over:
                table.setdefault((layer, group), {})[name] = n
        return {
            place: {name: n / sum(counts.values()) for name, n in counts.items()}
            for place, counts in table.items()
            if sum(counts.values())
        }

    def information(self, over: str) -> dict[int, float]:
        """Mutual information of expert and group in each layer, in bits: 0 where every group is routed alike."""
        bits: dict[int, float] = {}
        for layer in sorted({key[0] for key in self.rows}):
            joint = {key[2:]: n for key, n in self.rows.items() if key[:2] == (layer, over) and n}
            total = sum(joint.values())
            by_group, by_expert = Counter[str](), Counter[str]()
            for (group, name), n in joint.items():
                by_group[group] += n
                by_expert[name] += n
            bits[layer] = sum(
                n / total * math.log2(n * total / (by_group[group] * by_expert[name]))
                for (group, name), n in joint.items()
            )
        return bits


@dataclass
class Routing:
    """State of a model's mixtures, one object for all of them.

    Args:
        names: of the experts, in the order of their numbers.
        forced: expert of all rows, or one for each row of the batch; None asks the router.
        balance: one term a layer and call while a loss of balance is wanted; None records none.
        table: counts while they are wanted.
    """

    names: tuple[str, ...]
    forced: str | tuple[str, ...] | None = None
    balance: list[Float[Tensor, ""]] | None = None
    table: RoutingTable | None = None


def routing_of(model: nn.Module) -> Routing:
    """The routing that the mixtures of a model share.

    Raises:
        RequestError: a model without mixtures.
    """
    for module in model.modules():
        if isinstance(routing := getattr(module, "routing", None), Routing):
            return routing
    raise RequestError("A model without experts", "There is nothing to route", "Call add_experts first")


@contextmanager
def routed_to(model: nn.Module, experts: str | Sequence[str]) -> Iterator[None]:
    """Send all tokens to one expert, or those of each row of the batch to its own, with weight 1.

    One name reproduces the model that the expert came from; a name a row, chosen by the task, is the oracle router. The
    backward pass belongs inside where layers are computed again.

    Raises:
        RequestError: a name that is no expert's.
    """
    routing = routing_of(model)
    wanted = (experts,) if isinstance(experts, str) else tuple(experts)
    if unknown := sorted(set(wanted) - set(routing.names)):
        raise RequestError(
            f"Tokens are routed to {unknown[0]!r}", f"The experts are {', '.join(routing.names)}", "Name one of them"
        )
    with _set(routing, forced=experts if isinstance(experts, str) else wanted):
        yield


@contextmanager
def balanced(model: nn.Module) -> Iterator[list[Float[Tensor, ""]]]:
    """Collect the loss of balance, one term for each layer and call, with gradient; add their sum before `backward`.

    A term is x sum_e mean(g_e) mean(c_e) over tokens, with g the router's probabilities and c the share of a token's
    choices that are e (as GShard): 1 where experts are used alike. The backward pass belongs inside where
    layers are computed again.
    """
    terms: list[Tensor] = []
    with _set(routing_of(model), balance=terms):
        yield terms


@contextmanager
def counted(
    model: nn.Module, *, tasks: Sequence[str] = (), token_types: Mapping[str, Bool[Tensor, "b t"]] | None = None
) -> Iterator[RoutingTable]:
    """Count which expert takes the tokens of each layer, in all, by task and by type of token.

    Args:
        model: in evaluation mode: in training a layer that is computed again would be counted twice.
        tasks: of each row of every batch that runs inside.
        token_types: name -> b t; for whole sequences, since a cached step sees one column of them.

    Raises:
        RequestError: a model in training mode.
    """
    routing = routing_of(model)
    if model.training:
        raise RequestError("Routing counted in training mode", "Layers may run twice", "Call model.eval() first")
    table = RoutingTable(tuple(tasks), token_types or {})
    with _set(routing, table=table):
        yield table


@torch.no_grad()
def centre_routers(model: nn.Module, read: Callable[[], object]) -> None:
    """Take out of drawn routers what all states of their layer share, in place, so that each expert gets tokens.

    States share a mean that is larger than what tells them apart: a router as it is drawn may send all tokens of a
    layer to one expert, and the other would learn nothing.

    Args:
        model: with routers.
        read: runs it over some questions; each router is centred on what it is given there, before it routes.
    """

    def centre(router: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mean = arguments[0].float().mean(dim=0)
        for row in router.parameters():
            row.sub_(row @ mean / (mean @ mean) * mean)

    owners = [module for module in model.modules() if isinstance(getattr(module, "routing", None), Routing)]
    handles = [module.get_submodule("router").register_forward_pre_hook(centre) for module in owners]
    try:
        read()
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _set(routing: Routing, **values: Any) -> Iterator[None]:
    before = {name: getattr(routing, name) for name in values}
    vars(routing).update(values)
    try:
        yield
    finally:
        vars(routing).update(before)


@dataclass(frozen=True)
class PaddedRows:
    """Rows that enter experts of one capacity, and choices without a place, whose expert's output is lost."""

    entering: int
    dropped: int


def padded_rows(counts: Sequence[int], *, factor: float) -> PaddedRows:
    """What experts cost that are padded to one capacity, ceil(factor * tokens / experts) rows each (DeepSpeed 0.13.1).

    Args:
        counts: tokens that prefer each expert, padding of the batch included, as the official code routes it.
        factor: 1.5 in its training, 2.0 in its evaluation.

    Example:
        >>> padded_rows([700, 0], factor=1.5)
        PaddedRows(entering=1050, dropped=175)
    """
    capacity = math.ceil(factor * sum(counts) / len(counts))
    return PaddedRows(capacity * len(counts), sum(max(0, n - capacity) for n in counts))
