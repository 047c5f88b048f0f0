"""Peak of live tensor bytes of some work: on a CPU from the profiler's memory events, on a GPU from its allocator.

Resident memory of the process is no measure of this: it holds what the allocator keeps, the libraries and the files
that are mapped, and it does not fall when a tensor goes.
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MEMORY_EVENT = "[memory]"


def peak_bytes(work: Callable[[], Any], *, held: Iterable[Tensor] = (), device: str = "cpu") -> int:
    """Highest sum of live tensor bytes while `work` runs.

    Args:
        work: what is measured, called once. Run it once before, so that gradients, optimiser states and caches have the
            size that they keep.
        held: tensors that are alive before and through the work (weights, states, inputs): the profiler sees only what
            is allocated while it looks. On a GPU they are not needed, its allocator counts them.
        device: "cpu" or "cuda".

    Returns:
        Bytes of the distinct storages in `held`, and on top of them the largest running sum of allocations less frees.
    """
    gc.collect()  # a cycle that the garbage collector ends in the middle of the work would lower its peak
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    base = storage_bytes(held)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        work()
    live = top = 0
    for change in _changes(recorded):
        live += change
        top = max(top, live)
    return base + top


def held_by(*owners: nn.Module | torch.optim.Optimizer | dict[str, Any]) -> list[Tensor]:
    """Tensors of models (parameters, buffers, states of quantised weights), of optimisers, and of batches."""
    found: list[Tensor] = []
    for owner in owners:
        if isinstance(owner, nn.Module):
            for tensor in (*owner.parameters(), *owner.buffers()):
                found += _with_states(tensor)
            found += [part for module in owner.modules() for part in _eight_bit(module)]
        elif isinstance(owner, torch.optim.Optimizer):
            found += [slot for slots in owner.state.values() for slot in slots.values() if isinstance(slot, Tensor)]
        else:
            found += [value for value in owner.values() if isinstance(value, Tensor)]
    return found


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of tensors: a view and its base count once."""
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _changes(recorded: profile) -> Iterable[int]:
    """Bytes of each allocation, and less than 0 of each free, on the CPU in the order of time."""
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events: list[Any] = [e for e in results.events() if e.name() == MEMORY_EVENT and e.device_type() == DeviceType.CPU]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


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
