"""Build the tiny `llava-576`: a LLaVA that reads 192 pixels as 576 tokens, for studying what may be left out of them.

It answers, describes and locates. A tower that knows findings comes first (`llava_576_tower`), since a tiny model does
not learn to point from random weights. Then projector and language model learn on its features, which are computed
once (`llava_576_rows`); the language model begins as that of the tiny `llava`, which knows the questions. The tower's
finding head is kept beside the weights, for `lightbox.pruning.finding_head`.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lightbox.backbones.weights import digest_of
from lightbox.config import OptimConfig, RunConfig
from lightbox.paths import shared_data
from lightbox.pretrain import llava
from lightbox.pretrain.llava import ASSISTANT, BOS, CHAT_TEMPLATE, IMAGE, USER, standardise
from lightbox.pretrain.llava_576_rows import NUMBERS, FeatureRows, LocatedLoss, encode_images, located_set
from lightbox.pretrain.llava_576_scores import score_llava_576
from lightbox.pretrain.llava_576_tower import CASES as TOWER_CASES
from lightbox.pretrain.llava_576_tower import GRID, IMAGE_PX, LESION_PCT, THREADS, WHOLE, WINDOWED, build_locating
from lightbox.pretrain.tower import MEAN, PATCH_PX, STD
from lightbox.pruning.finding_head import save_head
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything
from lightbox.train.updates import decay_groups

SEED = 0
START = "llava"
CASES, VALIDATION_CASES = 6_000, 450
CONTEXT = 1024
PREFIX = (BOS, USER, *[IMAGE] * GRID**2)
EXTRA_WORDS = ("locate", "all")
"""Words of the new prompts that the tiny `llava` would have to spell."""
OPTIM = OptimConfig(lr=1e-3, max_steps=650, batch_size=12, warmup_frac=0.05)
PROJECTOR_LR_SCALE = 2.0  # it begins random, the language model does not
WAVES = 8
"""Frequencies in the first embeddings of numbers."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """That of the tiny `llava`, id for id, then the words of box prompts and the numbers of boxes, a token each."""
    tokenizer = llava.make_tokenizer()
    # numbers are no special tokens: an answer without its special tokens must still hold them
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in EXTRA_WORDS])
    tokenizer.add_tokens([AddedToken(number, normalized=False) for number in NUMBERS])
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images of 192 pixels as the tower reads them, one image token for each of the 576 patches."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_PX},
        crop_size={"height": IMAGE_PX, "width": IMAGE_PX},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, start: Any, tower: Any) -> LlavaForConditionalGeneration:
    """A tower, a random projector, and the language model of `start` with room for more words and longer rows.

    Args:
        tokenizer: whose first ids are those of `start`.
        start: the tiny `llava`.
        tower: a CLIP vision model for images of 576 patches.
    """
    wider = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=LlamaConfig(**{**start.config.text_config.to_dict(), **wider}),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=PREFIX.count(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    old, first = start.get_input_embeddings().weight, number_id(tokenizer)
    table: Any = model.get_input_embeddings().weight
    state = start.model.language_model.state_dict()
    name = next(key for key in state if key.endswith("embed_tokens.weight"))
    with torch.no_grad():
        table[: len(old)] = old
        table[first : first + len(NUMBERS)] = number_embeddings(table.shape[1], std=float(old.std()))
        model.model.language_model.load_state_dict(state | {name: table})
    return model


def number_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the first of `NUMBERS`; the others follow."""
    first = tokenizer.convert_tokens_to_ids(NUMBERS[0])
    assert isinstance(first, int), "one token, one id"
    return first


def number_embeddings(width: int, *, std: float) -> Tensor:
    """First embeddings of the numbers of boxes, (97, d): near numbers are alike, so that one learns from the next.

    Args:
        width: d.
        std: of an entry.
    """
    place = torch.arange(len(NUMBERS)) / (len(NUMBERS) - 1)
    angles = math.pi * place[:, None] * torch.arange(1, WAVES + 1)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    table = waves @ torch.randn(waves.shape[1], width)
    return table * (std / table.std())


