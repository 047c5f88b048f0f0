"""Device and precision, chosen once by accelerate, which also makes processes that were launched together meet."""

import datetime
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env, send_to_device

from lightbox.config import RunConfig
from lightbox.errors import RequestError

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others: the first may compute features that all will read."""


def make_accelerator(run: RunConfig) -> Accelerator:
    """Make accelerate's object for device placement, autocast and loss scaling, and meet the other processes.

    Raises:
        RequestError: where the device is absent or cannot compute in the precision, or the launch asks for shards.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise RequestError(
            "The launch asks for FSDP, which cuts a model into shards",
            "accelerate gathers shards around a model's own forward, and a paper's step calls parts of the model",
            "Launch with --multi_gpu, where each card holds the whole model; adapter.quant=nf4 makes it small",
        )
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
    meeting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=is_cpu, mixed_precision=precision, kwargs_handlers=[meeting])


def plain_device(accelerator: Accelerator) -> torch.device:
    """The device as tensors name it: processes of gloo say cpu:0, and a single card may go without its number."""
    device = accelerator.device
    if device.type == "cpu":
        return torch.device("cpu")
    return torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)


def on_device(batch: Any, accelerator: Accelerator) -> Any:
    """Move a batch: tensors in dictionaries and sequences, or an object with its own `to(device)`."""
    return batch if accelerator.device.type == "cpu" else send_to_device(batch, accelerator.device, non_blocking=True)
