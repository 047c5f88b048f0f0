"""Device and precision, chosen once by accelerate."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device

from lightbox.config import RunConfig
from lightbox.errors import RequestError


def make_accelerator(run: RunConfig) -> Accelerator:
    """Make accelerate's object for device placement, autocast and loss scaling, for one process.

    Raises:
        RequestError: where the device is absent, cannot compute in the precision, or several processes were launched.
    """
    has_cuda = torch.cuda.is_available()
    if run.device == "cuda" and not has_cuda:
        raise RequestError("run.device is cuda", "torch finds no CUDA device on this machine", "Set run.device=cpu")
    is_cpu = run.device == "cpu" or not has_cuda
    if is_cpu and run.precision == "fp16":
        raise RequestError(
            f"run.precision is fp16 and run.device={run.device} is a CPU here",
            "Half precision without a GPU is slow and overflows",
            "Set run.precision=fp32",
        )
    precision = "no" if run.precision == "fp32" else run.precision
    former = AcceleratorState._shared_state
    if former and (former.get("_mixed_precision"), former.get("_cpu")) != (precision, is_cpu):
        AcceleratorState._reset_state(reset_partial_state=True)  # one a process, and an earlier job chose otherwise
    accelerator = Accelerator(cpu=is_cpu, mixed_precision=precision)
    if accelerator.num_processes > 1:
        raise RequestError(
            f"{accelerator.num_processes} processes were launched",
            "The step driver trains one model in one process; each process would train on the same batches",
            "Launch one process; lightbox reproduce runs seeds and arms side by side",
        )
    return accelerator


def on_device(batch: Any, accelerator: Accelerator) -> Any:
    """Move a batch: tensors in dictionaries and sequences, or an object with its own `to(device)`."""
    return batch if accelerator.device.type == "cpu" else send_to_device(batch, accelerator.device, non_blocking=True)
