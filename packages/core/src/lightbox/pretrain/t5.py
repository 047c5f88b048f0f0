"""Build the tiny `t5`: a T5 of 0.5 M parameters that reads reports and answers questions about them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lightbox.config import OptimConfig, RunConfig
from lightbox.losses.language import IGNORED, token_cross_entropy
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.pretrain.tokenizer import SENTINELS, fixed_tokenizer
from lightbox.records import Case, Question
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything

SEED = 0
CASES, VALIDATION_CASES = 40_000, 500
WIDTH = 96
OPTIM = OptimConfig(lr=2e-3, max_steps=6000, batch_size=64, warmup_frac=0.03)
QA_SHARE = 0.75
SPAN_RATE, SPAN_WORDS = 0.2, 3


@dataclass(frozen=True)
class TextPair:
    """One source and target text of the seq2seq model."""

    source: str
    target: str


def text_pairs(split: str, n_cases: int, *, seed: int = 0) -> list[TextPair]:
    """Draw pretraining pairs from a phantom split: question answering with the report as context, and span corruption.

    Rationales are never a source or a target. The question comes in the form "Question: .. Options: .. Context: ..
    Answer:".
    """
    rng = np.random.default_rng([seed, n_cases])
    pairs = []
    for case in draw_cases(seed_range(split, seed, n_cases), Knobs(), questions_per_case=3, with_pixels=False):
        for question in case.questions:
            qa = rng.random() < QA_SHARE
            pairs.append(question_pair(case, question) if qa else span_pair(case.report.text, rng))
    return pairs


def question_pair(case: Case, question: Question) -> TextPair:
    """A question with its report as context."""
    options = "".join(f" ({chr(65 + k)}) {option}" for k, option in enumerate(question.options))
    source = f"Question: {question.text}{' Options:' + options if options else ''} Context: {case.report.text} Answer:"
    answer = f"({chr(65 + question.answer_index)})" if question.is_closed else question.answer
    return TextPair(source, f"The answer is {answer}.")


def span_pair(text: str, rng: np.random.Generator) -> TextPair:
    """T5 span corruption: some runs of words become sentinels, the target lists them."""
    words = text.split()
    source: list[str] = []
    target: list[str] = []
    k = used = 0
    while k < len(words):
        if used < len(SENTINELS) and rng.random() < SPAN_RATE / SPAN_WORDS * 1.5:
            n = int(rng.integers(1, 2 * SPAN_WORDS))
            source.append(SENTINELS[used])
            target += [SENTINELS[used], *words[k : k + n]]
            k, used = k + n, used + 1
        else:
            source.append(words[k])
            k += 1
    if not used:
        return span_pair(text, rng)
    return TextPair(" ".join(source), " ".join(target))


def make_config(vocab_size: int) -> T5Config:
    """T5 v1.0 as UnifiedQA uses it (tied embeddings, ReLU), small."""
    return T5Config(
        vocab_size=vocab_size,
        d_model=WIDTH,
        d_kv=WIDTH // 4,
        d_ff=3 * WIDTH,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        relative_attention_max_distance=64,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )


class PairBatches:
    """Tokenised text pairs and their collation.

    A batch is `input_ids` (b, t), `attention_mask` (b, t; 1 where a token is real) and `labels` (b, t; -100 on
    padding).
    """

    def __init__(self, pairs: list[TextPair], tokenizer: PreTrainedTokenizerFast) -> None:
        self.sources = tokenizer([p.source for p in pairs])["input_ids"]
        self.targets = tokenizer([p.target for p in pairs])["input_ids"]
        self.lengths = [len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]

    def collate(self, indices: list[int]) -> dict[str, Tensor]:
        """Pad a list of items to the longest of them."""
        source = pad([self.sources[i] for i in indices], 0)
        labels = pad([self.targets[i] for i in indices], IGNORED)
        return {"input_ids": source, "attention_mask": (source != 0).long(), "labels": labels}


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Right-pad integer rows to one int64 tensor."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return torch.from_numpy(out)


def build_t5(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the model and its tokenizer.

    Args:
        folder: receives config.json, model.safetensors, tokenizer files.
        work: receives checkpoints and history; a killed build continues from there.
        max_steps: fewer steps, for tests.

    Returns:
        Facts for the model card.
    """
    tokenizer = fixed_tokenizer()
    train, held_back = (
        text_pairs("pretrain", CASES if max_steps is None else 400, seed=SEED),
        text_pairs("pretrain_validation", VALIDATION_CASES),
    )
    batches = PairBatches(train, tokenizer)
    seed_everything(SEED)
    model = T5ForConditionalGeneration(make_config(len(tokenizer)))
    optim = OptimConfig(**{**vars(OPTIM), "max_steps": max_steps or OPTIM.max_steps})
    source = BatchSource(
        n_items=len(train), collate=batches.collate, batch_size=optim.batch_size, seed=SEED, lengths=batches.lengths
    )
    run = RunConfig(seed=SEED, save_every_steps=500, log_every_steps=50)
    fit(model, _step, source, optim=optim, run=run, out=work)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "recipe": {
            "steps": optim.max_steps,
            "batch_size": optim.batch_size,
            "lr": optim.lr,
            "seed": SEED,
            "cases": CASES,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": score_t5(model, tokenizer, held_back),
        "saw": "reports of known triples by span corruption; balanced questions about facts with the report as context",
    }


def _step(model: torch.nn.Module, batch: dict[str, Tensor]):
    logits = model(**batch).logits
    total, tokens = token_cross_entropy(logits, batch["labels"])
    return total, tokens, {}


@torch.inference_mode()
def score_t5(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pairs: list[TextPair]) -> dict:
    """Teacher-forced exact-match share of answers, over held-back question pairs, with and without the report."""
    asked = [p for p in pairs if p.source.startswith("Question")]
    # what the question alone gives away; the difference is what was read
    blind = [TextPair(p.source.split(" Context:")[0] + " Answer:", p.target) for p in asked]
    return {"qa_exact": _exact(model, tokenizer, asked), "qa_exact_without_report": _exact(model, tokenizer, blind)}


def _exact(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pairs: list[TextPair]) -> float:
    batches = PairBatches(pairs, tokenizer)
    hits = 0
    for start in range(0, len(pairs), 256):
        batch = batches.collate(list(range(start, min(start + 256, len(pairs)))))
        predicted = model(**batch).logits.argmax(dim=-1)
        right = (predicted == batch["labels"]) | (batch["labels"] == IGNORED)
        hits += int(right.all(dim=1).sum())
    return round(hits / len(pairs), 4)
