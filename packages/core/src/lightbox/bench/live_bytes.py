"""Peak of live tensor bytes of some work: on a CPU from the storages of its operations, on a GPU from its allocator.

On a CPU the allocator is no measure of this: oneDNN takes from it what its kernels work in (weights in another order,
scratchpads), and how much that is differs from one processor to the next; with AMX it came to nearly half of a tiny
model's bf16 step. Nor is resident memory, which holds libraries and mapped files and does not fall when a tensor goes.
"""

import gc
import weakref
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.library import get_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightbox.backbones.quantisation import BACKEND

COMPOSED = frozenset(f"{BACKEND}::{name}" for name in ("gemm_4bit", "int8_mixed_scaled_mm", "int8_scaled_mm"))
"""Kernels of bitsandbytes that only call torch, so they run on tensors without content too."""
COMPOSED_ON_CPU = frozenset({f"{BACKEND}::optimizer_update_8bit_blockwise"})
"""Those that are so on a CPU only."""
_ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def peak_bytes(
    work: Callable[[], Any], *, held: Iterable[Tensor] = (), device: str = "cpu", composed: Container[str] | None = None
) -> int:
    """Highest sum of live tensor bytes while `work` runs.

    Args:
        work: what is measured, called once. Run it once before, so that gradients, optimiser states and caches have the
            size that they keep.
        held: tensors that are alive before and through the work (weights, states, inputs): what the work did not make
            is not counted. On a GPU they are not needed, its allocator counts them.
        device: "cpu" or "cuda".
        composed: kernels of bitsandbytes whose own tensors count, where the others are not to be run (see `COMPOSED`);
            None means all.

    Returns:
        Bytes of the distinct storages in `held`, and on top of them the most that the work's own come to together: of
        results of operations, not of what a kernel needs while it runs, so the same on every processor.
    """
    gc.collect()  # a cycle that the garbage collector ends in the middle of the work would lower its peak
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what building left in the allocator would count as reserved
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    base = storage_bytes(held)
    with _LiveStorages(composed) as live:
        work()
    return base + live.peak


def held_by(*owners: nn.Module | torch.optim.Optimizer | dict[str, Any]) -> list[Tensor]:
    """Tensors of models (parameters, buffers, states of quantised weights), of optimisers, and of batches."""
    tensors: list[Tensor] = []
    for owner in owners:
        if isinstance(owner, nn.Module):
            for tensor in (*owner.parameters(), *owner.buffers()):
                tensors += _with_states(tensor)
            tensors += [part for module in owner.modules() for part in _eight_bit(module)]
        elif isinstance(owner, torch.optim.Optimizer):
            tensors += [slot for slots in owner.state.values() for slot in slots.values() if isinstance(slot, Tensor)]
        else:
            tensors += [value for value in owner.values() if isinstance(value, Tensor)]
    return tensors


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of tensors: a view and its base count once."""
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


class _LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations under this mode make, now and at their highest; backward passes too."""

    def __init__(self, composed: Container[str] | None) -> None:
        super().__init__()
        self.composed = composed
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # what comes in and was not seen is older than the work; only a list's tensor is made where no mode looks
        self._note((args, kwargs), is_new=func is torch.ops.aten.lift_fresh.default)
        if func.namespace == BACKEND and (self.composed is None or func.name() in self.composed):
            # its kernels are Python, with tensors of their own (a dequantised matrix): called so that the mode sees in
            with self:
                result = get_kernel(func, "CPU").call_boxed(_ON_CPU, *args, **kwargs)
        else:
            result = func(*args, **kwargs)
        self._note(result, is_new=True)
        return result

    def _note(self, values: Any, *, is_new: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                if is_new:
                    self._change(storage.nbytes())
                    weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _with_states(tensor: Tensor) -> list[Tensor]:
    """A parameter with the statistics that bitsandbytes keeps beside its 4-bit codes."""
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return [tensor]
    nested = [state, state.state2] if state.nested else [state]
    parts = [part for one in nested for part in (one.absmax, one.code)]
    return [tensor, *parts, *([state.offset] if state.nested else [])]


def _eight_bit(module: nn.Module) -> list[Tensor]:
    """Codes and scales that an 8-bit linear layer of bitsandbytes keeps outside of its parameter."""
    state = getattr(module, "state", None)
    parts = (getattr(state, name, None) for name in ("CB", "SCB"))
    return [part for part in parts if isinstance(part, Tensor)]
