"""A loss or gradient that is not finite: find the first tensor to blame, write it down, stop."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lightbox.errors import WorkError
from lightbox.files import write_json
from lightbox.train import processes, sharding


def stop(
    model: nn.Module,
    forward: Callable[[], Any],
    batch: Any,
    *,
    out: Path,
    step: int,
    ids: list[str],
    loss: float,
    grad_norm: float,
) -> NoReturn:
    """Write `nonfinite.json` and raise; the weights are still those of the last good step.

    Args:
        model: with the gradients of the failed step.
        forward: runs the failed micro-batch again.
        batch: that micro-batch.
        out: folder of the run.
        step: the failed optimiser step, counted from 1.
        ids: names of the examples in the failed micro-batch.
        loss: mean loss of the step.
        grad_norm: gradient norm of the step, before clipping.

    Raises:
        WorkError: always, naming step, examples and tensor.
    """
    tensor = first_nonfinite(model, forward, batch)
    facts = {"step": step, "last_good_step": step - 1, "ids": ids, "tensor": tensor}
    if processes.is_main():
        write_json(out / "nonfinite.json", facts | {"loss": str(loss), "grad_norm": str(grad_norm)})  # JSON has no NaN
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    raise WorkError(
        f"At step {step} the loss is {loss} and the gradient norm {grad_norm}; examples {shown}",
        f"The first tensor that is not finite is {tensor}",
        f"Look at those examples (all are listed in {out / 'nonfinite.json'}), or lower optim.lr",
    )


def first_nonfinite(model: nn.Module, forward: Callable[[], Any], batch: Any) -> str:
    """Name the first tensor that is not finite, in the order batch, weights, module outputs, gradients.

    With several processes each looks at what it holds, and all name what the first of them found.
    """
    for look in (
        lambda: next((name for name, tensor in tensors_in(batch, "batch") if is_nonfinite(tensor)), None),
        lambda: next((f"weight {name}" for name, p in model.named_parameters() if is_nonfinite(p)), None),
        lambda: _first_output(model, forward),
        lambda: next((f"gradient of {n}" for n, p in model.named_parameters() if _has_broken_gradient(p)), None),
    ):
        blamed = next((name for name in processes.gather(look()) if name is not None), None)
        if blamed is not None:
            return blamed
    return "the loss itself, computed from finite outputs"


def is_nonfinite(tensor: Tensor) -> bool:
    """True where a floating tensor, or the part of it that lies in this process, holds NaN or infinity."""
    return tensor.is_floating_point() and not bool(torch.isfinite(sharding.own_part(tensor)).all())


def _has_broken_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and is_nonfinite(parameter.grad)


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside nested dictionaries, sequences and dataclasses, with a dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from tensors_in(entry, f"{name}.{index}")
    elif hasattr(value, "items"):
        for key, entry in value.items():
            yield from tensors_in(entry, f"{name}.{key}")
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, key), f"{name}.{key}")


def _first_output(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Run forward once more and watch every module; the innermost one that finishes first is to blame."""
    blamed: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not blamed and any(is_nonfinite(tensor) for _, tensor in tensors_in(output, "output")):
                blamed.append(f"output of {name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return blamed[0] if blamed else None
