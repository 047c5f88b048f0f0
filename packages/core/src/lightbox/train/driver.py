"""The loop on one page: prepare, forward, backward, accumulate, clip, step; then log, evaluate, save.

What is unusual here: the gradient is that of the sum over supervised tokens divided by the tokens of the whole
optimiser step, so micro-batches of unequal lengths, on one process or several, give what one large batch gives; a loss
or gradient that is not finite stops the run before the weights change; a killed run continues to the same bits.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from lightbox.adapters.guards import refuse_packed
from lightbox.config import OptimConfig, RunConfig, TrainConfig
from lightbox.errors import RequestError
from lightbox.runs import folders
from lightbox.train import checkpoint, processes, seeds, shortage, weights
from lightbox.train.batches import BatchSource
from lightbox.train.card import RunCard, describe
from lightbox.train.checkpoint import ResumeState
from lightbox.train.precision import on_device
from lightbox.train.signals import StopSignals
from lightbox.train.training import Advice, Prepare, Step, Training, build, resume, save
from lightbox.train.updates import lr_factor
from lightbox.train.watch import Watch, stop_at_nonfinite

History = dict[str, list[list[float | None]]]
"""Curves by metric key, each a list of [step, value]; None where an evaluation gave no finite number."""
Evaluate = Callable[[nn.Module], dict[str, float]]
"""Gives metrics by key, such as "val/acc"; called in eval mode without gradient, in every process."""

OVERFLOWS_ALLOWED = 20
LAST_CHANCE = checkpoint.FAILURES_ALLOWED - 1
_log = logging.getLogger(__name__)


class Pass(NamedTuple):
    """One forward and backward pass: item indices, summed loss, supervised tokens, means over them."""

    indices: list[int]
    loss_sum: float
    tokens: int
    means: dict[str, float]


Passes = tuple[list[Pass], float]
"""Passes, and what their losses were divided by, which is a guess until all tokens are known."""


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
    prepare: Prepare | None = None,
) -> History:
    """Train `model` in place for `optim.steps` optimiser steps, or continue from the newest checkpoint in `out`.

    Writes `out/checkpoints/step-XXXXXXXX/`, `out/history.json` and `out/card.json` (times are in the card only, so
    that a repeated run gives the same history byte for byte).

    Under `accelerate launch` every process calls this with the same arguments and an `out` that all can read. They
    share each batch, so losses are those of one process up to rounding; only what is drawn in a step, such as dropout,
    differs, since each process draws from seeds of its own. The first process writes, all return the same curves.

    Micro-batches are made in line, or by `train.workers` processes ahead of the step; a checkpoint's position is that
    of the steps taken, so both give the same bits. Where memory may be short (`Training.tries_longest`) and `batches`
    has row lengths, forward and backward over the longest rows come before the first step, and again beside the
    moments of the optimiser once it has made them; generators, buffers and gradients are then as they were.

    A step may begin with a stage before the micro-batches, `prepare`. It is called once per optimiser step with the
    indices of the whole step (with several processes, of this process's share, if it has one) and gives one item per
    index, in order: a pair with its reference log-probabilities, say, or a whole group of sampled answers with their
    rewards. `batches.collate` then gets the list of items of a micro-batch, in place of the list of their indices. The
    model is in eval mode without gradient and in the precision of the step meanwhile, and in train mode after it. The
    same items serve a step that is taken again in smaller micro-batches, and the message where a number is not finite;
    a continued run prepares them anew, from the generators of its checkpoint. So they may depend on model, indices and
    generators alone: a cache must hold what computing would give, in whatever batch an item came first.

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
        memory_advice: for the message where memory runs out, see `training.Advice`.
        prepare: the stage before the micro-batches, as above; it may draw from every generator.

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
    training = build(
        model,
        step,
        batches,
        prepare=prepare,
        optim=optim,
        run=run,
        train=TrainConfig() if train is None else train,
        out=out,
        groups=groups,
        memory_advice=memory_advice,
    )
    watch = Watch(model)
    state = resume(training)
    notes = [f"continued from step {state.step}"] if state.step else []
    if training.feed.in_line_because:
        notes.append(f"train.workers={training.train.workers} had no effect: {training.feed.in_line_because}")
    card_facts = describe(model, training.device, run, notes=notes) | {"optimizer": optim.optimizer} | dict(facts or {})
    failures = 0
    is_tried = not training.tries_longest

    with RunCard(out, card_facts, is_resumed=state.step > 0) as card, StopSignals() as signals, training.feed:
        while state.step < optim.steps:
            # ---- the longest items first, so that memory runs out now or never
            if not is_tried:
                _try_longest(training, state, card)
                is_tried = bool(training.optimizer.state)  # else again beside the moments that the first update makes

            # ---- prepare, forward, backward
            lr = _set_lr(training, state.step)
            items = _prepare(training, state)
            passes = _accumulate(training, state, items, card)
            norm = _grad_norm(training)
            means = _means(passes) | {"train/grad_norm": float(norm)}
            if _must_stop(training, state, means):
                _stop(training, state, items, passes, means)
            watch.see_gradients(means, tokens=sum(one.tokens for one in passes))

            # ---- clip and step
            if optim.clip_norm > 0:
                nn.utils.clip_grads_with_norm_(training.parameters, optim.clip_norm, norm)
            with shortage.explained(training, state, f"in the update of step {state.step + 1}"):
                training.optimizer.step()  # the first one makes the moments, which may be what does not fit
            training.optimizer.zero_grad(set_to_none=True)
            if processes.count() > 1:
                processes.spread(weights.buffers(model), device=training.device)
            state.step += 1

            # ---- log, evaluate, save
            is_last = state.step == optim.steps
            _record(state, means, lr=lr, is_due=is_last or state.step % run.log_every_steps == 0)
            is_due = is_last or (run.save_every_steps > 0 and state.step % run.save_every_steps == 0)
            if is_due and evaluate is not None:
                _evaluate(training, state, evaluate)
            received = max(processes.gather(signals.received or 0))
            if is_due or received:
                failures = save(training, state, failures=LAST_CHANCE if is_last else failures)
            signals.stop_for(received)
        signals.stop_for(max(processes.gather(signals.received or 0)))  # one that came while the last step was saved
        watch.check_base()

    if processes.is_main():
        folders.write_history(out, state.history)
    return state.history


def _prepare(training: Training, state: ResumeState) -> dict[int, Any]:
    """What this process learns from in the next step, by index; without `prepare` the indices themselves."""
    own = processes.shares(training.batches.next_indices())[processes.rank()]
    if training.prepare is None or not own:
        return dict(zip(own, own, strict=True))
    training.model.eval()
    place, do = f"in prepare of step {state.step + 1}", "Let prepare take fewer of its items at a time"
    # no_grad, not inference_mode, whose tensors no later backward pass may use
    with shortage.explained(training, state, place, do=do), torch.no_grad(), training.accelerator.autocast():
        items = training.prepare(training.model, list(own))
    training.model.train()
    refuse_packed(training.model)
    if len(items) != len(own):
        raise RequestError(
            f"prepare gave {len(items)} items for {len(own)} indices",
            "Micro-batches are cut by index, so each needs one item; a group of samples is one item",
            "Return a list with one item per index, in their order",
        )
    return dict(zip(own, items, strict=True))


def _accumulate(training: Training, state: ResumeState, items: dict[int, Any], card: RunCard) -> list[Pass]:
    """Leave in `grad` the gradient of the step's summed loss divided by its supervised tokens.

    Averaging the means of micro-batches would weight a token by how few neighbours it has. Here each loss is a sum,
    divided once by the tokens of the step, so 8 micro-batches of 1 give the gradient of 1 of 8, and two processes with
    half a batch each give that of one with all of it. Gives the passes of all processes, in the order of the batch.
    """
    passes, divisor = _until_it_fits(
        training,
        state,
        card,
        f"step {state.step + 1}",
        lambda size: _forward_backward(training, training.feed.micro_batches(items, size), -(-len(items) // size)),
    )
    correction = divisor / max(sum(one.tokens for one in passes), 1)
    if correction != 1.0:
        for parameter in training.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(correction)
    processes.add_up(training.parameters)
    return passes


def _until_it_fits(
    training: Training, state: ResumeState, card: RunCard, place: str, passes_of: Callable[[int], Passes]
) -> Passes:
    """Take passes in micro-batches of the size that fits, in every process alike; gives the passes of all of them."""
    start = shortage.Start(training.model) if training.train.auto_batch else None
    while True:
        passes, divisor, message = [], 1.0, ""
        try:
            passes, divisor = passes_of(training.micro_batch_size(state))
        except (RuntimeError, MemoryError) as err:
            if not shortage.is_shortage(err):
                raise
            message = str(err) or type(err).__name__
        everyone = processes.gather((passes, message))
        message = next((message for _, message in everyone if message), "")
        if not message:
            return [one for own, _ in everyone for one in own], divisor
        # out here no frame of the failed pass is left, which would hold its tensors
        shortage.halve(training, state, card, place=place, message=message, start=start)


def _try_longest(training: Training, state: ResumeState, card: RunCard) -> None:
    """Forward and backward over the items that need most memory, then everything as it was before."""
    start = shortage.Start(training.model)

    def longest(size: int) -> Passes:
        indices = training.batches.longest(size)
        return _forward_backward(training, [(indices, training.batches.collate(indices))], 1)

    _until_it_fits(training, state, card, f"the trial of the longest items before step {state.step + 1}", longest)
    training.optimizer.zero_grad(set_to_none=True)
    start.restore()


def _forward_backward(training: Training, micro_batches: Iterable[tuple[list[int], Any]], n: int) -> Passes:
    """Forward and backward over `n` micro-batches."""
    passes: list[Pass] = []
    divisor = 0.0
    for indices, made in micro_batches:
        batch = on_device(made, training.accelerator)
        with training.accelerator.autocast():
            loss_sum, n_tokens, means = training.step(training.model, batch)
        tokens = int(n_tokens)
        # all tokens are known after the last pass only; a first guess keeps fp16 losses in range and is corrected later
        divisor = divisor or float(max(tokens, 1) * n)
        training.accelerator.backward(loss_sum / divisor)
        passes.append(Pass(indices, _number(loss_sum), tokens, {name: _number(mean) for name, mean in means.items()}))
    return passes, divisor or 1.0


def _set_lr(training: Training, step: int) -> float:
    optim = training.optim
    factor = lr_factor(step, max_steps=optim.steps, warmup_frac=optim.warmup_frac, schedule=optim.schedule)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optim.lr * factor


def _grad_norm(training: Training) -> Tensor:
    if training.accelerator.scaler is not None:
        training.accelerator.unscale_gradients()
    # torch's own: accelerate's clipping looks for sharded tensors first and costs 5 ms a step on a small model
    return nn.utils.get_total_norm([p.grad for p in training.parameters if p.grad is not None])


def _means(passes: Sequence[Pass]) -> dict[str, float]:
    """Means over the supervised tokens of the whole step, by metric key."""
    tokens = max(sum(one.tokens for one in passes), 1)
    names = [name for name in passes[0].means if all(name in one.means for one in passes)]
    means = {f"train/{name}": sum(one.means[name] * one.tokens for one in passes) / tokens for name in names}
    return means | {"train/loss": sum(one.loss_sum for one in passes) / tokens}


def _must_stop(training: Training, state: ResumeState, means: dict[str, float]) -> bool:
    """True where a number is not finite; the loss scale of fp16 may skip overflowing gradients for a while."""
    if not math.isfinite(means["train/loss"]):
        return True
    if math.isfinite(means["train/grad_norm"]):
        state.overflows = 0
        return False
    state.overflows += 1
    return training.accelerator.scaler is None or state.overflows > OVERFLOWS_ALLOWED


def _stop(
    training: Training, state: ResumeState, items: dict[int, Any], passes: list[Pass], means: dict[str, float]
) -> NoReturn:
    """Take the micro-batch that broke once more and name the first tensor that is not finite."""
    broken = [one for one in passes if not math.isfinite(one.loss_sum)][:1] or passes
    # each process looks at a micro-batch of its own, since what another one prepared lies there
    own = next((one.indices for one in reversed(broken) if one.indices[0] in items), [])
    batch = on_device(training.batches.collate([items[i] for i in own]), training.accelerator) if own else None

    def forward() -> None:
        with training.accelerator.autocast():
            if own:
                training.step(training.model, batch)

    stop_at_nonfinite(
        training.model,
        forward,
        batch,
        out=training.out,
        step=state.step + 1,
        ids=training.batches.names([index for one in broken for index in one.indices]),
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


def _evaluate(training: Training, state: ResumeState, evaluate: Evaluate) -> None:
    training.model.eval()
    place = f"in the evaluation after step {state.step}"
    with shortage.explained(training, state, place), seeds.untouched_rng(), torch.no_grad():
        metrics = processes.from_main(evaluate(training.model))
    training.model.train()
    refuse_packed(training.model)
    for key, value in metrics.items():
        # JSON has no NaN: a metric that is undefined here, such as a mean over nothing, becomes null
        state.history.setdefault(key, []).append([state.step, float(value) if math.isfinite(value) else None])


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else float(value)
