"""What `accelerate launch` runs for test_processes.py: trainings of two processes, and what each one saw of them."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from lightbox.adapters.attach import attach
from lightbox.backbones.loading import load
from lightbox.config import AdapterConfig, TrainConfig
from lightbox.errors import LightboxError
from lightbox.phantom import draw_cases, seed_range
from lightbox.testing.training import (
    VOCABULARY,
    collate_rows,
    fit_tagger,
    make_rows,
    make_source,
    make_tagger,
    tagger_step,
)
from lightbox.train import processes
from lightbox.train.batches import BatchSource

STEPS, ITEMS, BATCH = 20, 21, 8
CUT = 7
FEW_ITEMS, BROKEN_ROW = 17, 3
T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
T5_SIZES |= {"decoder_start_token_id": 0, "dropout_rate": 0.0}


class CutError(Exception):
    """Ends a training from outside, as a kill would."""


def train_tagger(out, *, dropout=0.0, step=tagger_step, batch_size=BATCH, cuts=False, has_lengths=False, **options):
    """20 steps of 8 of 21 rows of unequal lengths: each third batch has 5 rows, so the shares are 3 and 2."""
    model = make_tagger(dropout=dropout, is_tied=True)
    if processes.rank() == 1:
        nn.init.zeros_(model.norm.weight)  # the first process's weights count
    optim = {"max_steps": STEPS, "batch_size": batch_size, "lr": 1e-2} | options.pop("optim", {})
    source = rows(batch_size=batch_size, cuts=cuts)
    if has_lengths:
        source.row_lengths = lambda: [len(row) for row in make_rows(ITEMS)]
    model, history = fit_tagger(out, model=model, source=source, step=step, optim=optim, log_every_steps=1, **options)
    return summary(model, history)


def train_t5(out, *, micro=1, cuts=False, **options):
    """20 steps of a tiny T5 with LoRA over the same rows, one row at a time, or a whole batch with `micro` 0."""
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(T5Config(**T5_SIZES))
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q", "v"]))
    optim = {"max_steps": STEPS, "batch_size": BATCH, "lr": 1e-2, "micro_batch_size": micro}
    model, history = fit_tagger(
        out, model=model, source=rows(cuts=cuts), step=t5_step, optim=optim, log_every_steps=1, **options
    )
    return summary(model, history)


def train_twice(out):
    """The same model trained again after a training, with groups of parameters that were chosen in between."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5_SIZES))
    fit_tagger(out / "first", model=model, source=rows(), step=t5_step, optim={"max_steps": 3, "batch_size": BATCH})
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    _, history = fit_tagger(
        out / "second",
        model=model,
        source=rows(),
        step=t5_step,
        optim={"max_steps": STEPS, "batch_size": BATCH, "lr": 1e-2},
        extras={"groups": [{"params": matrices, "lr": 1e-3}, {"params": vectors}]},
        log_every_steps=1,
    )
    return summary(model, history)


def train_prepared(out, *, noise=0.0, broken_row=None, cuts=False):
    """20 steps of 17 rows with weights that are read off the model before the micro-batches; each third has 1 row."""
    tokens, asked = make_rows(FEW_ITEMS), []

    def prepare(model, indices):
        assert not model.training
        asked.append(indices)
        logits = [model(torch.from_numpy(tokens[index])[None]) for index in indices]
        weights = [1 + row.mean().abs() + noise * torch.rand(()) for row in logits]
        return [(index, weight / (index != broken_row)) for index, weight in zip(indices, weights, strict=True)]

    source = rows(cuts=cuts, n_items=FEW_ITEMS)
    source.collate = lambda items: (
        collate_rows([tokens[index] for index, _ in items]) | {"weights": torch.stack([weight for _, weight in items])}
    )
    model, history = fit_tagger(
        out,
        model=make_tagger(dropout=0.0),
        source=source,
        step=weighted_step,
        optim={"max_steps": STEPS, "batch_size": BATCH, "lr": 1e-2, "micro_batch_size": 2},
        extras={"prepare": prepare},
        log_every_steps=1,
        save_every_steps=CUT,
    )
    return summary(model, history) | {"asked": processes.gather(asked)}


def weighted_step(model, batch):
    """Summed next-token loss, each row's times its weight."""
    labels = batch["labels"]
    losses = nn.functional.cross_entropy(model(batch["ids"]).mT, labels, ignore_index=-100, reduction="none")
    return (losses.sum(dim=1) * batch["weights"]).sum(), (labels != -100).sum(), {}


def t5_step(model, batch):
    """Summed loss of a row's next tokens given its tokens."""
    mask = (batch["labels"] != -100).long()
    loss = model(input_ids=batch["ids"], attention_mask=mask, labels=batch["labels"]).loss
    return loss * mask.sum(), mask.sum(), {}


