import json
import logging
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from lightbox import files
from lightbox.config import OptimConfig, RunConfig
from lightbox.errors import RequestError, WorkError
from lightbox.testing.training import collate_rows, fit_tagger, make_rows, make_source, make_tagger, tagger_step
from lightbox.train import checkpoint
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.precision import make_accelerator
from lightbox.train.seeds import restore_rng, rng_state, seed_everything, untouched_rng


def draws():
    """One number of each generator."""
    return random.random(), float(np.random.random()), torch.rand(()).item()


def poisoned_source(row, value=float("nan")):
    """Batches of float features, one row of which holds a value that is not finite."""
    features = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    features[row, 2] = value
    names = [f"case-{index}" for index in range(16)]
    return BatchSource(16, lambda rows: {"features": features[rows]}, batch_size=4, seed=0, ids=names)


def regression_step(model, batch):
    outputs = model(batch["features"])
    return outputs.square().sum(), len(outputs), {}


def test_training_lowers_the_loss_and_moves_every_trainable_parameter(tmp_path):
    model = make_tagger(dropout=0.0)
    model.mix.bias_hh_l0.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    _, history = fit_tagger(tmp_path, model=model, optim={"max_steps": 60, "lr": 0.02}, log_every_steps=20)
    losses = [value for _, value in history["train/loss"]]
    assert losses[-1] < 0.8 * losses[0]
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {"mix.bias_hh_l0"}


def test_factor_stretches_the_steps_and_their_schedule(tmp_path):
    half = fit_tagger(tmp_path / "half", optim={"max_steps": 12, "steps_factor": 0.5})[1]
    plain = fit_tagger(tmp_path / "plain", optim={"max_steps": 6})[1]
    assert half == plain
    assert half["train/loss"][-1][0] == 6


def test_the_run_folder_holds_history_card_and_checkpoints(tmp_path):
    model, history = fit_tagger(tmp_path, save_every_steps=5)
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert set(history) == {"train/loss", "train/grad_norm", "train/lr", "train/accuracy"}
    assert [step for step, _ in history["train/loss"]] == [3, 6, 9, 12]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert (card["device"], card["dtype"], card["precision"], card["notes"]) == ("cpu", "float32", "fp32", [])
    assert card["wall_s"] > 0
    assert card["versions"]["torch"] == torch.__version__.split("+")[0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]


def test_history_is_the_mean_since_the_row_before(tmp_path):
    _, every = fit_tagger(tmp_path / "a", log_every_steps=1)
    _, third = fit_tagger(tmp_path / "b", log_every_steps=3)
    means = [sum(value for _, value in every["train/loss"][at : at + 3]) / 3 for at in (0, 3, 6, 9)]
    assert [value for _, value in third["train/loss"]] == pytest.approx(means, rel=1e-12)
    assert third["train/lr"] == every["train/lr"][2::3]


def test_the_last_step_is_logged_and_saved_whatever_the_cadence(tmp_path):
    _, history = fit_tagger(tmp_path, log_every_steps=50)
    assert [step for step, _ in history["train/loss"]] == [12]
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000012"


def test_the_model_is_in_train_mode_before_its_first_forward(tmp_path):
    seen = []

    def step(model, batch):
        seen.append(all(module.training for module in model.modules()))
        return tagger_step(model, batch)

    fit_tagger(tmp_path, model=make_tagger().eval(), step=step, optim={"max_steps": 3})
    assert seen == [True] * 3


def test_the_logged_loss_is_the_mean_over_tokens_of_the_whole_step(tmp_path):
    source = make_source(batch_size=4)
    batch = source.collate(source.order(0)[0])
    model = make_tagger(dropout=0.0)
    loss_sum, tokens, _ = tagger_step(model, batch)
    options = {"model": model, "log_every_steps": 1}
    _, history = fit_tagger(tmp_path, optim={"max_steps": 1, "micro_batch_size": 1}, **options)
    assert history["train/loss"][0][1] == pytest.approx(loss_sum.item() / int(tokens), rel=1e-6)


