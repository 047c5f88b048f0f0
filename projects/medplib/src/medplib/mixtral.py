"""The fused layout of Mixtral, in which all experts of a layer are one tensor, and back to named experts.

Mixtral of transformers divides the weights of the chosen experts by their sum. With one expert a token that is 1 and
its router gets no gradient; here weight straight_through has the same values and gives one.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightbox.errors import RequestError
from medplib.assembly import mixtures

_LINEARS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def to_mixtral(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a Llama with experts under the names of a Mixtral with as many, everything else under its own.

    Equal are: Mixtral with one expert a token and weight straight_through or one; with several, and weight prob.

    Raises:
        RequestError: experts that are not three linear layers without bias.
    """
    state = dict(model.state_dict())
    for path, part in mixtures(model):
        own = [expert.state_dict() for expert in part.experts.values()]
        if any(sorted(one) != sorted(_LINEARS) for one in own):
            raise RequestError(
                f"An expert at {path} holds {', '.join(own[0])}",
                f"Mixtral's have {', '.join(_LINEARS)}",
                "Convert plain experts, with adapters merged and without biases",
            )
        state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
        gate, up, down = ([one[name] for one in own] for name in _LINEARS)
        fused = [torch.cat(pair) for pair in zip(gate, up, strict=True)]
        state[f"{path}.experts.gate_up_proj"], state[f"{path}.experts.down_proj"] = (
            torch.stack(fused),
            torch.stack(down),
        )
        state[f"{path}.gate.weight"] = torch.stack([part.router.rows[name] for name in part.experts])
    return state


def from_mixtral(
    state: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Sources for `add_experts` out of a Mixtral's tensors, and its routers.

    Args:
        state: under Mixtral's names.
        names: of its experts, in the order of its rows.

    Returns:
        By name of the expert: a dense model's tensors, everything outside the experts included. And by path of each
        mixture the state of its router.

    Raises:
        RequestError: another number of experts.
    """
    paths = [key.removesuffix(".experts.down_proj") for key in state if key.endswith(".experts.down_proj")]
    inside = tuple(f"{path}{part}" for path in paths for part in (".experts.", ".gate."))
    shared = {key: value for key, value in state.items() if not key.startswith(inside)}
    sources, routers = {name: dict(shared) for name in names}, {}
    for path in paths:
        fused, down, rows = (
            state[f"{path}.{key}"] for key in ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
        )
        if len(names) != len(rows):
            raise RequestError(
                f"{len(names)} names for the {len(rows)} experts at {path}",
                "Each has one",
                "Name them in order of rows",
            )
        for place, name in enumerate(names):
            parts = (*fused[place].chunk(2), down[place])
            sources[name] |= {f"{path}.{key}": part for key, part in zip(_LINEARS, parts, strict=True)}
        routers[path] = {f"rows.{name}": row for name, row in zip(names, rows, strict=True)}
    return sources, routers
