"""The loop, once: accumulate, clip, step, schedule, log, evaluate, save. A paper hands in its own `step`.

What is unusual here: the gradient is that of the sum over supervised tokens divided by the tokens of the whole
optimiser step, so micro-batches of unequal lengths give what one large batch gives; a loss or gradient that is not
finite stops the run before the weights change; a killed run continues to the same bits.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from lightbox.config import OptimConfig, RunConfig, to_plain
from lightbox.errors import RequestError
from lightbox.train import checkpoint, nonfinite, seeds
from lightbox.train.accumulation import Micro, Step, accumulate, combine
from lightbox.train.batches import BatchSource
from lightbox.train.card import RunCard, describe
from lightbox.train.checkpoint import ResumeState
from lightbox.train.files import write_json
from lightbox.train.groups import decay_groups
from lightbox.train.precision import make_accelerator, on_device
from lightbox.train.schedule import lr_factor
from lightbox.train.signals import StopSignals

History = dict[str, list[list[float | None]]]
"""Curves by metric key, each a list of [step, value]; None where an evaluation gave no finite number."""
Evaluate = Callable[[nn.Module], dict[str, float]]
"""Gives metrics by key, such as "val/acc"; called in eval mode without gradient."""

OVERFLOWS_ALLOWED = 20
LAST_CHANCE = checkpoint.FAILURES_ALLOWED - 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What one training is made of; only `ResumeState` changes while it runs."""

    model: nn.Module
    step: Step
    batches: BatchSource
    optim: OptimConfig
    run: RunConfig
    out: Path
    accelerator: Accelerator
    optimizer: Optimizer
    parameters: list[nn.Parameter]


def fit(
    model: nn.Module,
    step: Step,
    batches: BatchSource,
    *,
    optim: OptimConfig,
    run: RunConfig,
    out: Path,
    groups: Sequence[dict[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
) -> History:
    """Train `model` in place for `optim.max_steps` optimiser steps, or continue from the newest checkpoint in `out`.

    Writes `out/checkpoints/step-XXXXXXXX/`, `out/history.json` and `out/card.json` (times are in the card only, so
    that a repeated run gives the same history byte for byte).

    Args:
        model: in train mode while it learns, and moved to the device of `run`.
        step: what the paper does with one batch; its loss is a sum, never a mean.
        batches: the data, of `optim.batch_size` items a step.
        optim: optimiser settings.
        run: seed, device, precision, cadences. Everything is seeded anew here, so a run depends on the initial
            weights, the data and the seed only.
        out: folder of this run.
        groups: torch parameter groups in place of `decay_groups`.
        evaluate: gives metrics such as ``{"val/acc": 0.5}`` at each `run.save_every_steps` and at the end; it runs in
            eval mode without gradient and moves no random generator.

    Returns:
        The curves train/loss, train/grad_norm, train/lr, train/<each mean of step>, and those of `evaluate`.

    Raises:
        RequestError: where settings, data and checkpoint do not fit each other.
        WorkError: where loss or gradient is not finite, or checkpoints cannot be written.
        KeyboardInterrupt, SystemExit: after saving, on SIGINT and SIGTERM.
    """
    # ---- build
    parts = _build(model, step, batches, optim=optim, run=run, out=out, groups=groups)
    state = _resume(parts)
    failures = 0
    notes = [f"continued from step {state.step}"] if state.step else []
    facts = describe(model, parts.accelerator.device, run, notes=notes)

    with RunCard(out / "card.json", facts, is_resumed=state.step > 0), StopSignals() as signals:
        while state.step < optim.max_steps:
            # ---- gradient
            lr = _set_lr(parts, state.step)
            micros = accumulate(
                model,
                step,
                batches,
                micro_batch_size=optim.micro_batch_size or optim.batch_size,
                accelerator=parts.accelerator,
                parameters=parts.parameters,
            )
            norm = _grad_norm(parts)
            means = combine(micros) | {"train/grad_norm": float(norm)}
            if _must_stop(parts, state, means):
                _stop(parts, state, micros, means)

            # ---- update
            if optim.clip_norm > 0:
                nn.utils.clip_grads_with_norm_(parts.parameters, optim.clip_norm, norm)
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=True)
            state.step += 1

            # ---- log, evaluate, save
            is_last = state.step == optim.max_steps
            _record(state, means, lr=lr, is_due=is_last or state.step % run.log_every_steps == 0)
            is_due = is_last or (run.save_every_steps > 0 and state.step % run.save_every_steps == 0)
            if is_due and evaluate is not None:
                _evaluate(parts, state, evaluate)
            if is_due or signals.received is not None:
                failures = _save(parts, state, failures=LAST_CHANCE if is_last else failures)
            signals.raise_if_received()

    write_json(out / "history.json", state.history)
    return state.history


def _build(
    model: nn.Module,
    step: Step,
    batches: BatchSource,
    *,
    optim: OptimConfig,
    run: RunConfig,
    out: Path,
    groups: Sequence[dict[str, Any]] | None,
) -> Parts:
    if batches.batch_size != optim.batch_size:
        raise RequestError(
            f"The batches hold {batches.batch_size} items and optim.batch_size is {optim.batch_size}",
            "A batch is what one optimiser step learns from; micro-batches are cut from it",
            "Make the BatchSource with batch_size=optim.batch_size",
        )
    out.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(run)
    seeds.seed_everything(run.seed, run.threads, device=accelerator.device.type)
    model.to(accelerator.device).train()
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay) if groups is None else groups
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if accelerator.scaler is not None:
        optimizer = accelerator.prepare_optimizer(optimizer)  # its wrapper only serves the loss scale of fp16
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return Parts(model, step, batches, optim, run, out, accelerator, optimizer, parameters)