def train_llava(out, *, quant, micro=1):
    """20 steps of the tiny LLaVA: LoRA, projector in full, layers checkpointed, rows chosen before the head."""
    # what it was pretrained for, with unequal lengths: far from that, AdamW makes much of a rounding
    cases = draw_cases(seed_range("development", 0, ITEMS))
    images = [Image.fromarray(case.images[0]) for case in cases]
    answers = [case.report.text for case in cases]
    adapter = AdapterConfig(kind="lora", quant=quant, r=4, projector="full")
    torch.manual_seed(0)
    backbone = attach(load("tiny/llava", quant=quant), adapter, checkpoint_layers=True)

    def collate(indices):
        questions = ["describe the image ."] * len(indices)
        return backbone.prepare([images[i] for i in indices], questions, [answers[i] for i in indices], max_tokens=200)

    def write(model):
        texts = backbone.with_model(model).answer(images[:2], ["Is there an effusion?"] * 2, max_new_tokens=4)
        return {"val/characters": float(len("".join(texts)))}

    model, history = fit_tagger(
        out,
        model=backbone.model,
        source=BatchSource(ITEMS, collate, batch_size=BATCH, seed=0),
        step=lambda model, batch: backbone.with_model(model).loss(batch),
        optim={"max_steps": STEPS, "batch_size": BATCH, "lr": 1e-3, "micro_batch_size": micro},
        evaluate=write,
        log_every_steps=1,
    )
    return summary(model, history)


def summary(model, history):
    """What a training left: curves, the sum of squares of what was trained, and the classes of the model's parts."""
    trained = [(name, p.detach().double()) for name, p in model.named_parameters() if p.requires_grad]
    squares = {name: float(values.square().sum()) for name, values in trained}
    kinds = sorted({type(p).__name__ for p in model.parameters()} | {type(m).__name__ for m in model.modules()})
    return {"history": history, "squares": squares, "kinds": kinds}


def accuracy(model):
    """Share of tokens predicted right over all rows, by the whole model in evaluation mode."""
    assert not model.training
    batch = rows().collate(list(range(ITEMS)))
    return {"val/acc": float(tagger_step(model, batch)[2]["accuracy"])}


def cut_short(train, out, **options):
    """Train until the batch after step `CUT` is drawn; what saves then leaves that step's checkpoint."""
    try:
        train(out, cuts=True, **options)
    except CutError:
        return
    raise AssertionError("the training was not cut")


def rows(*, batch_size=BATCH, cuts=False, n_items=ITEMS):
    """The batches; with `cuts` no more than `CUT` of them."""
    source = make_source(batch_size=batch_size, n_items=n_items)
    draw, drawn = source.next_indices, []

    def next_indices():
        if cuts and len(drawn) == CUT:
            raise CutError
        drawn.append(draw())
        return drawn[-1]

    source.next_indices = next_indices
    return source


def ended(train, *arguments, **options):
    """What ended a training, as text."""
    try:
        train(*arguments, **options)
    except (LightboxError, SystemExit) as err:
        return f"{type(err).__name__} {err}"
    return "finished"


def signalled(model, batch):
    """Sends SIGTERM to the second process, at a step of its own choice."""
    signalled.calls += 1
    if signalled.calls == 4 and processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return tagger_step(model, batch)


def narrow(model, batch):
    """Finds no memory in the second process for more than one row."""
    if processes.rank() == 1 and len(batch["ids"]) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More text")
    return tagger_step(model, batch)


def broken(model, batch):
    """Rows of four tokens make the loss infinite."""
    loss, tokens, means = tagger_step(model, batch)
    has_four = bool(((batch["labels"] != -100).sum(dim=1) == 3).any())
    return loss * (float("inf") if has_four else 1.0), tokens, means


def main(out):
    """Every training, by name."""
    one_row = {"micro_batch_size": 1}
    saw = {
        "tagger": train_tagger(out / "tagger", evaluate=accuracy, save_every_steps=CUT),
        "one row": train_tagger(out / "one-row", optim=one_row),
        "ahead": train_tagger(out / "ahead", extras={"train": TrainConfig(workers=1)}),
        "t5": train_t5(out / "t5"),
        "llava": train_llava(out / "llava", quant="nf4"),
        "twice": train_twice(out / "twice"),
        "dropout": train_tagger(out / "dropout", dropout=0.3),
        "from one": train_tagger(out / "from-one"),
        "prepared": train_prepared(out / "prepared"),
        "sampled": train_prepared(out / "sampled", noise=1.0),
    }
    cut_short(train_prepared, out / "sampled-cut", noise=1.0)
    saw["sampled again"] = train_prepared(out / "sampled-cut", noise=1.0)
    saw["broken item"] = ended(train_prepared, out / "broken-item", broken_row=BROKEN_ROW)
    cut_short(train_tagger, out / "dropout-cut", dropout=0.3, save_every_steps=CUT)
    saw["dropout again"] = train_tagger(out / "dropout-cut", dropout=0.3)
    cut_short(train_tagger, out / "to-one", save_every_steps=CUT)
    cut_short(train_t5, out / "t5-to-one", save_every_steps=CUT)
    signalled.calls = 0
    saw["signal"] = ended(train_tagger, out / "signal", step=signalled)
    saw["broken"] = ended(train_tagger, out / "broken", step=broken)
    saw["odd"] = ended(train_tagger, out / "odd", batch_size=7)
    auto = {"extras": {"train": TrainConfig(auto_batch=True)}}
    saw["auto"] = ended(train_tagger, out / "auto", step=narrow, **auto)
    saw["tried"] = ended(train_tagger, out / "tried", step=narrow, has_lengths=True, **auto)
    saw["short"] = ended(train_tagger, out / "short", step=narrow)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    saw["shards"] = ended(train_tagger, out / "shards")
    return saw


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    saw = main(folder)
    (folder / f"saw-{processes.rank()}.json").write_text(json.dumps(saw))
    torch.distributed.destroy_process_group()  # else gloo's threads may end a process with SIGABRT at its exit
