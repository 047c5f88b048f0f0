"""How a model is stored and trained, as far as memory depends on it."""

import re
from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Setting:
    """How a model is stored and trained; see `lightbox.config.AdapterConfig` for the words.

    Args:
        item: bytes of a weight that is not quantised, and of a value.
        quant: none, nf4 or int8: how linear layers of the language model are stored.
        trains_all: True for full training, False where only adapters learn.
        targets: pattern of the paths of linear layers with an adapter; None for none.
        rank: of adapters.
        adapter_item: bytes of an adapter's number.
        is_fused: True where base and addition are computed as one step.
        dropout_prob: before an adapter.
        use_dora: True where direction and length are learned apart.
        projector: frozen, lora or full.
        kept: last names of linear layers that are never quantised.
        kept_item: bytes of their numbers.
        is_cuda: True for a GPU, False for a CPU; their kernels differ in what they save.
        attention: "eager" keeps the whole score matrix, anything else does not.
    """

    item: int = FLOAT32
    quant: str = "none"
    trains_all: bool = True
    targets: re.Pattern[str] | None = None
    rank: int = 16
    adapter_item: int = FLOAT32
    is_fused: bool = False
    dropout_prob: float = 0.0
    use_dora: bool = False
    projector: str = "frozen"
    kept: tuple[str, ...] = ()
    kept_item: int = FLOAT32
    is_cuda: bool = False
    attention: str = "sdpa"
