"""What must hold while a model trains: numbers are finite, gradients arrive, the frozen quantised base stays."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lightbox.adapters.guards import STEPS_TO_REACH, GradientReach, quantised_digest, refuse_packed
from lightbox.backbones.quantisation import quantised_as
from lightbox.errors import WorkError
from lightbox.files import write_json
from lightbox.runs import folders
from lightbox.train import processes

SHOWN = 5


class Watch:
    """Looks at a model at the start, in its first steps and at the end of a training.

    Whether gradients arrive is asked only of a model that is partly frozen: there the settings say what trains. One
    that trains as a whole may hold parts that a paper's arm does not use.

    Args:
        model: as it begins to train.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._base = _digests(model)
        is_partly_frozen = not all(parameter.requires_grad for parameter in model.parameters())
        self._reach = GradientReach(model) if is_partly_frozen else None
        self._seen = 0

    def see_gradients(self, means: Mapping[str, float], *, tokens: int) -> None:
        """Look at a step's gradients, for the first two steps that have tokens to learn from and change weights.

        Args:
            means: of the step, with its gradient norm.
            tokens: that it learns from.

        Raises:
            WorkError: naming trainable tensors that no gradient has reached.
        """
        is_update = math.isfinite(means["train/grad_norm"]) and tokens > 0
        if self._reach is None or self._seen >= STEPS_TO_REACH or not is_update:
            return
        self._seen += 1
        self._reach.observe(self._seen)

    def check_base(self) -> None:
        """Compare the quantised layers with what they were at the start.

        Raises:
            WorkError: naming layers whose stored state differs, or which an evaluation repacked.
        """
        refuse_packed(self._model)
        now = _digests(self._model)
        changed = sorted(name for name in self._base.keys() | now.keys() if self._base.get(name) != now.get(name))
        if changed:
            rest = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise WorkError(
                f"The stored weights of {len(changed)} quantised layers changed in training: "
                f"{', '.join(changed[:SHOWN])}{rest}",
                "They are frozen, and the adapter belongs to the base as it was",
                "Load the base again, and change no weight of it in the step or the evaluation",
            )


def stop_at_nonfinite(
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

    With several processes each looks at what it holds, and all name what the first of them found.

    Args:
        model: with the gradients of the failed step.
        forward: runs the failed micro-batch again.
        batch: that micro-batch; None in a process that did not have it.
        out: folder of the run.
        step: the failed optimiser step, counted from 1.
        ids: names of the examples in the failed micro-batch.
        loss: mean loss of the step.
        grad_norm: gradient norm of the step, before clipping.

    Raises:
        WorkError: always, naming step, examples and the first tensor in the order batch, weights, outputs, gradients.
    """
    blamed = "the loss itself, computed from finite outputs"
    for look in (
        lambda: next((name for name, tensor in _tensors(batch, "batch") if _is_nonfinite(tensor)), None),
        lambda: next((f"weight {name}" for name, p in model.named_parameters() if _is_nonfinite(p)), None),
        lambda: _first_output(model, forward),
        lambda: next((f"gradient of {n}" for n, p in model.named_parameters() if _has_broken_gradient(p)), None),
    ):
        names = [name for name in processes.gather(look()) if name is not None]
        if names:
            blamed = names[0]
            break
    path = out / folders.NONFINITE
    facts = {"step": step, "last_good_step": step - 1, "ids": ids, "tensor": blamed}
    if processes.is_main():
        write_json(path, facts | {"loss": str(loss), "grad_norm": str(grad_norm)})  # JSON has no NaN
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    raise WorkError(
        f"At step {step} the loss is {loss} and the gradient norm {grad_norm}; examples {shown}",
        f"The first tensor that is not finite is {blamed}",
        f"Look at those examples (all are listed in {path}), or lower optim.lr",
    )


def _digests(model: nn.Module) -> dict[str, str]:
    """Digest of each quantised layer by name."""
    return {name: quantised_digest(m) for name, m in model.named_modules() if quantised_as(m) != "none"}


def _is_nonfinite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _has_broken_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and _is_nonfinite(parameter.grad)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside nested dictionaries, sequences and dataclasses, with a dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _tensors(entry, f"{name}.{index}")
    elif hasattr(value, "items"):
        for key, entry in value.items():
            yield from _tensors(entry, f"{name}.{key}")
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from _tensors(getattr(value, key), f"{name}.{key}")


def _first_output(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Run forward once more and watch every module; the innermost one that finishes first is to blame."""
    blamed: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not blamed and any(_is_nonfinite(tensor) for _, tensor in _tensors(output, "output")):
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
