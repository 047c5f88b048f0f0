"""A LLaVA that learns from preference pairs, on features of its frozen tower, which are computed once an image.

Both answers of a pair are rows of one batch. An image that they share is projected once; the reference's
log-probabilities are computed once before the first step, by the same code in the same mode as those of the policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.rows import IGNORED, UNLIMITED, SharedImages, VlmBatch
from lightbox.backbones.vision import VisionFeatures
from lightbox.paper.conditions import Pictures
from lightbox.paper.learner import Learner, Texts, open_backbone
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.purpose import check_purpose
from lightbox.paper.samples import Sample, Split
from lightbox.train import processes
from lightbox.train.driver import History
from lightbox.train.precision import make_accelerator

ENCODED_AT_ONCE = 64
LONG_WORDS = 8
"""Longer answers are rows of a batch of their own: padded to a report, an answer of one word costs twice as much."""
Said = tuple[str, str, int]
"""Prompt, answer, row of the image."""


@dataclass(frozen=True)
class PairBatch:
    """Rows of some pairs.

    Args:
        parts: rows of like length; their images are numbered by `patches` where that is given.
        places: for each answer, the preferred ones first, its row in the parts laid end to end.
        patches: what the projector reads of each distinct image; None where images are encoded in the step.
        weights: of the pairs.
        reference: log-probabilities before training, a row a side; empty where none are known.
    """

    parts: list[VlmBatch]
    places: Int[Tensor, " n"]
    patches: Float[Tensor, "m p c"] | None
    weights: Float[Tensor, " b"]
    reference: Float[Tensor, "s b"]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on a device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name in ("places", "patches", "weights", "reference")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, parts=[part.to(device, non_blocking=non_blocking) for part in self.parts], **moved)


PairLoss = Callable[[Float[Tensor, "s b"], Int[Tensor, "s b"], PairBatch], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(log-probabilities, a row a side; tokens likewise; batch) -> summed loss, what it is divided by, diagnostics."""