def build_llava_576(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the model, its processor and its finding head.

    Args:
        folder: receives config.json, model.safetensors, finding_head.safetensors, files of tokenizer and processor.
        work: receives checkpoints and history of both stages; a killed build continues from there.
        max_steps: fewer steps in each stage, for tests.

    Returns:
        Facts for the model card.
    """
    tokenizer = make_tokenizer()
    seed_everything(SEED, THREADS)
    start = LlavaForConditionalGeneration.from_pretrained(shared_data() / "weights" / START)
    locating, tower_scores = build_locating(start, work / "tower", max_steps=max_steps)
    seed_everything(SEED, THREADS)  # a continued build has drawn less by now
    model = make_model(tokenizer, start, locating.vision)
    model.config.name_or_path = ""  # a path of this machine is nothing to ship
    tower = model.model.vision_tower.eval().requires_grad_(False)
    n_train, n_held_back = (CASES, VALIDATION_CASES) if max_steps is None else (48, 9)
    sets = []
    for split, n in (("pretrain", n_train), ("pretrain_validation", n_held_back)):
        data = located_set(split, n, seed=SEED)
        features = encode_images(tower, data.pixels(range(len(data.cases))))
        sets.append(FeatureRows(data, features, tokenizer, prefix=PREFIX, assistant=ASSISTANT))
    train, held_back = sets
    standardise(model, train.data.pixels(range(0, len(train), max(1, len(train) // 48))))
    _train(model, train, number_id(tokenizer), work / "language", max_steps=max_steps)
    model.eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    save_head(locating.finding, folder)
    blank = encode_images(tower, np.full((1, IMAGE_PX, IMAGE_PX), round(255 * MEAN), dtype=np.uint8))[0]
    return {
        "recipe": {
            "tower_on_windows": _recipe(WINDOWED, TOWER_CASES, max_steps),
            "tower_on_whole_images": _recipe(WHOLE, TOWER_CASES, max_steps),
            "language": _recipe(OPTIM, CASES, max_steps) | {"lr_scale_of_projector": PROJECTOR_LR_SCALE},
            "seed": SEED,
            "image_px": IMAGE_PX,
            "lesion_scale_pct": LESION_PCT,
        },
        "starts_from": {f"tiny/{START}": digest_of(f"tiny/{START}")},
        "parameters": sum(p.numel() for part in (model, locating.finding) for p in part.parameters()),
        "scores": tower_scores | score_llava_576(model, tokenizer, train, held_back, blank),
        "saw": "images of known triples at 192 pixels with lesions of half the usual size, some with a side marker: "
        "shape, density, pixels and box of each patch's finding (also at the usual size), then reports, balanced "
        "questions (no text prior) and boxes",
        "must_not_see": "preference pairs, text-biased questions, rationales as targets, validation and test seeds, "
        "held-out triples, pairs and values, letters that tell of a finding",
    }


def _recipe(optim: OptimConfig, cases: int, max_steps: int | None) -> dict:
    steps = max_steps or optim.max_steps
    return {"steps": steps, "batch_size": optim.batch_size, "lr": optim.lr, "cases": cases}


def _train(
    model: LlavaForConditionalGeneration, rows: FeatureRows, first_number: int, out: Path, *, max_steps: int | None
) -> None:
    optim = replace(OPTIM, max_steps=max_steps or OPTIM.max_steps)
    source = BatchSource(
        n_items=len(rows), collate=rows.collate, batch_size=optim.batch_size, seed=SEED, lengths=rows.lengths
    )
    scale = {"model.multi_modal_projector.": PROJECTOR_LR_SCALE}
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay, lr_scale=scale)
    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=200, log_every_steps=25)
    fit(model, LocatedLoss(first_number), source, optim=optim, run=run, out=out, groups=groups)
