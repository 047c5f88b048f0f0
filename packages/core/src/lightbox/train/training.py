"""What one training is made of, built once, and where it continues.

Every process holds the whole model. Shards (FSDP) are refused: accelerate's plugin wraps the model's own forward and
prepares model and optimiser together, while a paper's step calls parts of the model, such as all but the head.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from lightbox.adapters.optimizers import make_optimizer
from lightbox.config import OptimConfig, RunConfig, TrainConfig
from lightbox.errors import RequestError
from lightbox.files import to_plain
from lightbox.runs import folders
from lightbox.train import checkpoint, processes, seeds, weights
from lightbox.train.batches import BatchSource
from lightbox.train.checkpoint import ResumeState
from lightbox.train.feed import Feed
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.updates import decay_groups

Step = Callable[[nn.Module, Any], tuple[Tensor, Tensor | int, dict[str, float | Tensor]]]
"""(model, batch) -> loss summed over supervised tokens, their number, means over them that are worth a curve."""
Prepare = Callable[[nn.Module, list[int]], Sequence[Any]]
"""(model, indices of a step) -> one item per index, from which micro-batches are cut; see `driver.fit`."""
Advice = str | Callable[[int], str]
"""Which part takes most memory and what would fit: a sentence, or what makes it from items in a forward pass."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What one training is made of; only `ResumeState` changes while it runs.

    `parameters` are what the optimiser holds; `device` is the accelerator's as tensors name it.
    """

    model: nn.Module
    step: Step
    prepare: Prepare | None
    batches: BatchSource
    feed: Feed
    optim: OptimConfig
    run: RunConfig
    train: TrainConfig
    out: Path
    memory_advice: Advice | None
    accelerator: Accelerator
    device: torch.device
    optimizer: Optimizer
    parameters: list[nn.Parameter]

    @property
    def tries_longest(self) -> bool:
        """True where the longest items are tried first: their lengths are at hand and memory is what may be short.

        That is on a GPU, or where `train.auto_batch` says so; a CPU with room to spare need not pay for it. What a
        step prepares, such as a group of sampled answers, has no length before it is prepared.
        """
        may_be_short = self.device.type == "cuda" or self.train.auto_batch
        return may_be_short and self.batches.row_lengths is not None and self.prepare is None

    @property
    def share(self) -> int:
        """Items of a step in this process."""
        return self.optim.batch_size // processes.count()

    def micro_batch_size(self, state: ResumeState) -> int:
        """Items of a forward pass now: as asked, or what a shortage of memory left of it."""
        asked = min(self.optim.micro_batch_size or self.share, self.share)
        return min(asked, state.micro_batch_size or asked)


def build(
    model: nn.Module,
    step: Step,
    batches: BatchSource,
    *,
    prepare: Prepare | None,
    optim: OptimConfig,
    run: RunConfig,
    train: TrainConfig,
    out: Path,
    groups: Sequence[dict[str, Any]] | None,
    memory_advice: Advice | None,
) -> Training:
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
    device = plain_device(accelerator)
    seeds.seed_everything(processes.seed_of(run.seed), run.threads, device=device.type)
    if any(tensor.device != device for tensor in (*model.parameters(), *model.buffers())):
        model.to(device)  # some quantised models refuse the call even where nothing would move
    processes.spread(weights.trained_tensors(model).values(), device=device)  # what is frozen, all have read alike
    model.train()
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay) if groups is None else groups
    optimizer = make_optimizer(optim.optimizer, groups, lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer.zero_grad(set_to_none=True)  # of whatever the caller tried before
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if accelerator.scaler is not None:
        optimizer = accelerator.prepare_optimizer(optimizer)  # its wrapper only serves the loss scale of fp16
    return Training(
        model=model,
        step=step,
        prepare=prepare,
        batches=batches,
        feed=Feed(batches, workers=train.workers, has_prepare=prepare is not None),
        optim=optim,
        run=run,
        train=train,
        out=out,
        memory_advice=memory_advice,
        accelerator=accelerator,
        device=device,
        optimizer=optimizer,
        parameters=[parameter for group in optimizer.param_groups for parameter in group["params"]],
    )


def resume(training: Training) -> ResumeState:
    """Continue from the newest checkpoint that verifies, or start at step 0."""
    folder = training.out / folders.CHECKPOINTS
    settings = {f"optim.{key}": value for key, value in to_plain(training.optim).items()}
    settings |= {"run.seed": training.run.seed, "run.precision": training.run.precision}
    path = None
    if processes.is_main():
        if not training.run.resume:
            checkpoint.set_aside(folder)
        checkpoint.clean(folder)
        path = checkpoint.latest(folder)
    path = processes.from_main(path)
    if path is None:
        training.batches.rewind()  # else a source used before would make this run another one
        return ResumeState(settings=settings)
    state = checkpoint.load(path, training.model, training.optimizer, settings=settings)
    training.batches.restore(state.batches)
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state.scaler)
    rngs = [state.rng, *state.other_rngs]
    if processes.rank() < len(rngs):
        seeds.restore_rng(rngs[processes.rank()])
    else:  # written by fewer processes: this one gets draws of its own
        seed = processes.seed_of(training.run.seed, step=state.step)
        seeds.seed_everything(seed, training.run.threads, device=training.device.type)
    _log.info("continuing from %s", path.name)
    return state


def save(training: Training, state: ResumeState, *, failures: int) -> int:
    """Write a checkpoint, or warn; gives the failed saves in a row. Every process must call it."""
    rngs = processes.gather(seeds.rng_state())
    state.batches, state.rng, state.other_rngs = training.batches.state(), rngs[0], rngs[1:]
    state.scaler = {} if training.accelerator.scaler is None else training.accelerator.scaler.state_dict()
    folder = training.out / folders.CHECKPOINTS
    return checkpoint.save_or_warn(folder, training.model, training.optimizer, state, failures=failures)