class PairLearner(Learner):
    """A learner of pairs; made by `open_pairs`.

    Attributes:
        sides: 2 where both answers are learnt from, 1 for the preferred one alone.
        weights: one number a pair, in the order of the samples that `fit` gets; None is 1 each.
        reference: log-probabilities of the answers before training; there once `fit` has begun.
        patches: of the images of the split that is learnt from, likewise.
    """

    sides: int = 1
    weights: Float[Tensor, " n"] | None = None
    reference: Float[Tensor, "s n"] | None = None
    patches: Float[Tensor, "m p c"] | None = None

    def fit(
        self,
        samples: Sequence[Sample[Pair]],
        split: Split[Any],
        folder: Path,
        *,
        memory_advice: Callable[[int], str] | None = None,
    ) -> History:
        """See `Learner.fit`; features and the reference come first, from the weights as they are now."""
        self.patches = self.encode(split) if self.cfg.model.freezes_tower else None
        self.reference = self.log_probs(samples, split) if self.sides == 2 else None
        return super().fit(samples, split, folder, memory_advice=memory_advice)

    def collate(self, samples: Sequence[Sample[Pair]], split: Split[Any]) -> Callable[[list[int]], PairBatch]:
        """The function that makes a batch of places in `samples`."""
        pairs = [sample.record for sample in samples]
        for what in ("prompt", "chosen", "rejected")[: 1 + self.sides]:
            self.backbone.check_texts([getattr(pair, what) for pair in pairs], what=what)
        weights = torch.ones(len(samples)) if self.weights is None else self.weights

        def batch_of(places: list[int]) -> PairBatch:
            said = [(pairs[place].prompt, pairs[place].chosen, samples[place].image) for place in places]
            if self.sides == 2:
                said += [(pairs[place].prompt, pairs[place].rejected, pairs[place].rejected_image) for place in places]
            parts, order, patches = self._rows(said, split)
            known = torch.empty(0, 0) if self.reference is None else self.reference[:, places]
            return PairBatch(parts, order, patches, weights[places], known)

        return batch_of

    def log_probs(self, samples: Sequence[Sample[Pair]], split: Split[Any]) -> Float[Tensor, "s n"]:
        """Log-probability of each answer as an update would compute it: in train mode, in the precision of the run."""
        batch_of, size = self.collate(samples, split), self.cfg.eval.batch_size
        self.backbone.model.train()
        parts = []
        with torch.no_grad(), make_accelerator(self.cfg.run).autocast():
            for start in range(0, len(samples), size):
                batch = batch_of(list(range(start, min(start + size, len(samples))))).to(self.backbone.device)
                parts.append(self.answer_logps(self.backbone, batch)[0].cpu())
        return torch.cat(parts, dim=1)

    def answer_logps(self, backbone: Backbone, batch: PairBatch) -> tuple[Float[Tensor, "s b"], Int[Tensor, "s b"]]:
        """Log-probabilities of the answers with gradient, end tokens included, and how many tokens each has."""
        tokens = None
        if batch.patches is not None:
            tokens = backbone.project(VisionFeatures(list(batch.patches), grids=[]))
        logps, counts = [], []
        for part in batch.parts:
            rows = part if tokens is None else replace(part, shared=replace(part.shared, features=tokens))
            logps.append(backbone.sequence_logps(rows))
            counts.append((part.labels != IGNORED).sum(dim=1))
        shape = (-1, len(batch.weights))
        return torch.cat(logps)[batch.places].view(shape), torch.cat(counts)[batch.places].view(shape)

    @torch.inference_mode()
    def said_logps(self, said: Sequence[Said], split: Split[Any]) -> list[float]:
        """Log-probability of given answers under given images, in nats, <= 0; for scoring."""
        self.backbone.model.eval()
        size, values = self.cfg.eval.batch_size, []
        for start in range(0, len(said), size):
            prompts, answers, rows = zip(*said[start : start + size], strict=True)
            batch = self.backbone.prepare(self.see(split, rows), prompts, answers, max_tokens=UNLIMITED)
            values += self.backbone.sequence_logps(batch.to(self.backbone.device)).tolist()
        return values

    @torch.no_grad()
    def encode(self, split: Split[Any]) -> Float[Tensor, "m p c"]:
        """What the projector reads of each image of a split, on the CPU."""
        self.backbone.model.eval()
        pictures = Pictures(split, range(len(split.images)), image_px=self.cfg.model.image_px)
        starts = range(0, len(pictures), ENCODED_AT_ONCE)
        parts = [self.backbone.tower(list(pictures[at : at + ENCODED_AT_ONCE])).patches for at in starts]
        return torch.stack([patches.cpu() for part in parts for patches in part])

    def _rows(self, said: Sequence[Said], split: Split[Any]) -> tuple[list[VlmBatch], Tensor, Tensor | None]:
        """Rows in parts of like length, where each answer lies in them, and the patches of their images."""
        images = list(dict.fromkeys(row for _, _, row in said))
        number = {row: place for place, row in enumerate(images)}
        if self.patches is None:
            pictures = list(self.see(split, images))  # one object an image, so that it is encoded once
        else:
            pictures = [Image.new("L", (8, 8))] * len(images)  # only the number of its tokens counts
        is_long = [len(answer.split()) > LONG_WORDS for _, answer, _ in said]
        groups = [[place for place, own in enumerate(is_long) if own == wanted] for wanted in (False, True)]
        parts = []
        for own in ([said[place] for place in group] for group in groups if group):
            turns = [
                Conversation((user(pictures[number[row]], prompt), assistant(answer))) for prompt, answer, row in own
            ]
            features = None if self.patches is None else [self.patches[0]]
            rows = self.backbone.prepare_conversations(turns, max_tokens=UNLIMITED, features=features)
            if features is not None:  # the true ones are projected in the step, with gradient
                rows = replace(rows, shared=SharedImages({}, [number[row] for _, _, row in own]))
            parts.append(rows)
        order = torch.tensor([place for group in groups for place in group]).argsort()
        return parts, order, None if self.patches is None else self.patches[images]


def open_pairs(cfg: Any, base: Pretrained, *, loss: PairLoss, texts: Texts, sides: int) -> PairLearner:
    """Load a model of family llava, ready to learn from pairs.

    Args:
        cfg: a `schema.PaperConfig` whose model part has `freezes_tower`.
        base: the weights.
        loss: of a batch, from its log-probabilities.
        texts: prompt and answer of each sample, for generation and for the lengths of rows.
        sides: see `PairLearner`.

    Raises:
        RequestError: what loading refuses.
    """
    if not cfg.objective.is_trained:
        check_purpose(base.adapter or Path(base.name), {}, backbone=cfg.model.backbone)
    processes.join(cfg.run)
    settled = base.under(cfg)
    backbone = open_backbone(settled, base)
    if cfg.model.freezes_tower:
        backbone.part(backbone.family.vision).requires_grad_(False)

    def of_batch(own: Backbone, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return loss(*learner.answer_logps(own, batch), batch)

    learner = PairLearner(settled, backbone, texts=texts, loss=of_batch, vision=None)
    learner.sides = sides
    return learner
