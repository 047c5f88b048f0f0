"""What operators refuse before a launch.

Shapes, dtypes and devices are known on the host and always checked. Values (offsets, counts, NaN) are checked where
reading them is free: on the CPU. On CUDA a look at a value waits for the device, so there it is taken only inside
`values_checked()`; outside it kernels stay within bounds whatever they are given, and wrong values give wrong results.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from lightbox.errors import RequestError

_IS_CHECKED = ContextVar("values on CUDA are checked", default=False)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


@contextmanager
def values_checked() -> Iterator[None]:
    """Check the values of CUDA tensors too, for finding a fault; each check waits for the device."""
    token = _IS_CHECKED.set(True)
    try:
        yield
    finally:
        _IS_CHECKED.reset(token)


def can_read(tensor: Tensor) -> bool:
    """Whether values may be looked at: free on the CPU, a wait on CUDA, impossible while a graph is traced."""
    return not torch.compiler.is_compiling() and (tensor.device.type == "cpu" or _IS_CHECKED.get())


def check_shape(name: str, label: str, tensor: Tensor, shape: tuple[int | None, ...], axes: str) -> None:
    """Refuse a tensor whose sizes are not those given; None takes any size.

    Args:
        axes: how the shape is written in the docstring, for the message.
    """
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(
        want is not None and got != want for got, want in zip(sizes, shape, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise RequestError(
            f"{name} got {label} of shape {list(sizes)}",
            f"It must be {axes}, here [{wanted}]",
            f"Give {label} in that shape",
        )


def check_dtype(name: str, label: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor of another dtype than those named."""
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise RequestError(
            f"{name} got {label} of {str(tensor.dtype).removeprefix('torch.')}",
            f"{label} must be {names}",
            f"Convert {label} before the call",
        )


def check_devices(name: str, **tensors: Tensor | None) -> None:
    """Refuse tensors that lie on different devices."""
    places = {label: tensor.device for label, tensor in tensors.items() if tensor is not None}
    if len(set(places.values())) > 1:
        where = ", ".join(f"{label} on '{device}'" for label, device in places.items())
        raise RequestError(
            f"{name} got {where}", "All tensors of a call must lie on one device", "Move them with .to(device)"
        )


def check_offsets(name: str, cu: Tensor, rows: int, label: str = "cu") -> None:
    """Refuse segment offsets that are not int32, do not begin at 0, fall, or do not end at `rows`."""
    check_dtype(name, label, cu, (torch.int32,))
    if cu.ndim != 1 or len(cu) < 1:
        raise RequestError(
            f"{name} got {label} of shape {list(cu.shape)}",
            "Offsets are one more than there are segments, in one row",
            f"Give {label} as [0, length of the first, length of the first two, ...]",
        )
    if not can_read(cu):
        return
    offsets = cu.tolist()
    if offsets[0] != 0 or offsets[-1] != rows or any(a > b for a, b in zip(offsets, offsets[1:], strict=False)):
        raise RequestError(
            f"{name} got {label}={_brief(offsets)} for {rows} rows",
            f"Offsets must begin at 0, never fall and end at the number of rows, {rows}",
            f"Give {label} as the running sum of the segments' lengths, with a 0 before it",
        )


def check_counts(name: str, k: Tensor, cu: Tensor, total: int) -> None:
    """Refuse counts that are not int32 per segment, negative, above their segment, or do not sum to `total`."""
    check_dtype(name, "k", k, (torch.int32,))
    check_shape(name, "k", k, (len(cu) - 1,), "[S]")
    if total < 0:
        raise RequestError(f"{name} got total={total}", "Fewer than no rows cannot be kept", "Give total = sum of k")
    if not can_read(k):
        return
    counts, lengths = k.tolist(), cu.diff().tolist()
    for segment, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        if not 0 <= count <= length:
            raise RequestError(
                f"{name} got k[{segment}]={count} for a segment of {length} tokens",
                "No more tokens can be kept than are present, and no fewer than none",
                "Take k from allocate_budget with cap = the segments' lengths",
            )
    if sum(counts) != total:
        raise RequestError(
            f"{name} got total={total} and k that sums to {sum(counts)}",
            "total is the size of the result, which is made before k is read",
            "Give total = sum of k",
        )


def check_kept(name: str, idx: Tensor, cu: Tensor, cu_kept: Tensor) -> None:
    """Refuse kept indices that are not int64, do not rise, or lie outside the segment that `cu_kept` gives them to."""
    check_dtype(name, "idx", idx, (torch.int64,))
    check_shape(name, "cu_kept", cu_kept, (len(cu),), "[S+1]")
    check_offsets(name, cu_kept, len(idx), "cu_kept")
    if not can_read(idx) or not len(idx):
        return
    if (idx.diff() <= 0).any():
        raise RequestError(
            f"{name} got idx that does not rise", "A token is kept once, and order is kept", "Sort idx and drop repeats"
        )
    segment = torch.bucketize(torch.arange(len(idx), device=idx.device), cu_kept[1:], right=True)
    if ((idx < cu[segment]) | (idx >= cu[segment + 1])).any():
        raise RequestError(
            f"{name} got idx with a token outside its segment",
            "cu_kept gives each kept token a segment, and cu says where that lies",
            "Take idx and cu_kept from one selection, with the same cu",
        )


def check_no_nan(name: str, label: str, tensor: Tensor) -> None:
    """Refuse NaN where values can be read."""
    if can_read(tensor) and tensor.isnan().any():
        raise RequestError(
            f"{name} got {label} with NaN at {tensor.isnan().nonzero()[0].tolist()}",
            "NaN has no place in an order",
            f"Find where {label} became NaN; to drop such tokens, set them to -inf",
        )


def check_not_negative(name: str, label: str, tensor: Tensor) -> None:
    """Refuse negative, infinite or NaN values where values can be read."""
    if can_read(tensor) and not ((tensor >= 0) & (tensor < torch.inf)).all():
        worst = tensor[~((tensor >= 0) & (tensor < torch.inf))][0].item()
        raise RequestError(
            f"{name} got {label} with a value of {worst}", f"{label} must be 0 or more and finite", f"Clamp {label}"
        )


def _brief(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:4]))}, ..., {values[-1]}]"
