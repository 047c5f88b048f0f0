"""QLoRA without a GPU, through the step driver: train, save, reload, merge, with the base untouched."""

import functools

import pytest
import torch
from torch import nn

from lightbox.adapters import artifact, guards
from lightbox.adapters.attach import attach
from lightbox.adapters.merge import merge_to_16_bit
from lightbox.backbones.loading import load
from lightbox.backbones.quantisation import quantised_as
from lightbox.config import AdapterConfig, OptimConfig, RunConfig
from lightbox.errors import WorkError
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit

NAMES = ["llava-1.5-7b", "qwen2.5-vl-7b", "florence-2-base"]
LIMITS = {"fp32": 1e-4, "bf16": 3e-2}
NOISE = ("dropout", "activation_dropout", "attention_dropout")


def step(backbone, model, batch):
    return backbone.with_model(model).loss(batch)


def train(backbone, batch_of, out, *, steps=10, **hooks):
    source = BatchSource(2, functools.partial(batch_of, backbone), batch_size=2, seed=0)
    return fit(
        backbone.model,
        functools.partial(step, backbone),
        source,
        optim=OptimConfig(lr=0.01, max_steps=steps, batch_size=2, micro_batch_size=1, schedule="constant"),
        run=RunConfig(seed=0, log_every_steps=1),
        out=out,
        **hooks,
    )


def in_training_mode_without_noise(backbone):
    for module in backbone.model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in NOISE:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return backbone


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*NAMES[:2], pytest.param(NAMES[2], marks=pytest.mark.slow)])
def test_a_4_bit_model_trains_saves_reloads_and_merges(loaded, batch_of, logits_of, tmp_path, name, dtype):
    adapter = AdapterConfig(kind="lora", quant="nf4", r=8, alpha=16.0, projector="full")
    base = loaded(name, quant="nf4", dtype=dtype)
    base.core.requires_grad_(False)
    untouched = logits_of(base)
    stored = guards.quantised_digest(base.model)

    torch.manual_seed(0)
    backbone = attach(loaded(name, quant="nf4", dtype=dtype), adapter, checkpoint_layers=True)
    history = train(backbone, batch_of, tmp_path / "run")
    losses = [value for _, value in history["train/loss"]]
    # a random, frozen head gives logits of 1.3 at most here, so no more than about one nat can be learned
    assert losses[-1] < losses[0] - 0.3

    # the base is the one that was loaded: its stored bits, and its logits with adapters off
    assert guards.quantised_digest(backbone.model) == stored
    backbone.model.eval()
    with backbone.model.disable_adapter():
        assert torch.equal(logits_of(backbone), untouched)

    # reload: every tensor and every logit, in training mode and in evaluation mode
    artifact.save(tmp_path / "adapter", backbone, adapter)
    again = artifact.load(tmp_path / "adapter", loaded(name, quant="nf4", dtype=dtype))
    wanted, found = artifact.trained_state(backbone.model), artifact.trained_state(again.model)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert torch.equal(logits_of(again), logits_of(backbone))
    trained = logits_of(in_training_mode_without_noise(backbone))
    assert torch.equal(logits_of(in_training_mode_without_noise(again)), trained)

    # merge: a plain model in the dtype of computation
    merge_to_16_bit(again, tmp_path / "merged", dtype=dtype)
    merged = load(str(tmp_path / "merged"), dtype=dtype)
    assert not any(quantised_as(module) != "none" for module in merged.core.modules())
    assert (logits_of(merged).float() - trained.float()).abs().max() < LIMITS[dtype]


def test_int8_trains_saves_and_reloads_too(loaded, batch_of, logits_of, tmp_path):
    adapter = AdapterConfig(kind="lora", quant="int8", r=8, alpha=16.0)
    backbone = attach(loaded("llava-1.5-7b", quant="int8"), adapter)
    losses = [value for _, value in train(backbone, batch_of, tmp_path / "run")["train/loss"]]
    assert losses[-1] < losses[0] - 0.3
    artifact.save(tmp_path / "adapter", backbone, adapter)
    again = artifact.load(tmp_path / "adapter", loaded("llava-1.5-7b", quant="int8"))
    assert torch.equal(logits_of(again), logits_of(backbone.with_model(backbone.model.eval())))


