"""Several processes that train one model: who is who, what each one takes, and what they tell each other.

`accelerate launch --multi_gpu --num_processes N -m PAPER train ...` starts N of them, each with the whole model. Each
takes an equal share of every batch, and the sum of their gradients is the gradient of the batch. `accelerate launch
--cpu --num_processes N` starts one process only: on a machine without GPUs, launch with `--multi_gpu` as well and keep
run.device=cpu, which uses gloo.

With one process, the usual case, everything here is free and changes nothing.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightbox.config import RunConfig
from lightbox.errors import RequestError
from lightbox.train.precision import make_accelerator

BUCKET = 1 << 23
"""Elements that one all-reduce carries at most: enough to keep a link busy, little beside a model."""


def count() -> int:
    """How many processes train together, >= 1."""
    return dist.get_world_size() if _has_met() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, in [0, count)."""
    return dist.get_rank() if _has_met() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """True in the one process that writes files."""
    return rank() == 0


def join(run: RunConfig) -> None:
    """Meet the other processes; `driver.fit` does so itself, so this is for work before it.

    Raises:
        RequestError: as `make_accelerator`.
    """
    if count() > 1:
        make_accelerator(run)


def wait_for_everyone() -> None:
    """Return when every process has come here; all must have met, in `join` or `fit`."""
    if count() > 1:
        dist.barrier()


@contextmanager
def on_main_first() -> Iterator[None]:
    """Run a block in the first process, then in the others: what it puts into a shared cache, they read."""
    if not is_main():
        wait_for_everyone()
    try:
        yield
    finally:
        if is_main():
            wait_for_everyone()


def shares(indices: Sequence[int]) -> list[list[int]]:
    """Cut a batch into one run of items for each process, in order; the last batch of an epoch may leave some short."""
    size = -(-len(indices) // count())
    return [list(indices[at * size : (at + 1) * size]) for at in range(count())]


def check_batch_size(batch_size: int) -> None:
    """Raise `RequestError` where a batch cannot be cut into equal shares."""
    if batch_size % count():
        raise RequestError(
            f"optim.batch_size is {batch_size} and {count()} processes were launched",
            "Each process takes an equal share of every batch, and optim.batch_size is the batch of all together",
            f"Set optim.batch_size to a multiple of {count()}, or launch another number of processes",
        )


def seed_of(seed: int, *, step: int = 0) -> int:
    """Seed of this process's own draws, such as dropout: the first keeps `seed`, the others get ones of their own."""
    if is_main():
        return seed
    return int(np.random.SeedSequence([seed, rank(), step]).generate_state(1)[0])


def gather(value: Any) -> list[Any]:
    """Values of all processes, by rank, in every process; plain values, no tensors."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The first process's value, in every process."""
    return gather(value)[0]


def spread(tensors: Iterable[Tensor], *, device: torch.device) -> None:
    """Overwrite tensors in place with those of the first process; `device` is one that the processes can send from."""
    if count() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().to(device).contiguous()
        dist.broadcast(sent, 0)
        with torch.no_grad():
            tensor.copy_(sent)


def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over processes; one that no process has stays None.

    Nothing is averaged, so dividing each process's loss by the tokens of all gives the mean over all of them. This is
    done once a step, after accumulation, in place of torch's DistributedDataParallel: that one sends during the last
    backward pass, and a process that runs out of memory there would leave the others waiting.
    """
    if count() == 1:
        return
    absent = [{at for at, parameter in enumerate(parameters) if parameter.grad is None}]
    nowhere = set.intersection(*gather(absent[0]))
    gradients: list[Tensor] = []
    for at, parameter in enumerate(parameters):
        if at not in nowhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of gradients of one dtype with at most `BUCKET` elements, or one gradient."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for same in by_dtype.values():
        bucket: list[Tensor] = []
        for gradient in same:
            if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket


def _has_met() -> bool:
    return dist.is_available() and dist.is_initialized()
