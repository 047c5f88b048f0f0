"""What the tiny `florence2` is pretrained on: a phrase of attributes, and the boxes of all findings that fit it.

Phrases are made of the ontology's own words and never name a class. Several phrases are asked of one image, which the
tower then sees once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from lightbox.backbones.codecs import FlorenceBins
from lightbox.losses.language import IGNORED, token_cross_entropy
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.ontology import DENSITY_WORDS, SHAPE_WORDS
from lightbox.pretrain.t5 import pad
from lightbox.pretrain.tower import normalise
from lightbox.records import Box, Case, Finding

WORLDS = tuple(Knobs(vocabulary="triples", distractors=n) for n in (0, 1, 3))
"""Without distractors whatever stands out is the answer; with them the phrase must be read."""
INSTRUCTION = "Locate the phrases in the caption: "
"""What Florence-2's processor makes of its task `<CAPTION_TO_PHRASE_GROUNDING>`."""
KINDS = ("triple", "look", "part", "absent")
PHRASES_PER_CASE = len(KINDS)
PARTS = ("shape", "density", "location")
PAD, BOS, EOS = 1, 0, 2  # as BART
BINS = 64
"""Location tokens of the tiny model: one a pixel of its images."""


@dataclass(frozen=True)
class Phrase:
    """Attributes in words and the boxes of the findings that have them, top to bottom; none where `kind` is absent.

    Other kinds: "triple" names density, shape and location, "look" the first two, "part" one of the three.
    """

    kind: str
    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class PhraseSet:
    """Images, uint8 (n, h, w), and `PHRASES_PER_CASE` phrases about each."""

    pixels: np.ndarray
    phrases: list[list[Phrase]]


def phrase_set(split: str, n_cases: int, *, seed: int = 0) -> PhraseSet:
    """Draw images with phrases from a phantom split, the worlds one after the other; cases without a finding are left.

    Args:
        split: a phantom split.
        n_cases: images to draw, of which a fifth has no finding; a multiple of the number of worlds.
        seed: run seed; each world has its own case seeds.
    """
    rng = np.random.default_rng([seed, n_cases])
    share = n_cases // len(WORLDS)
    pixels, phrases = [], []
    for k, knobs in enumerate(WORLDS):
        for case in draw_cases(seed_range(split, seed + k, share), knobs, questions_per_case=0, split=split):
            if case.findings:
                pixels.append(case.images[0])
                phrases.append([ask(case, kind, rng) for kind in KINDS])
    return PhraseSet(np.stack(pixels), phrases)


def ask(case: Case, kind: str, rng: np.random.Generator) -> Phrase:
    """A phrase of some kind about a finding of the case drawn at random."""
    finding = case.findings[rng.integers(len(case.findings))]
    wanted = dict(finding.attributes)
    if kind == "absent":
        return Phrase(kind, _absent(case, wanted, rng), ())
    parts = {"triple": PARTS, "look": PARTS[:2], "part": (PARTS[rng.integers(len(PARTS))],)}[kind]
    fitting = [f for f in case.findings if all(f.attributes[part] == wanted[part] for part in parts)]
    return Phrase(kind, write({part: wanted[part] for part in parts}), _boxes(fitting))


def write(attributes: dict[str, str]) -> str:
    """Some of density, shape and location in words.

    Example:
        >>> write({"shape": "disc", "density": "dense", "location": "left hilum"}), write({"shape": "disc"})
        ('dense disc , left hilum', 'disc')
    """
    look = " ".join(attributes[part] for part in ("density", "shape") if part in attributes)
    return " , ".join(text for text in (look, attributes.get("location", "")) if text)


def _absent(case: Case, wanted: dict[str, str], rng: np.random.Generator) -> str:
    """A look that no finding has: one attribute of a finding that is there, changed."""
    looks = {(f.attributes["density"], f.attributes["shape"]) for f in case.findings}
    density, shape = wanted["density"], wanted["shape"]
    others = [(d, shape) for d in DENSITY_WORDS.values()] + [(density, s) for s in SHAPE_WORDS.values()]
    free = [look for look in others if look not in looks and look[1] != SHAPE_WORDS["ring"]]  # rings are held out
    density, shape = free[rng.integers(len(free))]
    return write({"density": density, "shape": shape})


def _boxes(findings: Sequence[Finding]) -> tuple[Box, ...]:
    boxes = [box for finding in findings for box in finding.boxes]
    return tuple(sorted(boxes, key=lambda box: (box.y0, box.x0)))


class PhraseRows:
    """Tokenised phrases and their collation.

    A batch is `pixel_values` (b, 3, h, w), `input_ids` (b q, t), `attention_mask` (b q, t; 1 where a token is real)
    and `labels` (b q, u; -100 on padding), the q phrases of an image together.

    Args:
        data: images and phrases.
        tokenizer: the tiny florence2's.
    """

    def __init__(self, data: PhraseSet, tokenizer: PreTrainedTokenizerFast) -> None:
        self.data = data
        codec, side = FlorenceBins(BINS), data.pixels.shape[1]
        flat = [phrase for phrases in data.phrases for phrase in phrases]
        prompts = tokenizer([INSTRUCTION + p.text for p in flat], add_special_tokens=False)["input_ids"]
        texts = ["".join(codec.encode(box, side, side) for box in p.boxes) for p in flat]
        targets = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self.prompts = [[BOS, *ids, EOS] for ids in prompts]
        self.targets = [[BOS, *ids, EOS] for ids in targets]

    def __len__(self) -> int:
        return len(self.data.phrases)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Pad the phrases of some images to the longest of them."""
        rows = [PHRASES_PER_CASE * i + k for i in indices for k in range(PHRASES_PER_CASE)]
        ids = pad([self.prompts[row] for row in rows], PAD)
        return {
            "pixel_values": normalise(self.data.pixels[list(indices)]),
            "input_ids": ids,
            "attention_mask": (ids != PAD).long(),
            "labels": pad([self.targets[row] for row in rows], IGNORED),
        }


def encode(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings of image and prompt (b q, 65 + t, d) with their mask, by a Florence-2 that sees each image once."""
    image = model.model.get_image_features(batch["pixel_values"]).pooler_output  # b, 65, d
    image = image.repeat_interleave(len(batch["input_ids"]) // len(image), dim=0)
    words = model.get_input_embeddings()(batch["input_ids"])
    mask = torch.cat([batch["attention_mask"].new_ones(image.shape[:2]), batch["attention_mask"]], dim=1)
    return {"inputs_embeds": torch.cat([image, words], dim=1), "attention_mask": mask}


def phrase_loss(
    model: Florence2ForConditionalGeneration, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Summed cross-entropy of location tokens and ends in nats, and the number of them."""
    labels = batch["labels"]
    inputs = labels.masked_fill(labels == IGNORED, PAD).roll(1, dims=1)
    inputs[:, 0] = EOS  # BART's decoder starts with the end token
    logits = model(**encode(model, batch), decoder_input_ids=inputs, use_cache=False).logits
    return *token_cross_entropy(logits, labels), {}
