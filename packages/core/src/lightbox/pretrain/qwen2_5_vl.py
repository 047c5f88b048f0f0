"""Build the tiny `qwen2_5_vl`: a Qwen2.5-VL of 1 M parameters that answers questions and boxes findings on full images.

An image is 48 pixels wide to it, 64 tokens of 2 x 2 patches, so that what is small in the original is lost. Tower and
merger learn first what lies where (`qwen2_5_vl_tower`), since a tiny model does not learn to point from random weights.
Then merger and language model learn on the tower's patches, which are computed once; the language model begins as that
of the tiny `llava`, which knows the questions. Tags for turns in which a model acts and answers are in the vocabulary,
a token each, and never trained on here.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, processors
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)

from lightbox.backbones.loading import load
from lightbox.backbones.weights import digest_of
from lightbox.config import OptimConfig, RunConfig
from lightbox.paths import shared_data
from lightbox.pretrain import llava
from lightbox.pretrain.qwen2_5_vl_rows import (
    ASSISTANT,
    BINS,
    FRAMES,
    IM_END,
    IM_START,
    IMAGE,
    LOCATIONS,
    MERGE,
    ORIGINAL_PX,
    PATCH_PX,
    PREFIX,
    SCALES,
    SEEN_PX,
    USER,
    VISION_END,
    VISION_START,
    WholeLoss,
    WholeRows,
    encode_images,
    image_processor,
    merged,
    reading,
    whole_set,
)
from lightbox.pretrain.qwen2_5_vl_scores import GREY, score_qwen2_5_vl
from lightbox.pretrain.qwen2_5_vl_tower import OPTIM as TOWER_OPTIM
from lightbox.pretrain.qwen2_5_vl_tower import SEED, THREADS, SeeingTower, score_tower, train_tower
from lightbox.pretrain.tokenizer import PAD, UNK
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything
from lightbox.train.updates import decay_groups

START = "llava"
CASES, VALIDATION_CASES = 15_000, 600
TOWER_WIDTH, TOWER_LAYERS, TOWER_HEADS = 80, 4, 4
WINDOW_PX = 8 * PATCH_PX  # 8 x 8 patches, as in the published model
CONTEXT = 1024
VIDEO, END_OF_TEXT = "<|video_pad|>", "<|endoftext|>"
EXTRA_WORDS = ("locate", "all", "system", USER, ASSISTANT)
"""Words of prompts and roles that the tiny `llava` would have to spell."""
TAGS = ("<mark>", "<crop>", "<window>", "<answer>")
"""Of ViTAR's turns (`lightbox.paper.replies.TagReplies`), for those who teach the model to look twice; untrained."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen2.5-VL, without its default system turn, which would be read in every row and tells nothing."""
SECTIONS = (4, 6, 6)
"""Pairs of rotated channels of a head of 32 for time, row and column; the published 16, 24, 24 of a head of 128."""
IMAGE_STD = 0.5
"""Spread of the merger's channels where the language model begins to read them, near that of the tiny `llava`'s."""
OPTIM = OptimConfig(lr=1e-3, max_steps=2000, batch_size=24, warmup_frac=0.05)
WAVES = 8
"""Frequencies in the first embeddings of locations."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """That of the tiny `llava`, id for id, then Qwen2.5-VL's control tokens, more words, tags and locations.

    Tags and locations are no special tokens: an answer without its special tokens must still hold them.
    """
    core: Tokenizer = llava.make_tokenizer().backend_tokenizer
    control = [IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO, END_OF_TEXT]
    core.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    core.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in EXTRA_WORDS])
    core.add_tokens([AddedToken(token, normalized=False) for token in (*TAGS, *LOCATIONS)])
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    # four locations in a row are a box, so no space may come between
    core.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Replace(" <loc_", "<loc_")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=IM_END, unk_token=UNK, model_max_length=CONTEXT
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """Images as the tower reads them, one image token for each 2 x 2 patches, and the chat template."""
    videos = Qwen2VLVideoProcessor(**reading())
    return Qwen2_5_VLProcessor(image_processor(), tokenizer, videos, chat_template=CHAT_TEMPLATE)


def make_model(
    tokenizer: PreTrainedTokenizerFast, start: LlavaForConditionalGeneration
) -> Qwen2_5_VLForConditionalGeneration:
    """A random tower and the language model of `start`, with room for more words.

    Args:
        tokenizer: whose first ids are those of `start`.
        start: the tiny `llava`.
    """
    ids = tokenizer.get_vocab()
    special = {"bos_token_id": None, "eos_token_id": ids[IM_END], "pad_token_id": ids[PAD]}
    model = Qwen2_5_VLForConditionalGeneration(_config(start.config.text_config, ids, special))
    model.generation_config = GenerationConfig(**special)
    language: Any = model.model.language_model
    state = start.model.language_model.state_dict()
    old = state.pop("embed_tokens.weight")
    with torch.no_grad():
        table: Any = language.embed_tokens.weight
        table[: len(old)] = old
        for new, like in ((IM_START, llava.BOS), (USER, llava.USER), (ASSISTANT, llava.ASSISTANT), (IM_END, llava.EOS)):
            table[ids[new]] = old[ids[like]]
        first = ids[LOCATIONS[0]]
        table[first : first + BINS] = location_embeddings(table.shape[1], std=float(old.std()))
        # what Llama lacks beside Qwen's: a bias of queries, keys and values, which begins at 0
        for name, value in language.state_dict().items():
            if name != "embed_tokens.weight":
                value.copy_(state.pop(name)) if name in state else value.zero_()
    assert not state, f"unread: {sorted(state)}"
    return model


def _config(text: Any, ids: dict[str, int], special: dict[str, int | None]) -> Qwen2_5_VLConfig:
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return Qwen2_5_VLConfig(
        text_config={name: getattr(text, name) for name in (*shared, "rms_norm_eps", "initializer_range")}
        | {
            "vocab_size": len(ids),
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
            "rope_parameters": dict(text.rope_parameters) | {"mrope_section": list(SECTIONS)},
            **special,
        },
        vision_config={
            "depth": TOWER_LAYERS,
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 2 * TOWER_WIDTH,
            "num_heads": TOWER_HEADS,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "window_size": WINDOW_PX,
            "fullatt_block_indexes": list(range(1, TOWER_LAYERS, 2)),
            "out_hidden_size": text.hidden_size,
            "initializer_range": 0.05,  # 0.02 is meant for widths of thousands
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )


def location_embeddings(width: int, *, std: float) -> Tensor:
    """First embeddings of locations, (128, d): near ones are alike, so that one learns from the next.

    Args:
        width: d.
        std: of an entry.
    """
    angles = math.pi * torch.linspace(0, 1, BINS)[:, None] * torch.arange(1, WAVES + 1)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    table = waves @ torch.randn(waves.shape[1], width)
    return table * (std / table.std())


@torch.no_grad()
def settle(tower: Any, patches: Tensor) -> None:
    """Shift and scale the merger's output to mean 0 and deviation `IMAGE_STD` in each channel; it is as informative.

    Args:
        tower: a Qwen2.5-VL's.
        patches: of some images, (b, p, 4, c).
    """
    tokens = merged(tower, patches).flatten(0, 1)
    last = tower.merger.mlp[-1]
    scale = IMAGE_STD / tokens.std(dim=0).clamp(min=1e-6)
    last.weight *= scale[:, None]
    last.bias.copy_((last.bias - tokens.mean(dim=0)) * scale)


def build_qwen2_5_vl(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the model and its processor.

    Args:
        folder: receives config.json, generation_config.json, model.safetensors, files of tokenizer and processor.
        work: receives checkpoints and history of both stages; a killed build continues from there.
        max_steps: fewer steps in each stage, for tests.

    Returns:
        Facts for the model card.
    """
    tokenizer = make_tokenizer()
    n_train, n_held_back = (CASES, VALIDATION_CASES) if max_steps is None else (48, 12)
    train, held_back = (
        whole_set(split, n, seed=SEED) for split, n in (("pretrain", n_train), ("pretrain_validation", n_held_back))
    )
    seed_everything(SEED, THREADS)
    start = LlavaForConditionalGeneration.from_pretrained(shared_data() / "weights" / START)
    model = make_model(tokenizer, start)
    tower: Any = model.model.visual
    text: Any = model.config.text_config
    seeing = SeeingTower(tower, text.hidden_size)
    train_tower(seeing, train, work / "tower", max_steps=max_steps)
    tower_scores = score_tower(seeing.eval(), held_back)
    rows, held_rows = (
        WholeRows(
            data,
            encode_images(tower, data.pixels(range(len(data.cases)))),
            tokenizer,
            prefix=PREFIX,
            assistant=ASSISTANT,
        )
        for data in (train, held_back)
    )
    settle(tower, rows.features[:: max(1, len(rows) // 240)].float())
    seed_everything(SEED, THREADS)  # a continued build has drawn less by now
    _train_language(model, rows, work / "language", max_steps=max_steps)
    model.eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    blank = encode_images(tower, np.full((1, SEEN_PX, SEEN_PX), GREY, dtype=np.uint8))[0].float()
    return {
        "recipe": {
            "tower": _recipe(TOWER_OPTIM, max_steps),
            "language": _recipe(OPTIM, max_steps),
            "cases": CASES,
            "seed": SEED,
            "original_px": ORIGINAL_PX,
            "seen_px": SEEN_PX,
            "lesion_scales_pct": list(SCALES),
        },
        "starts_from": {f"tiny/{START}": digest_of(f"tiny/{START}")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": tower_scores
        | score_qwen2_5_vl(model, load(str(folder)), tokenizer, train=train, held_back=held_rows, blank=blank),
        "saw": f"whole images of known triples, drawn at {ORIGINAL_PX} pixels and seen at {SEEN_PX}, with lesions of "
        "half, once and one and a half times the usual size: shape, density, pixels and box of each token's finding "
        "and the token's place, then balanced questions (no text prior) and boxes; its language model began as that of "
        "tiny/llava, which saw reports",
        "must_not_see": "two-turn traces, marks, crops, rationales as targets, preference pairs, text-biased "
        "questions, validation and test seeds, held-out triples, pairs and values",
    }


def _recipe(optim: OptimConfig, max_steps: int | None) -> dict:
    return {"steps": max_steps or optim.max_steps, "batch_size": optim.batch_size, "lr": optim.lr}


def _train_language(
    model: Qwen2_5_VLForConditionalGeneration, rows: WholeRows, out: Path, *, max_steps: int | None
) -> None:
    """Train merger and language model; the rest of the tower is done, and its patches are in `rows`."""
    tower: Any = model.model.visual
    tower.requires_grad_(False)
    tower.merger.requires_grad_(True)
    optim = replace(OPTIM, max_steps=max_steps or OPTIM.max_steps)
    source = BatchSource(
        n_items=len(rows), collate=rows.collate, batch_size=optim.batch_size, seed=SEED, lengths=rows.lengths
    )
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay)
    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=250, log_every_steps=25)
    fit(model, WholeLoss(rows.first_location), source, optim=optim, run=run, out=out, groups=groups)