def test_the_gradient_norm_is_before_clipping_and_the_update_after_it(tmp_path):
    norms, moves = {}, {}
    for clip_norm in (0.0, 1e-4):
        model = nn.Linear(5, 3)
        nn.init.constant_(model.weight, 0.5)
        nn.init.zeros_(model.bias)
        source = poisoned_source(0, value=1.0)
        seen = []

        def step(model, batch, seen=seen):
            seen.append([p.grad is None for p in model.parameters()])
            return regression_step(model, batch)

        optim = {"max_steps": 1, "lr": 0.1, "weight_decay": 0.0, "clip_norm": clip_norm}
        _, history = fit_tagger(
            tmp_path / str(clip_norm), model=model, source=source, step=step, optim=optim, log_every_steps=1
        )
        path = checkpoint.latest(tmp_path / str(clip_norm) / "checkpoints") / "optimizer.safetensors"
        first_moments = checkpoint.weights.read_tensors(path)
        norms[clip_norm] = history["train/grad_norm"][0][1]
        moves[clip_norm] = sum(float(first_moments[f"{n}|exp_avg"].square().sum()) for n in ("weight", "bias")) ** 0.5
        assert seen == [[True, True]]
    assert norms[0.0] == norms[1e-4] > 1
    assert moves[0.0] == pytest.approx(0.1 * norms[0.0], rel=1e-5)  # the first moment is a tenth of the gradient
    assert moves[1e-4] == pytest.approx(0.1 * 1e-4, rel=1e-3)


def test_a_step_without_supervised_tokens_is_finite(tmp_path):
    def nothing(model, batch):
        return tagger_step(model, batch | {"labels": torch.full_like(batch["labels"], -100)})

    _, history = fit_tagger(tmp_path, step=nothing, optim={"max_steps": 2}, log_every_steps=1)
    assert [value for _, value in history["train/loss"]] == [0.0, 0.0]


def test_batches_of_another_size_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"hold 3 items and optim\.batch_size is 4"):
        fit_tagger(tmp_path, source=make_source(batch_size=3))


def test_given_groups_keep_their_own_rates(tmp_path):
    model = nn.Linear(5, 3)
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.001, "weight_decay": 0.0}]
    fit(
        model,
        regression_step,
        poisoned_source(0, value=1.0),
        optim=OptimConfig(lr=0.1, max_steps=4, batch_size=4),
        run=RunConfig(seed=0),
        out=tmp_path,
        groups=groups,
    )
    saved = json.loads((checkpoint.latest(tmp_path / "checkpoints") / "state.json").read_text())["groups"]
    assert [(g["names"], g["initial_lr"], g["lr"]) for g in saved] == [
        (["weight"], 0.5, 0.125),
        (["bias"], 0.001, 0.00025),
    ]


# ---- numbers that are not finite


def test_a_nan_in_the_data_stops_the_run_names_its_batch_and_keeps_the_weights(tmp_path):
    model = nn.Linear(5, 3)
    source = poisoned_source(row=9)
    batches = source.order(0)
    at = next(index for index, batch in enumerate(batches) if 9 in batch)
    ids = [f"case-{index}" for index in batches[at]]
    with pytest.raises(WorkError) as caught:
        fit_tagger(tmp_path, model=model, source=source, step=regression_step, save_every_steps=1)
    assert f"At step {at + 1} the loss is nan" in caught.value.given
    assert ", ".join(ids) in caught.value.given
    assert caught.value.why == "The first tensor that is not finite is batch.features."
    facts = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (facts["step"], facts["last_good_step"], facts["ids"]) == (at + 1, at, ids)
    assert facts["loss"] == "nan"
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_only_the_micro_batch_that_broke_is_named(tmp_path):
    source = poisoned_source(row=9, value=float("inf"))
    with pytest.raises(WorkError, match=r"examples case-9\. "):
        fit_tagger(tmp_path, model=nn.Linear(5, 3), source=source, step=regression_step, optim={"micro_batch_size": 1})
    assert json.loads((tmp_path / "nonfinite.json").read_text())["ids"] == ["case-9"]


