"""Is Triton here, is its interpreter on, and may these tensors be given to a kernel?"""

import importlib
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightbox.errors import RequestError


def why_no_triton() -> str:
    """Why kernels cannot be compiled here; "" where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (its wheels are for Linux)"
    return ""


def is_interpreted() -> bool:
    """Whether Triton runs kernels in Python on the CPU. Kernels read TRITON_INTERPRET when they are first imported."""
    return not why_no_triton() and bool(importlib.import_module("triton").knobs.runtime.interpret)


def load_kernels(package: str) -> ModuleType:
    """The `kernel` module of an operator's package, imported at the first launch: `op` must import without Triton.

    Raises:
        RequestError: Triton is missing.
    """
    reason = why_no_triton()
    if reason:
        raise RequestError(
            f"A Triton kernel of {package} was asked for",
            reason,
            "Give CPU tensors, which PyTorch computes, or install the Triton that belongs to this torch",
        )
    if is_interpreted():
        _mend_interpreter()
    return importlib.import_module(f"{package}.kernel")


@cache
def _mend_interpreter() -> None:
    """Let loops of the interpreter take bounds that a kernel has loaded.

    Triton 3.6 holds a scalar as an array of one element and makes a bound of it with int(), which NumPy refuses from
    2.4 on. Nothing else of the interpreter is changed.
    """
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index


def on_device(name: str, *tensors: Tensor | None) -> AbstractContextManager:
    """Refuse tensors that a kernel cannot take; otherwise a context in which launches go to their device.

    Args:
        name: of the operator, for the message.
        tensors: what the kernel reads; None is passed over.

    Raises:
        RequestError: a CPU tensor without the interpreter, bfloat16 in the interpreter, float64 anywhere.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    is_interpreter = is_interpreted()
    for tensor in given:
        if tensor.dtype == torch.float64:
            raise RequestError(
                f"{name} got a float64 tensor for its kernel",
                "Kernels compute in float32",
                "Pass float32, or CPU tensors, for which PyTorch computes in float64",
            )
        if not tensor.is_cuda and not is_interpreter:
            raise RequestError(
                f"{name}.launch got a tensor on '{tensor.device.type}'",
                "Kernels are compiled for CUDA, and Triton's interpreter is off",
                f"Call {name}() itself, which computes CPU tensors with PyTorch, or start with TRITON_INTERPRET=1",
            )
        if is_interpreter and tensor.dtype == torch.bfloat16:
            raise RequestError(
                f"{name}.launch got a bfloat16 tensor in Triton's interpreter",
                "The interpreter of Triton 3.6 computes with the raw bits of bfloat16, and its results are wrong",
                "Check with float32 or float16 there",
            )
    device = given[0].device
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
