"""K2Sight's model: a vision-language model that writes boxes, and how it is asked for them.

Florence-2 with its tower frozen is the paper's compact model: features of the tower are computed once an image, and all
else learns. Qwen2-VL is its larger one, trained as the kit trains any vision-language model.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from k2sight.config import Config
from k2sight.data import Target
from k2sight.prompts import MEANS, SIDE_PX, TASK, form_of, write_texts
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.box_text import BoxReading, read_generated
from lightbox.backbones.florence2 import Florence2OnFeatures
from lightbox.backbones.florence2_bank import Florence2WithBank
from lightbox.backbones.rows import UNLIMITED
from lightbox.paper import learner as learners
from lightbox.paper.frozen_tower import open_frozen
from lightbox.paper.learner import Learner
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.region_loss import loss_with_regions
from lightbox.paper.samples import Sample, Split

FLORENCE = "florence2"


class Grounder:
    """A learner that is asked for boxes.

    Args:
        cfg: prompts and lengths.
        learner: the model.
    """

    def __init__(self, cfg: Config, learner: Learner) -> None:
        self.cfg, self.learner = cfg, learner
        self.form = form_of(learner.backbone.family.name, learner.backbone.tokenizer)

    def draw(self, samples: Sequence[Sample[Target]], split: Split[Target], images: Sequence[int]) -> list[BoxReading]:
        """The boxes that the model draws for each sample, with its own confidences.

        Args:
            samples: what is asked.
            split: holds the images.
            images: row of the image that each is shown.
        """
        # of about one size: matrices of very few rows are rounded otherwise
        batches, readings = -(-len(samples) // self.cfg.eval.batch_size), []
        bounds = [len(samples) * place // max(batches, 1) for place in range(batches + 1)]
        for start, end in itertools.pairwise(bounds):
            readings += self.ask(samples[start:end], self.learner.see(split, images[start:end]))
        return readings

    @torch.inference_mode()
    def ask(self, samples: Sequence[Sample[Target]], seen: Any) -> list[BoxReading]:
        """The boxes of one batch; `seen` is what the learner's `see` or `see_file` gave."""
        backbone = self.learner.backbone
        if backbone.model.training:  # to ask every module takes time too
            backbone.model.eval()
        prompts = [prompt for prompt, _ in write_texts(self.cfg, samples, self.form)]
        batch = backbone.prepare(seen, prompts, max_tokens=UNLIMITED, padding="left")
        generated = backbone.generate(batch, max_new_tokens=self.cfg.eval.answer_tokens)
        return read_generated(backbone, generated, self.form, [(SIDE_PX, SIDE_PX)] * len(prompts))


def open_grounder(cfg: Config, base: Pretrained, splits: Sequence[Split[Target]], *, cache: Path) -> Grounder:
    """The model that `model.backbone` names, ready to learn; `splits` are all that it will be shown."""
    family = base.family.name if base.family else ""

    def texts(samples: Sequence[Sample[Target]], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        return write_texts(cfg, samples, form_of(family, tokenizer))

    weight = cfg.objective.region_weight
    loss = partial(loss_with_regions, weight=weight, task=TASK) if weight else Backbone.loss
    if family == FLORENCE and cfg.model.freezes_tower and cfg.model.keeps_features:
        words = cfg.model.bank_words
        kind = partial(Florence2WithBank, separator=MEANS, n_words=words) if words else Florence2OnFeatures
        return Grounder(cfg, open_frozen(cfg, base, splits, texts=texts, purpose=cfg.purpose, loss=loss, kind=kind))
    learner = learners.open_learner(cfg, base, splits, texts=texts, cache=cache, purpose=cfg.purpose, loss=loss)
    if cfg.model.freezes_tower:
        learner.backbone.part(learner.backbone.family.vision).requires_grad_(False)
    return Grounder(cfg, learner)