def _resume(parts: Parts) -> ResumeState:
    """Continue from the newest checkpoint that verifies, or start at step 0."""
    folder = parts.out / "checkpoints"
    settings = {f"optim.{key}": value for key, value in to_plain(parts.optim).items()}
    settings |= {"run.seed": parts.run.seed, "run.precision": parts.run.precision}
    if not parts.run.resume:
        checkpoint.set_aside(folder)
    checkpoint.clean(folder)
    path = checkpoint.latest(folder)
    if path is None:
        parts.batches.rewind()  # else a source used before would make this run another one
        return ResumeState(settings=settings)
    state = checkpoint.load(path, parts.model, parts.optimizer, settings=settings)
    parts.batches.restore(state.batches)
    if parts.accelerator.scaler is not None:
        parts.accelerator.scaler.load_state_dict(state.scaler)
    seeds.restore_rng(state.rng)
    _log.info("continuing from %s", path.name)
    return state


def _set_lr(parts: Parts, step: int) -> float:
    optim = parts.optim
    factor = lr_factor(step, max_steps=optim.max_steps, warmup_frac=optim.warmup_frac, schedule=optim.schedule)
    for group in parts.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optim.lr * factor


def _grad_norm(parts: Parts) -> Tensor:
    if parts.accelerator.scaler is not None:
        parts.accelerator.unscale_gradients()
    # torch's own: accelerate's clipping looks for sharded tensors first and costs 5 ms a step on a small model
    return nn.utils.get_total_norm([p.grad for p in parts.parameters if p.grad is not None])


def _must_stop(parts: Parts, state: ResumeState, means: dict[str, float]) -> bool:
    """True where a number is not finite; the loss scale of fp16 may skip overflowing gradients for a while."""
    if not math.isfinite(means["train/loss"]):
        return True
    if math.isfinite(means["train/grad_norm"]):
        state.overflows = 0
        return False
    state.overflows += 1
    return parts.accelerator.scaler is None or state.overflows > OVERFLOWS_ALLOWED


def _stop(parts: Parts, state: ResumeState, micros: list[Micro], means: dict[str, float]) -> NoReturn:
    broken = next((micro.indices for micro in micros if not math.isfinite(micro.loss_sum)), None)
    batch = on_device(parts.batches.collate(broken or micros[-1].indices), parts.accelerator)

    def forward() -> None:
        with parts.accelerator.autocast():
            parts.step(parts.model, batch)

    nonfinite.stop(
        parts.model,
        forward,
        batch,
        out=parts.out,
        step=state.step + 1,
        ids=parts.batches.names(broken or [index for micro in micros for index in micro.indices]),
        loss=means["train/loss"],
        grad_norm=means["train/grad_norm"],
    )


def _record(state: ResumeState, means: dict[str, float], *, lr: float, is_due: bool) -> None:
    """Add a step to the window; when due, write the window's means into the curves and empty it."""
    for key, value in means.items():
        if math.isfinite(value):  # a skipped fp16 step has no gradient norm
            total, count = state.window.get(key, (0.0, 0))
            state.window[key] = [total + value, count + 1]
    if not is_due:
        return
    row = {key: total / count for key, (total, count) in state.window.items()} | {"train/lr": lr}
    for key, value in row.items():
        state.history.setdefault(key, []).append([state.step, value])
    state.window = {}
    _log.info("step %d: %s", state.step, ", ".join(f"{key} {value:.4g}" for key, value in sorted(row.items())))


def _evaluate(parts: Parts, state: ResumeState, evaluate: Evaluate) -> None:
    with seeds.untouched_rng(), torch.no_grad():
        metrics = evaluate(parts.model.eval())
    parts.model.train()
    for key, value in metrics.items():
        # JSON has no NaN: a metric that is undefined here, such as a mean over nothing, becomes null
        state.history.setdefault(key, []).append([state.step, float(value) if math.isfinite(value) else None])


def _save(parts: Parts, state: ResumeState, *, failures: int) -> int:
    state.batches, state.rng = parts.batches.state(), seeds.rng_state()
    state.scaler = {} if parts.accelerator.scaler is None else parts.accelerator.scaler.state_dict()
    folder = parts.out / "checkpoints"
    return checkpoint.save_or_warn(folder, parts.model, parts.optimizer, state, failures=failures)
