"""The loop, once: accumulate, clip, step, schedule, log, evaluate, save. A paper hands in its own `step`.

What is unusual here: the gradient is that of the sum over supervised tokens divided by the tokens of the whole
optimiser step, so micro-batches of unequal lengths, on one process or several, give what one large batch gives; a loss
or gradient that is not finite stops the run before the weights change; a killed run continues to the same bits.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lightbox.adapters.guards import refuse_packed
from lightbox.config import OptimConfig, RunConfig, TrainConfig
from lightbox.files import write_json
from lightbox.train import checkpoint, gradient, nonfinite, parts, processes, seeds, sharding, weights
from lightbox.train.accumulation import Micro, Step, combine
from lightbox.train.batches import BatchSource
from lightbox.train.card import RunCard, describe
from lightbox.train.checkpoint import ResumeState
from lightbox.train.parts import Parts
from lightbox.train.precision import on_device
from lightbox.train.schedule import lr_factor
from lightbox.train.shortage import Advice
from lightbox.train.signals import StopSignals
from lightbox.train.watch import Watch

History = dict[str, list[list[float | None]]]
"""Curves by metric key, each a list of [step, value]; None where an evaluation gave no finite number."""
Evaluate = Callable[[nn.Module], dict[str, float]]
"""Gives metrics by key, such as "val/acc"; called in eval mode without gradient, in every process."""

OVERFLOWS_ALLOWED = 20
LAST_CHANCE = checkpoint.FAILURES_ALLOWED - 1
_log = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    step: Step,
    batches: BatchSource,
    *,
    optim: OptimConfig,
    run: RunConfig,
    out: Path,
    train: TrainConfig | None = None,
    groups: Sequence[dict[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
    facts: Mapping[str, Any] | None = None,
    memory_advice: Advice | None = None,
) -> History:
    """Train `model` in place for `optim.max_steps` optimiser steps, or continue from the newest checkpoint in `out`.

    Writes `out/checkpoints/step-XXXXXXXX/`, `out/history.json` and `out/card.json` (times are in the card only, so
    that a repeated run gives the same history byte for byte).

    Under `accelerate launch` every process calls this with the same arguments and an `out` that all can read. They
    share each batch, so losses are those of one process up to rounding; only what is drawn in a step, such as dropout,
    differs, since each process draws from seeds of its own. The first process writes, all return the same curves, and
    the model is whole in each of them.

    Args:
        model: in train mode while it learns, and moved to the device of `run`.
        step: what the paper does with one batch; its loss is a sum, never a mean.
        batches: the data, of `optim.batch_size` items a step.
        optim: optimiser settings.
        run: seed, device, precision, cadences. Everything is seeded anew here, so a run depends on the initial
            weights, the data and the seed only.
        out: folder of this run.
        train: how a step fits the machine; None is the default. Layers are checkpointed by whoever made the model.
        groups: torch parameter groups in place of `decay_groups`.
        evaluate: gives metrics such as ``{"val/acc": 0.5}`` at each `run.save_every_steps` and at the end; it runs in
            eval mode without gradient and moves no random generator.
        facts: what else the card is to say, such as the attention chosen and why, or how the base is stored.
        memory_advice: for the message where memory runs out, see `shortage.Advice`.

    Returns:
        The curves train/loss, train/grad_norm, train/lr, train/<each mean of step>, and those of `evaluate`; with
        `train.auto_batch` also train/micro_batch_size, a point for each time that it was cut.

    Raises:
        RequestError: where settings, data, checkpoint and launch do not fit each other.
        WorkError: where loss or gradient is not finite, memory runs out, checkpoints cannot be written, no gradient
            reaches a trainable tensor of a partly frozen model, or the quantised base has changed.
        KeyboardInterrupt, SystemExit: after saving, on SIGINT and SIGTERM to any process.
    """
    # ---- build
    train = TrainConfig() if train is None else train
    made = parts.build(model, step, batches, optim=optim, run=run, train=train, out=out, groups=groups)
    watch = Watch(model)
    state = parts.resume(made)
    failures = 0
    notes = [f"continued from step {state.step}"] if state.step else []
    told = describe(model, made.device, run, notes=notes) | {"optimizer": optim.optimizer} | dict(facts or {})

    with RunCard(out / "card.json", told, is_resumed=state.step > 0) as card, StopSignals() as signals:
        while state.step < optim.max_steps:
            # ---- gradient
            lr = _set_lr(made, state.step)
            micros = gradient.take(made, state, card, advice=memory_advice)
            norm = _grad_norm(made)
            means = combine(micros) | {"train/grad_norm": float(sharding.whole(norm))}
            if _must_stop(made, state, means):
                _stop(made, state, micros, means)
            watch.see_gradients(micros, means)

            # ---- update
            if optim.clip_norm > 0:
                nn.utils.clip_grads_with_norm_(made.parameters, optim.clip_norm, norm)
            with gradient.explained(made, state, advice=memory_advice):
                made.optimizer.step()
            made.optimizer.zero_grad(set_to_none=True)
            if processes.count() > 1:
                processes.spread(weights.buffers(model), device=made.device)
            state.step += 1

            # ---- log, evaluate, save
            is_last = state.step == optim.max_steps
            _record(state, means, lr=lr, is_due=is_last or state.step % run.log_every_steps == 0)
            is_due = is_last or (run.save_every_steps > 0 and state.step % run.save_every_steps == 0)
            if is_due and evaluate is not None:
                with gradient.explained(made, state, advice=memory_advice):
                    _evaluate(made, state, evaluate)
                refuse_packed(model)
            received = max(processes.gather(signals.received or 0))
            if is_due or received:
                failures = parts.save(made, state, failures=LAST_CHANCE if is_last else failures)
            signals.stop_for(received)
        signals.stop_for(max(processes.gather(signals.received or 0)))  # one that came while the last step was saved
        if made.shards is not None:
            made.shards.rejoin()
        watch.check_base()

    if processes.is_main():
        write_json(out / "history.json", state.history)
    return state.history


def _set_lr(made: Parts, step: int) -> float:
    optim = made.optim
    factor = lr_factor(step, max_steps=optim.max_steps, warmup_frac=optim.warmup_frac, schedule=optim.schedule)
    for group in made.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optim.lr * factor


def _grad_norm(made: Parts) -> Tensor:
    if made.accelerator.scaler is not None:
        made.accelerator.unscale_gradients()
    # torch's own: accelerate's clipping looks for sharded tensors first and costs 5 ms a step on a small model
    return nn.utils.get_total_norm([p.grad for p in made.parameters if p.grad is not None])


def _must_stop(made: Parts, state: ResumeState, means: dict[str, float]) -> bool:
    """True where a number is not finite; the loss scale of fp16 may skip overflowing gradients for a while."""
    if not math.isfinite(means["train/loss"]):
        return True
    if math.isfinite(means["train/grad_norm"]):
        state.overflows = 0
        return False
    state.overflows += 1
    return made.accelerator.scaler is None or state.overflows > OVERFLOWS_ALLOWED


def _stop(made: Parts, state: ResumeState, micros: list[Micro], means: dict[str, float]) -> NoReturn:
    broken = next((micro.indices for micro in micros if not math.isfinite(micro.loss_sum)), None)
    batch = on_device(made.batches.collate(broken or micros[-1].indices), made.accelerator)

    def forward() -> None:
        with made.accelerator.autocast():
            made.call(made.step, batch)

    nonfinite.stop(
        made.model,
        forward,
        batch,
        out=made.out,
        step=state.step + 1,
        ids=made.batches.names(broken or [index for micro in micros for index in micro.indices]),
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
    if processes.is_main():
        _log.info("step %d: %s", state.step, ", ".join(f"{key} {value:.4g}" for key, value in sorted(row.items())))


def _evaluate(made: Parts, state: ResumeState, evaluate: Evaluate) -> None:
    made.model.eval()
    with seeds.untouched_rng(), torch.no_grad():
        metrics = processes.from_main(made.call(evaluate))
    made.model.train()
    if made.shards is not None:
        made.shards.drop_whole()
    for key, value in metrics.items():
        # JSON has no NaN: a metric that is undefined here, such as a mean over nothing, becomes null
        state.history.setdefault(key, []).append([state.step, float(value) if math.isfinite(value) else None])
