"""What `accelerate launch` runs for test_processes.py: trainings of two processes, and what each one saw of them."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from lightbox.adapters.attach import attach
from lightbox.backbones.loading import load
from lightbox.config import AdapterConfig, TrainConfig
from lightbox.errors import LightboxError
from lightbox.testing.training import VOCABULARY, fit_tagger, make_source, make_tagger, tagger_step
from lightbox.train import processes
from lightbox.train.batches import BatchSource

STEPS, ITEMS, BATCH = 20, 21, 8
CUT = 7
T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
T5_SIZES |= {"decoder_start_token_id": 0, "dropout_rate": 0.0}


class CutError(Exception):
    """Ends a training from outside, as a kill would."""


def train_tagger(out, *, dropout=0.0, step=tagger_step, batch_size=BATCH, cuts=False, **options):
    """20 steps of 8 of 21 rows of unequal lengths: each third batch has 5 rows, so the shares are 3 and 2."""
    model = make_tagger(dropout=dropout, is_tied=True)
    if processes.rank() == 1:
        nn.init.zeros_(model.norm.weight)  # the first process's weights count
    optim = {"max_steps": STEPS, "batch_size": batch_size, "lr": 1e-2} | options.pop("optim", {})
    source = rows(batch_size=batch_size, cuts=cuts)
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


class Scaled(nn.Module):
    """A tagger with one number that trains."""

    def __init__(self):
        super().__init__()
        self.tagger, self.scale = make_tagger(), nn.Parameter(torch.tensor(1.0))

    def forward(self, ids):
        """Scaled logits."""
        return self.tagger(ids) * self.scale


def t5_step(model, batch):
    """Summed loss of a row's next tokens given its tokens."""
    mask = (batch["labels"] != -100).long()
    loss = model(input_ids=batch["ids"], attention_mask=mask, labels=batch["labels"]).loss
    return loss * mask.sum(), mask.sum(), {}


def train_llava(out, *, quant, micro=1):
    """20 steps of the tiny LLaVA: LoRA, projector in full, layers checkpointed, rows chosen before the head."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)) for _ in range(ITEMS)]
    answers = ["yes " * int(count) for count in rng.integers(1, 9, size=ITEMS)]
    adapter = AdapterConfig(kind="lora", quant=quant, r=4, projector="full")
    torch.manual_seed(0)
    backbone = attach(load("tiny/llava", quant=quant), adapter, checkpoint_layers=True)

    def collate(indices):
        asked, told = ["Is there an effusion?"] * len(indices), [answers[i] for i in indices]
        return backbone.prepare([images[i] for i in indices], asked, told, max_tokens=200)

    def write(model):
        texts = backbone.with_model(model).generate(images[:2], ["Is there an effusion?"] * 2, max_new_tokens=4)
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
    """Train until the batch after step `CUT` is drawn, which leaves that step's checkpoint."""
    try:
        train(out, save_every_steps=CUT, cuts=True, **options)
    except CutError:
        return
    raise AssertionError("the training was not cut")


def rows(*, batch_size=BATCH, cuts=False):
    """The batches; with `cuts` no more than `CUT` of them."""
    source = make_source(batch_size=batch_size, n_items=ITEMS)
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
    """Every training that both ways of holding the model share, then those of one of them."""
    one_row = {"micro_batch_size": 1}
    found = {
        "tagger": train_tagger(out / "tagger", evaluate=accuracy, save_every_steps=CUT),
        "one row": train_tagger(out / "one-row", optim=one_row),
        "t5": train_t5(out / "t5"),
        "llava": train_llava(out / "llava", quant="none" if processes.is_sharded() else "nf4"),
        "twice": train_twice(out / "twice"),
        "dropout": train_tagger(out / "dropout", dropout=0.3),
        "from one": train_tagger(out / "from-one"),
    }
    cut_short(train_tagger, out / "dropout-cut", dropout=0.3)
    found["dropout again"] = train_tagger(out / "dropout-cut", dropout=0.3)
    cut_short(train_tagger, out / "to-one")
    cut_short(train_t5, out / "t5-to-one")
    signalled.calls = 0
    found["signal"] = ended(train_tagger, out / "signal", step=signalled)
    found["broken"] = ended(train_tagger, out / "broken", step=broken)
    found["odd"] = ended(train_tagger, out / "odd", batch_size=7)
    auto = {"extras": {"train": TrainConfig(auto_batch=True)}}
    found["auto"] = ended(train_tagger, out / "auto", step=narrow, **auto)
    if processes.is_sharded():
        found["scalar"] = ended(fit_tagger, out / "scalar", model=Scaled())
        found["nf4"] = ended(train_llava, out / "nf4", quant="nf4")
        found["8 bit"] = ended(train_tagger, out / "8-bit", optim={"optimizer": "adamw_8bit"})
    else:
        found["short"] = ended(train_tagger, out / "short", step=narrow)
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    told = main(folder)
    (folder / f"found-{processes.rank()}.json").write_text(json.dumps(told))