class Exploding(nn.Module):
    """Its second layer overflows where the input is large."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.exp(1e5 * self.act(self.first(x)).abs() + 200))


class SquareRoot(nn.Module):
    """Finite everywhere, with an infinite gradient at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return (self.weight * x).abs().sum(dim=-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("model", "blamed"),
    [
        (Exploding(), "output of last (Linear)"),
        (SquareRoot(), "gradient of weight"),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path, model, blamed):
    with pytest.raises(WorkError, match="At step 1") as caught:
        fit_tagger(tmp_path, model=model, source=poisoned_source(0, value=1.0), step=regression_step_plain)
    assert blamed in caught.value.why


def regression_step_plain(model, batch):
    outputs = model(batch["features"])
    return outputs.sum(), len(outputs), {}


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    model = nn.Linear(5, 3)
    model.bias.data[1] = float("nan")
    with pytest.raises(WorkError, match="is weight bias"):
        fit_tagger(tmp_path, model=model, source=poisoned_source(0, value=1.0), step=regression_step)


# ---- stopping and saving


def test_sigint_saves_and_interrupts_and_sigterm_exits_with_143(tmp_path):
    for number, expected in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        calls = []

        def step(model, batch, number=number, calls=calls):
            calls.append(None)
            if len(calls) == 4:
                os.kill(os.getpid(), number)
            return tagger_step(model, batch)

        before = signal.getsignal(number)
        with pytest.raises(expected) as caught:
            fit_tagger(tmp_path / str(number), step=step)
        assert signal.getsignal(number) is before
        assert checkpoint.latest(tmp_path / str(number) / "checkpoints").name == "step-00000004"
        assert len(calls) == 4
        if number == signal.SIGTERM:
            assert caught.value.code == 143


def test_a_second_signal_stops_at_once_without_saving(tmp_path):
    def step(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return tagger_step(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit_tagger(tmp_path, step=step)
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_training_goes_on_over_a_full_disk_and_saves_when_there_is_room(tmp_path, monkeypatch, caplog):
    original, calls = files.sync_file, []

    def full_for_a_while(path):
        calls.append(path)
        if 3 <= len(calls) <= 4:  # the second and third save, at their first file
            raise OSError(28, "No space left on device")
        original(path)

    monkeypatch.setattr(files, "sync_file", full_for_a_while)
    with caplog.at_level(logging.WARNING):
        model, _ = fit_tagger(tmp_path / "full", save_every_steps=2)
    assert [r.getMessage()[:7] for r in caplog.records if r.levelno == logging.WARNING] == ["Step 4:", "Step 6:"]
    monkeypatch.setattr(files, "sync_file", original)
    straight, _ = fit_tagger(tmp_path / "straight", save_every_steps=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), straight.parameters(), strict=True))
    assert checkpoint.latest(tmp_path / "full" / "checkpoints").name == "step-00000012"


def test_a_last_save_that_fails_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync_file", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WorkError, match=r"checkpoint of step 12 cannot be written.*No space left"):
        fit_tagger(tmp_path)


def test_a_finished_run_trains_no_further(tmp_path):
    model, history = fit_tagger(tmp_path)
    (tmp_path / "history.json").unlink()

    def never(model, batch):
        raise AssertionError("a finished run took a step")

    again, same = fit_tagger(tmp_path, model=make_tagger(9), step=never)
    assert same == history == json.loads((tmp_path / "history.json").read_text())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert json.loads((tmp_path / "card.json").read_text())["notes"] == ["continued from step 12"]


def test_a_fresh_run_ignores_checkpoints_and_keeps_them(tmp_path):
    fit_tagger(tmp_path, optim={"max_steps": 3})
    calls = []

    def step(model, batch):
        calls.append(None)
        return tagger_step(model, batch)

    fit_tagger(tmp_path, step=step, resume=False, optim={"max_steps": 5})
    assert len(calls) == 5
    assert checkpoint.latest(tmp_path / "checkpoints-before-1").name == "step-00000003"


def test_continuing_with_other_settings_or_other_data_is_refused(tmp_path):
    fit_tagger(tmp_path, optim={"max_steps": 3})
    with pytest.raises(RequestError, match=r"optim\.lr=0\.01 \(now 0\.5\)"):
        fit_tagger(tmp_path, optim={"max_steps": 3, "lr": 0.5})
    with pytest.raises(RequestError, match=r"run\.seed=0 \(now 1\)"):
        fit_tagger(tmp_path, optim={"max_steps": 3}, seed=1)
    rows = make_rows(30)
    other = BatchSource(30, lambda i: collate_rows([rows[j] for j in i]), batch_size=4, seed=0)
    with pytest.raises(WorkError, match="order of examples"):
        fit_tagger(tmp_path, optim={"max_steps": 3}, source=other)


# ---- evaluation, seeds, devices


def test_evaluation_runs_in_eval_mode_without_gradient_and_is_recorded(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"val/acc": len(seen) / 10}

    model, history = fit_tagger(tmp_path, evaluate=evaluate, save_every_steps=5)
    assert seen == [(False, False)] * 3
    assert history["val/acc"] == [[5, 0.1], [10, 0.2], [12, 0.3]]
    assert model.training


def test_evaluation_changes_nothing_in_training(tmp_path):
    def evaluate(model):
        torch.rand(100)
        draws()
        return {}

    one, _ = fit_tagger(tmp_path / "a", evaluate=evaluate, save_every_steps=1)
    two, _ = fit_tagger(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_undefined_metric_becomes_null(tmp_path):
    _, history = fit_tagger(tmp_path, evaluate=lambda model: {"val/acc": float("nan")})
    assert history["val/acc"] == [[12, None]]
    assert json.loads((tmp_path / "history.json").read_text())["val/acc"] == [[12, None]]


def test_a_source_or_gradient_used_before_changes_nothing(tmp_path):
    one, _ = fit_tagger(tmp_path / "a")
    source, model = make_source(), make_tagger()
    for _ in range(9):
        tagger_step(model, source.collate(source.next_indices()))[0].backward()
    two, _ = fit_tagger(tmp_path / "b", source=source, model=model)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_seeding_repeats_every_generator_and_zero_is_a_seed():
    for seed in (0, 1):
        seed_everything(seed)
        first = draws()
        seed_everything(seed)
        assert draws() == first
    seed_everything(0)
    assert draws() != first
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_rng_state_survives_json_and_a_block_can_leave_it_untouched():
    seed_everything(3)
    torch.randn(3)  # an odd number, so that a cached normal draw is part of the state
    state = json.loads(json.dumps(rng_state()))
    first = [draws() for _ in range(3)]
    restore_rng(state)
    with untouched_rng():
        draws()
    assert [draws() for _ in range(3)] == first


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_a_seed_that_is_no_seed_is_refused(seed):
    with pytest.raises(RequestError, match=r"run\.seed is"):
        seed_everything(seed)


def test_a_launch_that_asks_for_shards_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RequestError, match=r"asks for FSDP.* calls parts of the model.* --multi_gpu"):
        fit_tagger(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_an_absent_device_is_refused_and_auto_falls_back_to_the_cpu():
    with pytest.raises(RequestError, match=r"run\.device is cuda"):
        make_accelerator(RunConfig(seed=0, device="cuda"))
    with pytest.raises(RequestError, match=r"run\.precision is fp16"):
        make_accelerator(RunConfig(seed=0, device="auto", precision="fp16"))
    assert make_accelerator(RunConfig(seed=0, device="auto")).device.type == "cpu"


def test_precision_can_change_between_runs_of_one_process(tmp_path):
    seen = []

    def step(model, batch):
        seen.append(model.head(torch.zeros(1, 12)).dtype)
        return tagger_step(model, batch)

    for precision in ("fp32", "bf16", "fp32"):
        fit_tagger(tmp_path / f"{precision}-{len(seen)}", step=step, optim={"max_steps": 1}, precision=precision)
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
