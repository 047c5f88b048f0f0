"""Feed-forward networks of models that were trained apart become experts of one model: a dropless mixture.

`assembly.add_experts` puts a `Mixture` in the place of `layer.mlp` of Llama, Qwen2 and Qwen2.5-VL layers. Experts are
plain modules of linear layers under their names, so LoRA finds them. Every token goes to its expert, whatever the rest
of the batch does (the official code drops tokens over a capacity, and routes padding too).

A layer's `mlp` sees states and no mask. So the text model's own call carries the places of the tokens that are no
padding: a hook adds them to its arguments, transformers hands unknown arguments from layer to layer to `self_attn`, and
a hook there takes them out for the mixture. So a layer that is computed again in a backward pass gets the places of its
own call, whatever ran in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightbox.config import check_choice
from lightbox.errors import RequestError
from medplib.routing import Routing

WEIGHTS = ("prob", "straight_through", "one")
ROUTERS = ("learned", "random")
PLACES = "token_places"
"""Name of the argument that travels from the text model to its layers."""


@dataclass(frozen=True)
class MixtureSettings:
    """How tokens meet experts.

    Args:
        top_k: experts a token.
        weight: of an expert's output. prob: the router's probability, as the official code (divided by the sum of the
            chosen where top_k > 1, as Mixtral); it shrinks pretrained experts. straight_through: 1, with the gradient
            of prob / prob. one: 1, and the router learns nothing, as in Mixtral with one expert a token.
        router: learned, or random: as drawn and frozen, a control.
        seed: of the router's weights.
    """

    top_k: int = 1
    weight: str = "straight_through"
    router: str = "learned"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("weight", self.weight, WEIGHTS)
        check_choice("router", self.router, ROUTERS)
        if self.top_k < 1 or (self.top_k > 1 and self.weight != "prob"):
            raise RequestError(
                f"top_k is {self.top_k} and weight is {self.weight}",
                "Outputs of several experts are added in the ratio of their probabilities",
                "Set top_k=1, or weight=prob",
            )


class TokenRouter(nn.Module):
    """Scores of the experts for each row, in float32, without a bias.

    A row of weights has its expert's name, so that saved weights cannot be read in another order.
    """

    def __init__(self, width: int, names: Sequence[str], *, generator: torch.Generator, is_learned: bool) -> None:
        super().__init__()
        drawn = torch.rand(len(names), width, generator=generator) * 2 - 1
        self.rows = nn.ParameterDict()  # a plain mapping would be sorted by name
        for name, row in zip(names, drawn * width**-0.5, strict=True):
            self.rows[name] = nn.Parameter(row, is_learned)

    def forward(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n x"]:
        """Logits; gradient flows to weights and states."""
        weight = torch.stack(list(self.rows.values()))
        if not torch.is_autocast_enabled(hidden.device.type):
            return F.linear(hidden.float(), weight.float())
        with torch.autocast(hidden.device.type, enabled=False):  # 16 bits would decide near ties by rounding
            return F.linear(hidden.float(), weight.float())


class Mixture(nn.Module):
    """The experts of one layer.

    Args:
        experts: by name, alike in structure, in evaluation of one row independent of the others.
        router: with the same names.
        settings: see there.
        routing: shared by the mixtures of a model.
        layer: number of the layer, for tables.
    """

    def __init__(
        self,
        experts: Mapping[str, nn.Module],
        router: TokenRouter,
        settings: MixtureSettings,
        routing: Routing,
        layer: int,
    ) -> None:
        super().__init__()
        self.experts, self.router = nn.ModuleDict(experts), router
        self.settings, self.routing, self.layer = settings, routing, layer
        self.places: Tensor | None = None

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Mix the experts' outputs; padding gets 0, so that the residual passes it on unchanged."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        if self.places is not None:
            rows = rows[self.places]
            if not len(rows):
                return torch.zeros_like(hidden)
        choice, weight = self._choose(rows, *hidden.shape[:2])
        if self.routing.table is not None:
            self.routing.table.add(self.layer, self.routing.names, choice, self._row_places(rows), hidden.shape[1])
        out = self._mix(rows, choice, weight)
        if self.places is not None:
            out = out.new_zeros(hidden[..., 0].numel(), out.shape[-1]).index_copy_(0, self.places, out)
        return out.view(hidden.shape)

    def take_places(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Before the layer's attention: take the places out of its arguments and keep them."""
        kwargs = {**kwargs}
        self.places = kwargs.pop(PLACES, None)
        return args, kwargs

    def _choose(self, rows: Tensor, b: int, t: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"] | None]:
        """Experts of each row by number, and their weights; None is 1."""
        settings, forced = self.settings, self.routing.forced
        if isinstance(forced, str):
            return torch.full((len(rows), 1), self.routing.names.index(forced), device=rows.device), None
        if forced is not None:
            if len(forced) != b:
                raise RequestError(
                    f"{len(forced)} experts for a batch of {b} rows",
                    "Each row goes to its own",
                    "Name one for each row",
                )
            numbers = torch.tensor([self.routing.names.index(name) for name in forced], device=rows.device)
            return numbers[self._row_places(rows) // t, None], None
        logits = self.router(rows)
        choice = logits.argmax(-1, keepdim=True) if settings.top_k == 1 else logits.topk(settings.top_k).indices
        is_one = settings.weight == "one" or (settings.weight == "straight_through" and not torch.is_grad_enabled())
        if is_one and self.routing.balance is None:
            return choice, None
        probs = logits.softmax(-1)
        if self.routing.balance is not None:
            share = F.one_hot(choice, len(self.experts)).float().mean((0, 1))
            self.routing.balance.append(len(self.experts) * (probs.mean(0) * share).sum())
        if is_one:
            return choice, None
        weight = probs.gather(1, choice)
        if settings.weight == "straight_through":
            weight = weight / weight.detach()  # x / x is 1 to the last bit, and its gradient is that of log x
        elif settings.top_k > 1:
            weight = weight / weight.sum(-1, keepdim=True)
        return choice, weight

    def _row_places(self, rows: Tensor) -> Int[Tensor, " n"]:
        """Where the rows stand in the batch, read row by row."""
        return torch.arange(len(rows), device=rows.device) if self.places is None else self.places

    def _mix(self, rows: Tensor, choice: Tensor, weight: Tensor | None) -> Float[Tensor, "n d"]:
        """One product for each expert that is chosen at all, over its rows together."""
        experts, k = list(self.experts.values()), choice.shape[1]
        if choice.numel() == 1:  # a step of decoding, where counting would cost as much as the network
            counts = [0] * len(experts)
            counts[int(choice)] = 1
        else:
            counts = torch.bincount(choice.flatten(), minlength=len(experts)).tolist()
        if max(counts) == len(rows) * k:  # nothing to sort: the very product of a dense layer
            out = experts[counts.index(len(rows))](rows)[:, None]
        else:
            order = choice.flatten().argsort(stable=True)
            groups = rows[order // k].split(counts)
            joined = torch.cat([expert(group) for expert, group in zip(experts, groups, strict=True) if len(group)])
            out = rearrange(torch.empty_like(joined).index_copy_(0, order, joined), "(n k) d -> n k d", k=k)
        if weight is None:
            return out[:, 0]
        return (out * weight[..., None].to(out.dtype)).sum(1)
