"""The loss scale of fp16, on a CPU: torch's scaler and half-precision autocast run there too, only slowly.

`RunConfig` refuses fp16 on a CPU, so these tests make accelerate's object themselves.
"""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from lightbox.config import OptimConfig, RunConfig
from lightbox.errors import WorkError
from lightbox.train import checkpoint, driver, training
from lightbox.train.batches import BatchSource


@pytest.fixture(autouse=True)
def half_precision(monkeypatch):
    """Let the driver meet an accelerator with a loss scale of 2**16 that may double every third step."""

    def make(run):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
        return accelerator

    monkeypatch.setattr(training, "make_accelerator", make)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def squares(model, batch):
    """Squared distance to 1, whose half-precision gradient overflows under a large loss scale."""
    outputs = model(batch)
    return (outputs.float() - 1).square().sum() * 50, len(batch), {"is_half": float(outputs.dtype == torch.float16)}


def train(out, *, step=squares, max_steps=8, save_every_steps=0):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    source = BatchSource(12, lambda indices: rows[indices], batch_size=4, seed=0)
    history = driver.fit(
        model,
        step,
        source,
        optim=OptimConfig(lr=0.01, max_steps=max_steps, batch_size=4, micro_batch_size=2),
        run=RunConfig(seed=0, log_every_steps=1, save_every_steps=save_every_steps),
        out=out,
    )
    path = checkpoint.latest(out / "checkpoints")
    return model, history, checkpoint._read_state(path / "state.json")


def test_overflowing_steps_are_skipped_and_the_scale_comes_down(tmp_path):
    _, history, state = train(tmp_path, max_steps=24)
    assert all(value == 1.0 for _, value in history["train/is_half"])
    skipped = 24 - len(history["train/grad_norm"])
    assert 0 < skipped < 12
    assert state.scaler["scale"] < 2.0**16
    assert state.overflows == 0
    losses = [value for _, value in history["train/loss"]]
    assert sum(losses[-3:]) < sum(losses[:3])  # three steps are an epoch


def test_the_gradient_norm_is_that_without_the_scale(tmp_path):
    _, history, _ = train(tmp_path)
    assert all(norm < 2000 for _, norm in history["train/grad_norm"])  # scaled by 2**10 or more otherwise


def test_a_resume_restores_the_scale_bit_for_bit(tmp_path):
    straight, _, expected = train(tmp_path / "straight", save_every_steps=1)
    calls = []

    def cut(model, batch):
        calls.append(None)
        if len(calls) == 2 * 5 + 1:
            raise InterruptedError
        return squares(model, batch)

    with pytest.raises(InterruptedError):
        train(tmp_path / "cut", step=cut, save_every_steps=1)
    again, _, state = train(tmp_path / "cut", save_every_steps=1)
    assert state == expected
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))


def test_gradients_that_overflow_at_every_scale_stop_the_run(tmp_path):
    class Endless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, gradient):
            return torch.full((2, 2), float("inf")) * gradient

    def step(model, batch):
        return Endless.apply(model(batch).float()), len(batch), {}

    with pytest.raises(WorkError, match=f"At step {driver.OVERFLOWS_ALLOWED + 1} .*gradient norm (inf|nan)"):
        train(tmp_path, step=step, max_steps=40)
