"""Build the tiny `llava`: a LLaVA of 1 M parameters that describes phantom images and answers questions about them.

Its vision part starts as the tiny `tower`, which knows findings; from random weights a model of this size still gives
the majority answer after 1,200 steps. First projector and language model learn with the tower frozen, then all do.
"""

from pathlib import Path
from string import ascii_lowercase, digits

import numpy as np
import torch
from einops import rearrange
from tokenizers import AddedToken, Tokenizer, models, processors
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lightbox.backbones.weights import digest_of
from lightbox.config import OptimConfig, RunConfig
from lightbox.paths import shared_data
from lightbox.pretrain.llava_rows import ChatRows, chat_loss, chat_set
from lightbox.pretrain.llava_scores import score_llava
from lightbox.pretrain.tokenizer import EOS, PAD, SENTINELS, UNK, fixed_tokenizer
from lightbox.pretrain.tower import IMAGE_PX, MEAN, PATCH_PX, STD, normalise
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything
from lightbox.train.updates import decay_groups

SEED = 0
CASES, VALIDATION_CASES = 45_000, 3_000
WIDTH, LAYERS, HEADS = 128, 3, 4
CONTEXT = 512
BOS, IMAGE, USER, ASSISTANT = "<s>", "<image>", "USER:", "ASSISTANT:"
EXTRA_WORDS = ("describe", "write", "report", *(f"##{character}" for character in ascii_lowercase + digits))
"""Words of prompts, and every letter and digit inside a word, so that any word and number can be spelled."""
PREFIX = (BOS, USER, *[IMAGE] * (IMAGE_PX // PATCH_PX) ** 2)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As LLaVA-1.5: "USER: <image>, newline, question ASSISTANT:"."""
# frozen first: a random projector would teach the tower to forget findings
FROZEN = OptimConfig(lr=2e-3, max_steps=1400, batch_size=32, warmup_frac=0.05)
UNFROZEN = OptimConfig(lr=1e-3, max_steps=600, batch_size=32, warmup_frac=0.05)
TOWER_LR_SCALE = 0.3  # it begins trained, the language model does not


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the tiny `t5`, in their order, with LLaVA's own tokens before them and without its sentinels."""
    words = fixed_tokenizer().backend_tokenizer
    ids = words.get_vocab()
    special, roles = [PAD, EOS, UNK, BOS, IMAGE], [USER, ASSISTANT]
    plain_words = [word for word in sorted(ids, key=ids.__getitem__) if word not in {*special, *SENTINELS}]
    vocab = {word: k for k, word in enumerate(dict.fromkeys([*special, *roles, *plain_words, *EXTRA_WORDS]))}
    core = Tokenizer(models.WordPiece(vocab, unk_token=UNK))
    core.normalizer, core.pre_tokenizer, core.decoder = words.normalizer, words.pre_tokenizer, words.decoder
    # not lower-cased: USER: and <image> must stay one token each
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, normalized=False) for token in roles])
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocab[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        bos_token=BOS,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=CONTEXT,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images as the tiny `tower` reads them, one image token for each of the 64 patches, and the chat template."""
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


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The tiny `tower`, a random projector and a random Llama; the tower's last layer is read, as it was trained."""
    tower = CLIPVisionModel.from_pretrained(shared_data() / "weights" / "tower")
    tower.config.name_or_path = ""  # a path of this machine is nothing to ship
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,  # 0.02 is meant for widths of thousands; at 128 it would start layers too quiet
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=PREFIX.count(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


@torch.no_grad()
def standardise(model: LlavaForConditionalGeneration, pixels: np.ndarray) -> None:
    """Start the projector so that its first layer sees features of mean 0 and deviation 1, measured on some images.

    Args:
        model: its projector is drawn anew.
        pixels: uint8 (b, h, w).
    """
    hidden = model.model.vision_tower(pixel_values=normalise(pixels)).last_hidden_state
    features = rearrange(hidden[:, 1:], "b p d -> (b p) d")  # without the class token
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    projector.linear_1.weight /= features.std(dim=0)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ features.mean(dim=0))


def build_llava(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the model and its processor.

    Args:
        folder: receives config.json, model.safetensors, files of tokenizer and processor.
        work: receives checkpoints and history of both stages; a killed build continues from there.
        max_steps: fewer steps in each stage, for tests.

    Returns:
        Facts for the model card.
    """
    tokenizer = make_tokenizer()
    n_train, n_held_back = (CASES, VALIDATION_CASES) if max_steps is None else (240, 60)
    train, held_back = (
        ChatRows(chat_set(split, n, seed=SEED), tokenizer, prefix=PREFIX, assistant=ASSISTANT)
        for split, n in (("pretrain", n_train), ("pretrain_validation", n_held_back))
    )
    seed_everything(SEED)
    model = make_model(tokenizer)
    standardise(model, train.data.pixels(range(240)))
    tower = model.model.vision_tower
    for name, settings in (("frozen", FROZEN), ("unfrozen", UNFROZEN)):
        tower.requires_grad_(name == "unfrozen")
        tower.post_layernorm.requires_grad_(False)  # only pooled outputs pass through it
        _train(model, train, settings, work / name, max_steps=max_steps)
    model.eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return {
        "recipe": {
            "steps": FROZEN.max_steps + UNFROZEN.max_steps,
            "steps_with_frozen_tower": FROZEN.max_steps,
            "batch_size": FROZEN.batch_size,
            "lr": FROZEN.lr,
            "lr_unfrozen": UNFROZEN.lr,
            "lr_scale_of_tower": TOWER_LR_SCALE,
            "seed": SEED,
            "cases": CASES,
        },
        "starts_from": {"tiny/tower": digest_of("tiny/tower")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": score_llava(model, tokenizer, train, held_back),
        "saw": "images of known triples with their reports, and balanced questions about them (no text prior)",
        "must_not_see": "preference pairs, text-biased questions, boxes, rationales as targets, validation and test "
        "seeds, held-out triples, pairs and values, attribute labels",
    }


def _train(
    model: LlavaForConditionalGeneration, rows: ChatRows, settings: OptimConfig, out: Path, *, max_steps: int | None
) -> None:
    optim = OptimConfig(**{**vars(settings), "max_steps": max_steps or settings.max_steps})
    source = BatchSource(
        n_items=len(rows), collate=rows.collate, batch_size=optim.batch_size, seed=SEED, lengths=rows.lengths
    )
    learns = any(p.requires_grad for p in model.model.vision_tower.parameters())
    scale = {"model.vision_tower.": TOWER_LR_SCALE} if learns else None
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay, lr_scale=scale)
    run = RunConfig(seed=SEED, save_every_steps=300, log_every_steps=50)
    fit(model, chat_loss, source, optim=optim, run=run, out=out, groups=groups)
