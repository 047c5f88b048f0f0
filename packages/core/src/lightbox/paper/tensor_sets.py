"""Whether two sets of named tensors are of one model: the same names, of the same shapes."""

from collections.abc import Mapping

from torch import Tensor

SHOWN = 3


def differing(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What tensors lack, have beside those wanted, or have in another shape, in words; "" where they fit.

    Example:
        >>> import torch
        >>> differing({"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.zeros(3), "c": torch.zeros(2)})
        'missing c; unexpected b; of another shape a'
    """
    shared = tensors.keys() & wanted.keys()
    kinds = {
        "missing": wanted.keys() - tensors.keys(),
        "unexpected": tensors.keys() - wanted.keys(),
        "of another shape": {name for name in shared if tensors[name].shape != wanted[name].shape},
    }
    return "; ".join(f"{kind} {', '.join(sorted(names)[:SHOWN])}" for kind, names in kinds.items() if names)
