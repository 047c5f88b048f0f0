"""What one training is made of, built once: device, optimiser, shares of several processes, and where it continues."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from lightbox.adapters.optimizers import make_optimizer
from lightbox.backbones.quantisation import quantised_as
from lightbox.config import OptimConfig, RunConfig, TrainConfig
from lightbox.errors import RequestError
from lightbox.files import to_plain
from lightbox.train import checkpoint, processes, seeds, weights
from lightbox.train.accumulation import Step
from lightbox.train.batches import BatchSource
from lightbox.train.checkpoint import ResumeState
from lightbox.train.groups import decay_groups
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.sharding import Shards

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What one training is made of; only `ResumeState` changes while it runs.

    `shards` is None where every process holds the whole model. `parameters` are what the optimiser holds.
    """

    model: nn.Module
    step: Step
    batches: BatchSource
    optim: OptimConfig
    run: RunConfig
    train: TrainConfig
    out: Path
    accelerator: Accelerator
    device: torch.device
    optimizer: Optimizer
    parameters: list[nn.Parameter]
    shards: Shards | None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Give ``function(model, *arguments)``, wherever the model lies."""
        return function(self.model, *arguments) if self.shards is None else self.shards.call(function, *arguments)

    @property
    def share(self) -> int:
        """Items of a step in this process."""
        return self.optim.batch_size // processes.count()

    def micro_batch_size(self, state: ResumeState) -> int:
        """Items of a forward pass now: as asked, or what a shortage of memory left of it."""
        asked = min(self.optim.micro_batch_size or self.share, self.share)
        return min(asked, state.micro_batch_size or asked)


class Start:
    """Where a step began: generators and persistent buffers, to take it again.

    Args:
        model: its buffers, such as running statistics, are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._rng = seeds.rng_state()
        self._buffers = [(tensor, tensor.clone()) for tensor in weights.buffers(model)]

    def restore(self) -> None:
        """Put them back."""
        seeds.restore_rng(self._rng)
        for tensor, former in self._buffers:
            tensor.copy_(former)


def build(
    model: nn.Module,
    step: Step,
    batches: BatchSource,
    *,
    optim: OptimConfig,
    run: RunConfig,
    train: TrainConfig,
    out: Path,
    groups: Sequence[dict[str, Any]] | None,
) -> Parts:
    """Meet the other processes, seed, place the model and make the optimiser.

    Raises:
        RequestError: where settings, data, model and launch do not fit each other.
    """
    if batches.batch_size != optim.batch_size:
        raise RequestError(
            f"The batches hold {batches.batch_size} items and optim.batch_size is {optim.batch_size}",
            "A batch is what one optimiser step learns from; micro-batches are cut from it",
            "Make the BatchSource with batch_size=optim.batch_size",
        )
    out.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(run)
    processes.check_batch_size(optim.batch_size)
    if processes.is_sharded():
        _check_shardable(model, optim, run, train)
    device = plain_device(accelerator)
    seeds.seed_everything(processes.seed_of(run.seed), run.threads, device=device.type)
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay) if groups is None else groups
    shards = None
    if processes.is_sharded():
        shards = Shards(model, device)
        groups = [group | {"params": [shards.part_of(p) for p in group["params"]]} for group in groups]
    else:
        if any(tensor.device != device for tensor in (*model.parameters(), *model.buffers())):
            model.to(device)  # some quantised models refuse the call even where nothing would move
        processes.spread(weights.trained_tensors(model).values(), device=device)
    model.train()
    optimizer = make_optimizer(optim.optimizer, groups, lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if accelerator.scaler is not None:
        optimizer = accelerator.prepare_optimizer(optimizer)  # its wrapper only serves the loss scale of fp16
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return Parts(model, step, batches, optim, run, train, out, accelerator, device, optimizer, parameters, shards)


def resume(parts: Parts) -> ResumeState:
    """Continue from the newest checkpoint that verifies, or start at step 0."""
    folder = parts.out / "checkpoints"
    settings = {f"optim.{key}": value for key, value in to_plain(parts.optim).items()}
    settings |= {"run.seed": parts.run.seed, "run.precision": parts.run.precision}
    path = None
    if processes.is_main():
        if not parts.run.resume:
            checkpoint.set_aside(folder)
        checkpoint.clean(folder)
        path = checkpoint.latest(folder)
    path = processes.from_main(path)
    if path is None:
        parts.batches.rewind()  # else a source used before would make this run another one
        return ResumeState(settings=settings)
    state = checkpoint.load(path, parts.model, parts.optimizer, settings=settings)
    parts.batches.restore(state.batches)
    if parts.accelerator.scaler is not None:
        parts.accelerator.scaler.load_state_dict(state.scaler)
    _restore_rng(parts, state)
    _log.info("continuing from %s", path.name)
    return state


def save(parts: Parts, state: ResumeState, *, failures: int) -> int:
    """Write a checkpoint, or warn; gives the failed saves in a row."""
    rngs = processes.gather(seeds.rng_state())
    state.batches, state.rng, state.other_rngs = parts.batches.state(), rngs[0], rngs[1:]
    state.scaler = {} if parts.accelerator.scaler is None else parts.accelerator.scaler.state_dict()
    folder = parts.out / "checkpoints"
    return checkpoint.save_or_warn(folder, parts.model, parts.optimizer, state, failures=failures)


def _restore_rng(parts: Parts, state: ResumeState) -> None:
    """Continue this process's generators; one that the checkpoint does not know gets seeds of its own."""
    rngs = [state.rng, *state.other_rngs]
    if processes.rank() < len(rngs):
        seeds.restore_rng(rngs[processes.rank()])
    else:
        seed = processes.seed_of(parts.run.seed, step=state.step)
        seeds.seed_everything(seed, parts.run.threads, device=parts.device.type)


def _check_shardable(model: nn.Module, optim: OptimConfig, run: RunConfig, train: TrainConfig) -> None:
    """Raise `RequestError` for what FSDP cannot hold in shards here."""
    refusals = {
        "adapter.quant": (
            any(quantised_as(module) != "none" for module in model.modules()),
            "The bytes of a quantised layer mean nothing without its scales, which cannot be cut along with them",
            "Launch with --multi_gpu, where each card holds the quantised base, or set adapter.quant=none",
        ),
        "A parameter that is a single number": (
            any(parameter.ndim == 0 for parameter in model.parameters()),
            "There is no dimension along which it could be cut",
            "Launch with --multi_gpu, where each process holds the whole model",
        ),
        f"optim.optimizer={optim.optimizer}": (
            optim.optimizer != "adamw",
            "8-bit moments come in blocks over a whole tensor, and a shard is a part of one",
            "Set optim.optimizer=adamw; its moments lie in shards too",
        ),
        "run.precision=fp16": (
            run.precision == "fp16",
            "Each process would scale its loss by itself",
            "Set run.precision=bf16",
        ),
        "train.auto_batch=true": (
            train.auto_batch,
            "A process that runs out of memory leaves the others waiting for its part of a layer",
            "Set train.auto_batch=false and a smaller optim.micro_batch_size",
        ),
    }
    for setting, (is_asked, why, do) in refusals.items():
        if is_asked:
            raise RequestError(f"{setting} and FSDP are asked for together", why, do)
