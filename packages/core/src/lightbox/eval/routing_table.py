"""Which expert of a mixture takes which tokens, in all, by task and by type of token, and how much that tells."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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

    def facts(self, over: str) -> dict[str, dict]:
        """For a card: `shares[layer][group][expert]`, and `bits[layer]`, what the group tells about the expert."""
        shares: dict[str, dict[str, dict[str, float]]] = {}
        for (layer, group), share in sorted(self.shares(over).items()):
            shares.setdefault(str(layer), {})[group] = share
        return {"shares": shares, "bits": {str(layer): bits for layer, bits in self.information(over).items()}}