def test_training_continues_from_a_checkpoint_to_the_same_bits(loaded, batch_of, tmp_path):
    adapter = AdapterConfig(kind="lora", quant="nf4", r=4, projector="full")
    states = []
    for stops in ((6,), (3, 6)):
        for until in stops:
            torch.manual_seed(0)
            backbone = attach(loaded("llava-1.5-7b", quant="nf4"), adapter)
            optim = OptimConfig(lr=0.01, max_steps=6, batch_size=2)
            source = BatchSource(2, functools.partial(batch_of, backbone), batch_size=2, seed=0)
            run = RunConfig(seed=0, save_every_steps=3)
            out = tmp_path / str(len(stops))
            if until < 6:
                with pytest.raises(KeyboardInterrupt):
                    interrupted(backbone, source, optim, run, out, at=until)
            else:
                fit(backbone.model, functools.partial(step, backbone), source, optim=optim, run=run, out=out)
        states.append(artifact.trained_state(backbone.model))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def interrupted(backbone, source, optim, run, out, *, at):
    """Train until a step has been saved, then stop as Ctrl-C would."""
    calls = []

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return step(backbone, model, batch)

    fit(backbone.model, stopping, source, optim=optim, run=run, out=out)


def test_an_evaluation_that_repacks_the_base_stops_the_run(loaded, batch_of, tmp_path):
    """The switch of `quantisation.keep_unpacked` undone, as a model that was loaded past it would have it."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("only CPUs with AVX512-BF16 repack 4-bit weights")
    backbone = attach(loaded("llava-1.5-7b", quant="nf4"), AdapterConfig(kind="lora", quant="nf4", r=4))
    for module in backbone.model.modules():
        if quantised_as(module) == "nf4":
            module.support_avx512bf16_for_cpu = True
    train(backbone, batch_of, tmp_path / "train_only", steps=2)  # train() before every forward: nothing is lost

    def evaluate(model):
        with torch.no_grad():
            return {"val/loss": float(backbone.with_model(model).loss(batch_of(backbone))[0])}

    with pytest.raises(WorkError, match=r"4-bit weights of 14 layers were repacked by an evaluation on the CPU"):
        train(backbone, batch_of, tmp_path / "evaluated", steps=2, evaluate=evaluate)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_evaluating_between_steps_changes_neither_the_base_nor_the_run(loaded, batch_of, tmp_path, name):
    adapter = AdapterConfig(kind="lora", quant="nf4", r=4)
    states = []
    for evaluate in (None, lambda model: {"val/n": float(len(texts(model)))}):
        torch.manual_seed(0)
        backbone = attach(loaded(name, quant="nf4"), adapter)

        def texts(model, backbone=backbone):
            return backbone.with_model(model).answer(None, ["Side?"], max_new_tokens=2)

        train(backbone, batch_of, tmp_path / str(evaluate is None), steps=3, evaluate=evaluate)
        states.append(artifact.trained_state(backbone.model))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_4_bit_model_trains_reloads_and_merges_on_a_gpu(loaded, batch_of, tmp_path, name):
    adapter = AdapterConfig(kind="lora", quant="nf4", r=8, alpha=16.0, projector="full")
    backbone = attach(loaded(name, quant="nf4", dtype="bf16", device="cuda"), adapter, checkpoint_layers=True)
    source = BatchSource(2, functools.partial(batch_of, backbone), batch_size=2, seed=0)
    history = fit(
        backbone.model,
        functools.partial(step, backbone),
        source,
        optim=OptimConfig(lr=0.01, max_steps=10, batch_size=2),
        run=RunConfig(seed=0, device="cuda", precision="bf16", log_every_steps=1),
        out=tmp_path / "run",
    )
    losses = [value for _, value in history["train/loss"]]
    assert losses[-1] < losses[0] - 0.3

    def logits(of):
        batch = batch_of(of).to(of.device)
        with torch.no_grad():
            return of.model(**batch.inputs, use_cache=False).logits.float().cpu()

    artifact.save(tmp_path / "adapter", backbone, adapter)
    backbone.model.eval()
    again = artifact.load(tmp_path / "adapter", loaded(name, quant="nf4", dtype="bf16", device="cuda"))
    assert torch.equal(logits(again), logits(backbone))
    merge_to_16_bit(backbone, tmp_path / "merged", dtype="bf16")
    merged = load(str(tmp_path / "merged"), dtype="bf16", device="cuda")
    assert (logits(merged) - logits(backbone)).abs().max() < LIMITS["bf16"]
