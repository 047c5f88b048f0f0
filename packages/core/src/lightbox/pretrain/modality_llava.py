"""Where MedPLIB's training begins at tiny size: a LLaVA of the `modality_tower`, words of every modality, no projector.

The paper starts from a LLaVA-1.5, whose language model can read and whose tower can see, and aligns and trains it
itself in four stages. So nothing here is trained: tower and language model are put together as they were shipped, with
a projector drawn anew. The tiny `llava` cannot be taken whole: its tower knows grey chests only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.backbones import weights
from lightbox.phantom.modalities import MODALITIES
from lightbox.pretrain import llava
from lightbox.pretrain.modality_pictures import trained_pictures
from lightbox.pretrain.modality_tower import colour_values, in_square
from lightbox.pretrain.tower import clip_patches
from lightbox.train.seeds import untouched_rng

TOWER, LANGUAGE = "tiny/modality_tower", "tiny/llava"
SEG, REGION, REGION_END, REGION_FEATURE = "<SEG>", "<region>", "</region>", "<region_feature>"
TAGS = (SEG, REGION, REGION_END, REGION_FEATURE)
"""A mask is asked for; a region of the picture begins, ends, and has its features. The names of the official code."""
WORDS = tuple(
    dict.fromkeys(
        [
            *(word for modality in MODALITIES.values() for name in modality.classes for word in name.split()),
            *(word for name in MODALITIES for word in name.split()),
            *"segment outline mark mask show name where which its it this region half size kind contrast".split(),
            *"stand out small large faint strong smooth ragged left right present absent".split(),
        ]
    )
)
"""Also of held-out modalities: their words may be known, their pictures may not."""
STANDARD_PICTURES = 120


def make_tokenizer() -> PreTrainedTokenizerFast:
    """That of the tiny `llava`, id for id, then a token for each tag and for each word that it would spell.

    Tags are no special tokens, so that an answer without its special tokens still holds them.
    """
    tokenizer = llava.make_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    spelled = [word for word in WORDS if len(tokenizer.tokenize(word)) > 1]
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True, special=False) for word in spelled])
    return tokenizer


def make_start(tokenizer: PreTrainedTokenizerFast, *, seed: int, tower: str = TOWER) -> LlavaForConditionalGeneration:
    """Tower and language model as shipped; a drawn projector and drawn rows of new words.

    Args:
        tokenizer: of `make_tokenizer`.
        seed: of what is drawn.
        tower: of the class and size of the tiny `tower`.
    """
    with untouched_rng():
        torch.manual_seed(seed)
        vision = CLIPVisionModel.from_pretrained(weights.locate(tower).source)
        before: Any = LlavaForConditionalGeneration.from_pretrained(weights.locate(LANGUAGE).source)
        text = before.config.text_config
        text.vocab_size = len(tokenizer)
        config: Any = LlavaConfig(
            vision_config=vision.config,
            text_config=text,
            image_token_index=before.config.image_token_id,
            image_seq_length=before.config.image_seq_length,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )
        for part in (config, config.vision_config, config.text_config):
            part.name_or_path = ""  # a path of this machine is nothing to save
        model: Any = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(vision.state_dict())
        state = before.model.language_model.state_dict()
        old = state.pop("embed_tokens.weight")
        with torch.no_grad():
            table = model.model.language_model.embed_tokens.weight
            nn.init.normal_(table, std=float(old.std()))  # new words as loud as old ones
            table[: len(old)] = old
        unread = model.model.language_model.load_state_dict(state, strict=False)
        assert (unread.missing_keys, unread.unexpected_keys) == (["embed_tokens.weight"], []), unread
        model.generation_config = before.generation_config
        standardise(model, standard_pictures())
    return model.eval()


@torch.no_grad()
def standardise(model: Any, pixel_values: Float[Tensor, "b 3 h w"]) -> None:
    """Draw the projector so that it first sees features of mean 0 and deviation 1, measured on some pictures.

    Args:
        model: a LLaVA on a CLIP.
        pixel_values: of some pictures.
    """
    features = clip_patches(model.model.vision_tower, pixel_values).flatten(0, 1)
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    projector.linear_1.weight /= features.std(dim=0)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ features.mean(dim=0))


def standard_pictures() -> Float[Tensor, "b 3 h w"]:
    """Some pictures of every trained modality, as the tower reads them."""
    pictures = trained_pictures("pretrain", STANDARD_PICTURES)
    return colour_values(np.stack([in_square(np.asarray(case.images[0])) for _, case in pictures]))


def write_start(folder: Path, *, seed: int = 0, tower: str = TOWER) -> Path:
    """Write the start of the paper's stages as a directory that `lightbox.backbones.loading.load` reads as any LLaVA.

    Args:
        folder: receives config.json, model.safetensors, files of tokenizer and processor.
        seed: of projector and new words.
        tower: see `make_start`.

    Raises:
        RequestError: weights that are not there.
    """
    tokenizer = make_tokenizer()
    make_start(tokenizer, seed=seed, tower=tower).save_pretrained(folder)
    llava.make_processor(tokenizer).save_pretrained(folder)
    return folder
