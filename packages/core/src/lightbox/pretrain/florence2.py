"""Build the tiny `florence2`: a Florence-2 of 1.5 M parameters that finds what a phrase of attributes describes.

Its DaViT tower is first trained alone with dense targets, as the tiny `tower` is: trained from random weights, a tiny
Florence-2 does not learn to point within thousands of steps. Then all but the tower learns phrase -> boxes.
"""

from dataclasses import replace
from pathlib import Path

from einops import rearrange
from tokenizers import AddedToken, Tokenizer, models, processors
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
)

from lightbox.config import OptimConfig, RunConfig
from lightbox.knowledge import PSEUDO_WORDS, synonyms
from lightbox.pretrain.florence2_rows import BINS, WORLDS, PhraseRows, phrase_loss, phrase_set
from lightbox.pretrain.florence2_scores import score_florence2
from lightbox.pretrain.llava import EXTRA_WORDS as SPELLING
from lightbox.pretrain.tokenizer import SENTINELS, fixed_tokenizer
from lightbox.pretrain.tokenizer import UNK as T5_UNK
from lightbox.pretrain.tower import IMAGE_PX, MEAN, STD, DenseTower, dense_recipe, train_dense
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything
from lightbox.train.updates import decay_groups

SEED, THREADS = 0, 2  # on one thread it takes 38 minutes
CASES, VALIDATION_CASES = 36_000, 600
WIDTH = 96
STAGES = (32, 64, 96, 96)
STRIDES = (4, 2, 1, 1)  # 8 in all: with the published 32 an image of 64 pixels would be five tokens
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # BART's ids
IMAGE = "<image>"
EXTRA_WORDS = tuple("locate phrases caption image find means note with shape density location".split())
"""Words of prompts, so that each is one token."""
DENSE = OptimConfig(lr=1.5e-3, max_steps=2400, batch_size=48, warmup_frac=0.05)
PHRASES = OptimConfig(lr=1.5e-3, max_steps=4000, batch_size=20, warmup_frac=0.05)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the tiny `t5` between BART's special tokens and Florence-2's locations, then `<image>`.

    Synonyms of the ontology and pseudo-words are one token each and never trained on here: they are for those who teach
    the model what they mean.
    """
    words = fixed_tokenizer().backend_tokenizer
    ids = words.get_vocab()
    plain = [word for word in sorted(ids, key=ids.__getitem__) if word not in {*SPECIAL, *SENTINELS, T5_UNK}]
    locations = [f"<loc_{k}>" for k in range(BINS)]
    later = [word for values in synonyms().words.values() for words in values.values() for word in words]
    vocab = dict.fromkeys([*SPECIAL, *plain, *EXTRA_WORDS, *later, *PSEUDO_WORDS, *SPELLING, *locations, IMAGE])
    vocab = {word: k for k, word in enumerate(vocab)}
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer, core.decoder = words.normalizer, words.pre_tokenizer, words.decoder
    core.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL, *locations, IMAGE)])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=256,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Florence2Processor:
    """Images as the tiny `tower` reads them; one token for each patch and one for their mean."""
    images = CLIPImageProcessor(
        size={"height": IMAGE_PX, "width": IMAGE_PX},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        image_seq_length=(IMAGE_PX // 8) ** 2 + 1,
    )
    return Florence2Processor(images, tokenizer)


def make_model(tokenizer: PreTrainedTokenizerFast) -> Florence2ForConditionalGeneration:
    """A small Florence-2 with random weights."""
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": WIDTH,
        "encoder_layers": 3,
        "decoder_layers": 2,
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 2 * WIDTH for part in ("encoder", "decoder")},
        "max_position_embeddings": 256,
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
        **special,
    }
    vision = {
        "model_type": "florence_vision",
        "depths": [1, 1, 1, 1],
        "embed_dim": list(STAGES),
        "patch_stride": list(STRIDES),
        "num_heads": [2, 4, 4, 4],
        "num_groups": [2, 4, 4, 4],
        "window_size": 8,
        "projection_dim": WIDTH,
        "drop_path_rate": 0.0,
    }
    config = Florence2Config(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE), **special
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = config.bos_token_id  # as the published model decodes
    return model


def davit_patches(vision: nn.Module, pixel_values: Tensor) -> Tensor:
    """The last stage, row by row."""
    return rearrange(vision(pixel_values).last_hidden_state, "b c h w -> b (h w) c")


def build_florence2(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the model and its processor.

    Args:
        folder: receives config.json, model.safetensors, files of tokenizer and processor.
        work: receives checkpoints and history of both stages; a killed build continues from there.
        max_steps: fewer steps in each stage, for tests.

    Returns:
        Facts for the model card.
    """
    tokenizer = make_tokenizer()
    seed_everything(SEED)
    model = make_model(tokenizer)
    dense = DenseTower(model.model.vision_tower, davit_patches, STAGES[-1], reads_reports=False)
    scores = train_dense(dense, DENSE, work / "tower", worlds=WORLDS, max_steps=max_steps, threads=THREADS)
    n_train, n_held_back = (CASES, VALIDATION_CASES) if max_steps is None else (240, 60)
    train, held_back = (
        PhraseRows(phrase_set(split, n, seed=SEED), tokenizer)
        for split, n in (("pretrain", n_train), ("pretrain_validation", n_held_back))
    )
    optim = replace(PHRASES, max_steps=max_steps or PHRASES.max_steps)
    model.model.vision_tower.requires_grad_(False)  # it knows findings by now, and is most of the time of a step
    groups = decay_groups(model, lr=optim.lr, weight_decay=optim.weight_decay)
    source = BatchSource(n_items=len(train), collate=train.collate, batch_size=optim.batch_size, seed=SEED)
    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=500, log_every_steps=50)
    fit(model, phrase_loss, source, optim=optim, run=run, out=work / "phrases", groups=groups)
    model.eval().save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return {
        "recipe": {
            "dense": dense_recipe(DENSE, max_steps),
            "phrases": {
                "steps": optim.max_steps,
                "images_a_step": optim.batch_size,
                "lr": optim.lr,
                "seed": SEED,
                "cases": CASES,
            },
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": {f"tower_{name}": value for name, value in scores.items()}
        | score_florence2(model, tokenizer, held_back),
        "saw": "images of known triples, with and without distractors: dense triple ids and finding pixels, then "
        "phrases of density, shape and location words with the boxes that fit",
        "must_not_see": "class names, definition sentences, reports, validation and test seeds, held-out triples, "
        "pairs and values",
    }
