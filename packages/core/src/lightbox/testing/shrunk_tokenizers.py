"""Tokenizers of the published models' classes with a few hundred tokens, trained on a handful of sentences.

Ids are laid out as in the real vocabularies: control tokens first or last, as there, and gaps filled with unused ones.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    BartTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    T5Tokenizer,
)

CORPUS = (
    "Is there a nodule in the left upper zone? Answer: yes. No, there is none.",
    "Where is the round dense mass? It is in the right lower zone of the lung.",
    "What is shown in the image? A chest radiograph with a small effusion on the left side.",
    "The heart is large. The cardiothoracic ratio is above one half, so the answer is yes.",
    "How many findings are there? There are two of them: a nodule and an opacity.",
    "Locate the abnormality and describe its shape, density, location and size.",
    "USER: ASSISTANT: user assistant system model solution options question because",
    "0 1 2 3 4 5 6 7 8 9 10 20 50 100 250 500 0.125 0.250 0.500 0.750 [ ] ( ) { } , . : ; - + = ' \" / \n",
)
LOCATIONS = 64
"""Location tokens of the small Florence-2; the published one has 1,000."""
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids, which follow the text tokens without a gap."""
FLORENCE_NAMES = ("cap", "ncap", "dcap", "grounding", "seg", "region_cap", "region_to_desciption", "proposal", "poly")
"""Tags that come in pairs; the spelling is the published one."""


def _pieces(n: int, split: pre_tokenizers.PreTokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """Up to n byte-pair tokens of the corpus and their merges; every printable ASCII sign is one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = split
    is_bytes = isinstance(split, pre_tokenizers.ByteLevel)
    signs = pre_tokenizers.ByteLevel.alphabet() if is_bytes else ["▁", "\n", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(vocab_size=n, initial_alphabet=signs, show_progress=False)
    core.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(core.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]


def _numbered(tokens: list[str], size: int) -> dict[str, int]:
    """Token -> id, filled up with unused tokens to a size."""
    filled = [*tokens, *(f"<unused{k}>" for k in range(size - len(tokens)))]
    if len(filled) != size:
        raise ValueError(f"{len(tokens)} tokens do not fit {size} ids")
    return {token: place for place, token in enumerate(filled)}


def _with_bytes(first: tuple[str, ...], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary with byte fallback: control tokens, 256 bytes, pieces."""
    codes = [f"<0x{code:02X}>" for code in range(256)]
    split = pre_tokenizers.Metaspace(prepend_scheme="never")
    pieces, merges = _pieces(size - len(first) - 256, split)
    return _numbered([*first, *codes, *pieces], size), merges


def make_llama(size: int = 480) -> PreTrainedTokenizerBase:
    """Llama and Mistral as in LLaVA: `<image>` and `<pad>` follow the text tokens."""
    vocabulary, merges = _with_bytes(("<unk>", "<s>", "</s>"), size)
    return LlamaTokenizer(
        vocab=vocabulary | {"<image>": size, "<pad>": size + 1},
        merges=merges,
        add_bos_token=True,
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def make_qwen(size: int = 480) -> PreTrainedTokenizerBase:
    """Qwen2 with the vision and box tokens of Qwen2-VL."""
    pieces, merges = _pieces(size, pre_tokenizers.ByteLevel(add_prefix_space=False))
    core = _numbered(pieces, size) | {token: size + place for place, token in enumerate(QWEN_TOKENS)}
    tokenizer = Qwen2Tokenizer(vocab=core, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_TOKENS], True)
    return tokenizer


def make_gemma(size: int = 481) -> PreTrainedTokenizerBase:
    """Gemma 3: the image's begin and end close the text tokens, its soft token is the last."""
    first = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    vocabulary, merges = _with_bytes(first, size - 3)
    last = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    vocabulary |= {token: size - 3 + place for place, token in enumerate(last.values())}
    tokenizer = GemmaTokenizer(
        vocab=vocabulary, merges=merges, add_bos_token=True, extra_special_tokens=last, padding_side="left"
    )
    turns = [AddedToken(token, special=True, normalized=False) for token in first[5:]]
    tokenizer.add_tokens(turns, special_tokens=True)
    return tokenizer


def make_florence(size: int = 400, locations: int = LOCATIONS) -> PreTrainedTokenizerBase:
    """BART with Florence-2's tags and location tokens, then `<image>`."""
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces, merges = _pieces(size - len(first) - 1, pre_tokenizers.ByteLevel(add_prefix_space=False))
    vocabulary = _numbered([*first, *pieces], size - 1) | {"<mask>": size - 1}
    places = [f"<loc_{k}>" for k in range(locations)]
    pairs = [sign.format(name) for name in FLORENCE_NAMES for sign in ("<{}>", "</{}>")]
    added = ["<od>", "</od>", "<ocr>", "</ocr>", *places, *pairs, "<sep>", "<and>"]
    vocabulary |= {token: size + place for place, token in enumerate([*added, "<image>"])}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], True)
    return tokenizer


def make_t5(size: int = 480) -> PreTrainedTokenizerBase:
    """T5: pieces with scores, then 100 sentinels in falling order."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size - 100, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    pieces = [tuple(pair) for pair in json.loads(core.to_str())["model"]["vocab"]]
    unused = [(f"<unused{k}>", -100.0) for k in range(size - 100 - len(pieces))]
    sentinels = [(f"<extra_id_{k}>", 0.0) for k in range(99, -1, -1)]
    return T5Tokenizer(vocab=[*pieces, *unused, *sentinels])
