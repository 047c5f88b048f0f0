"""What the mixtures of one model share while it runs: a forced choice, a loss of balance, a table of who went where.

Each is a context: outside it nothing is forced and nothing is recorded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightbox.backbones.rows import IGNORED
from lightbox.errors import RequestError
from lightbox.eval.routing_table import TASK, TYPE, RoutingTable
from lightbox.paper.pixel_items import PixelItem
from lightbox.paper.pixel_vlm import PixelVLM


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
def routing_facts(
    model: PixelVLM, items: Sequence[PixelItem], tasks: Sequence[str], *, batch_size: int, by_type: bool = True
) -> dict:
    """Who goes where, over questions that are read with their answers, for a card.

    Args:
        model: with mixtures; it is put in evaluation mode.
        items: answered.
        tasks: of each item.
        batch_size: items at once.
        by_type: False for a model that is pruned: its experts see other columns than the prompt has.

    Returns:
        `RoutingTable.facts` by task, and by type of token where that was wanted: picture, question, answer.
    """
    model.eval()
    total = RoutingTable()
    for start in range(0, len(items), batch_size):
        own = slice(start, start + batch_size)
        batch = model.prepare(items[own]).to(model.backbone.device)
        ids, labels = batch.rows.inputs["input_ids"], batch.rows.labels
        assert labels is not None  # items are answered
        is_picture, is_answer = ids == model.backbone.image_token_id, labels != IGNORED
        types = {"picture": is_picture, "answer": is_answer, "question": ~(is_picture | is_answer)}
        with counted(model.vlm, tasks=tasks[own], token_types=types if by_type else None) as table:
            model(batch)
        total.rows.update(table.rows)
    return {over: total.facts(over) for over in ((TASK, TYPE) if by_type else (TASK,))}


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
