"""A LLaVA that learns from preference pairs, on features of its frozen tower, which are computed once an image.

What an objective reads of a pair are its sides: both answers, and for some the preferred one without an image or the
answers of another pair. All are rows of one batch. An image that they share is projected once, and answers to one
prompt under one image may share a row, see `answer_rows`; texts are tokenised once; the reference's
log-probabilities are computed once before the first step, by the same code in the same mode as those of the policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.reading import ImageFields
from lightbox.backbones.rows import IGNORED, UNLIMITED, SharedImages, VlmBatch
from lightbox.backbones.vision import VisionFeatures
from lightbox.errors import RequestError
from lightbox.losses.preference import objective_of
from lightbox.paper.answer_rows import TAKES_A_MASK, Answered, answer_logps, answer_rows
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
TRIVIAL = 0.95
"""Share of pairs won before training above which there is next to nothing to learn from them."""
Said = tuple[str, str, int | None]
"""Prompt, answer, row of the image; None where the prompt has no image, and so no image token."""


@dataclass(frozen=True)
class Side:
    """An answer of a pair under an image.

    Args:
        answer: chosen or rejected.
        image: "own" is the one under which the preferred answer is read, "other" the one under which the other is,
            "none" leaves it out of the prompt.
        is_mismatched: True takes the answer of another pair, the same one throughout a run, beside this one's prompt.
    """

    answer: str
    image: str
    is_mismatched: bool = False


CHOSEN, REJECTED, BLIND = Side("chosen", "own"), Side("rejected", "other"), Side("chosen", "none")
MISMATCHED = (Side("chosen", "own", is_mismatched=True), Side("rejected", "other", is_mismatched=True))


@dataclass(frozen=True)
class PairBatch:
    """Rows of some pairs.

    Args:
        parts: rows of like length, with one answer or several; images are numbered by `patches` where that is given.
        is_learnt: of each part; False where its log-probabilities need no gradient.
        places: for each answer, side after side, its place among those of the parts laid end to end.
        patches: what the projector reads of each distinct image; None where images are encoded in the step.
        weights: of the pairs.
        reference: log-probabilities before training, a row a side; empty where none are known.
    """

    parts: list[VlmBatch]
    is_learnt: list[bool]
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
        sides: what is read of a pair; `CHOSEN` alone needs no reference.
        weights: one number a pair, in the order of the samples that `fit` gets; None is 1 each.
        reference: log-probabilities of the answers before training; there once `fit` has begun.
        patches: of the images of the split that is learnt from, likewise.
        is_pruned: True inside a block of `pruned`. Images are encoded where they are read then, since a method looks at
            how the tower sees them, and each answer has a row of its own.
    """

    sides: Sequence[Side] = (CHOSEN,)
    is_pruned: bool = False
    weights: Float[Tensor, " n"] | None = None
    reference: Float[Tensor, "s n"] | None = None
    patches: Float[Tensor, "m p c"] | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._read: dict[tuple[str, str, bool], tuple[Tensor, int]] = {}

    def fit(
        self,
        samples: Sequence[Sample[Pair]],
        split: Split[Any],
        folder: Path,
        *,
        memory_advice: Callable[[int], str] | None = None,
    ) -> History:
        """See `Learner.fit`; features and the reference come first, from the weights as they are now."""
        self.patches = self.encode(split) if self.cfg.model.freezes_tower and not self.is_pruned else None
        self.reference = self.log_probs(samples, split) if len(self.sides) > 1 else None
        return super().fit(samples, split, folder, memory_advice=memory_advice)

    def collate(self, samples: Sequence[Sample[Pair]], split: Split[Any]) -> Callable[[list[int]], PairBatch]:
        """The function that makes a batch of places in `samples`.

        Raises:
            RequestError: a text that holds a control token, or one pair alone where answers of another one are read.
        """
        pairs = [sample.record for sample in samples]
        for what in dict.fromkeys(["prompt", *(side.answer for side in self.sides)]):
            self.backbone.check_texts([getattr(pair, what) for pair in pairs], what=what)
        weights = torch.ones(len(samples)) if self.weights is None else self.weights
        partners = self._partners(len(samples))

        def said_of(side: Side, place: int) -> Said:
            answers = pairs[partners[place] if side.is_mismatched else place]
            images = {"own": samples[place].image, "other": pairs[place].rejected_image, "none": None}
            return pairs[place].prompt, getattr(answers, side.answer), images[side.image]

        def batch_of(places: list[int]) -> PairBatch:
            said = [said_of(side, place) for side in self.sides for place in places]
            is_learnt = [not side.is_mismatched for side in self.sides for _ in places]
            known = torch.empty(0, 0) if self.reference is None else self.reference[:, places]
            return PairBatch(*self._rows(said, is_learnt, split, self.patches), weights[places], known)

        return batch_of

    def row_lengths(self, samples: Sequence[Sample[Pair]], split: Split[Any]) -> list[list[int]]:
        """See `Learner.row_lengths`; of a pair, all rows that are read of it count, and a prompt that they share once.

        A side without an image counts as one with it, and another pair's answers as its own. Control tokens around a
        shared prompt are counted twice.
        """
        counts = []
        for side in self.sides:
            read = [
                replace(
                    sample.with_record(chosen=getattr(sample.record, side.answer)),
                    image=sample.record.rejected_image if side.image == "other" else sample.image,
                )
                for sample in samples
            ]
            counts.append([sum(parts) for parts in super().row_lengths(read, split)])
        totals = [sum(rows) for rows in zip(*counts, strict=True)]
        if len(self.sides) > 1 and self._can_join:
            prompts = super().row_lengths([sample.with_record(chosen="") for sample in samples], split)
            shared = [sample.image == sample.record.rejected_image for sample in samples]
            parts = zip(totals, shared, prompts, strict=True)
            totals = [total - is_shared * sum(prompt) for total, is_shared, prompt in parts]
        return [[total] for total in totals]

    @property
    def _can_join(self) -> bool:
        """Whether answers to one prompt may stand in one row."""
        return self.backbone.attention.name in TAKES_A_MASK and not self.is_pruned

    def _partners(self, n: int) -> list[int]:
        """For each of `n` pairs the one whose answers stand beside its prompt: the next one on a ring in drawn order.

        It stays the same throughout a run, so that the reference of the mismatched answers is computed once as well.
        """
        if n < 2 and any(side.is_mismatched for side in self.sides):
            raise RequestError(
                f"{n} pair to learn from",
                "Its objective reads answers to other prompts, and there is none",
                "Raise data.n_train, or choose objective.method=dpo",
            )
        ring = np.random.default_rng([self.cfg.run.seed, 10]).permutation(n)
        partners = np.empty(n, int)
        partners[ring] = np.roll(ring, 1)
        return partners.tolist()

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
        for part, is_learnt in zip(batch.parts, batch.is_learnt, strict=True):
            rows = part
            if tokens is not None and part.shared is not None:
                rows = replace(part, shared=replace(part.shared, features=tokens))
            with torch.set_grad_enabled(is_learnt and torch.is_grad_enabled()):
                own, tokens_said = answer_logps(backbone, rows)
            logps.append(own)
            counts.append(tokens_said)
        shape = (-1, len(batch.weights))
        return torch.cat(logps)[batch.places].view(shape), torch.cat(counts)[batch.places].view(shape)

    @torch.no_grad()
    def said_logps(self, said: Sequence[tuple[str, str, int]], split: Split[Any]) -> list[float]:
        """Log-probability of given answers under given images, in nats, <= 0; for scoring."""
        self.backbone.model.eval()
        patches = None if self.is_pruned else self.encode(split)
        size, values = self.cfg.eval.batch_size, torch.empty(len(said))
        order = sorted(range(len(said)), key=lambda place: len(said[place][1].split()))  # like lengths pad little
        for start in range(0, len(said), size):
            here = order[start : start + size]
            rows = self._rows([said[place] for place in here], [True] * len(here), split, patches)
            batch = PairBatch(*rows, torch.ones(len(here)), torch.empty(0, 0)).to(self.backbone.device)
            values[here] = self.answer_logps(self.backbone, batch)[0][0].cpu()
        return values.tolist()

    def write_each(
        self, samples: Sequence[Sample[Any]], split: Split[Any], rows: Sequence[int], most: Sequence[int]
    ) -> list[str]:
        """One greedy text a sample under the image of a row, of at most so many tokens; see `write`."""
        texts: dict[int, str] = {}
        for longest in sorted(set(most)):
            own = [place for place, limit in enumerate(most) if limit == longest]
            asked, shown = [samples[place] for place in own], [rows[place] for place in own]
            texts |= dict(zip(own, self.write(asked, split, shown, max_new_tokens=longest), strict=True))
        return [texts[place] for place in range(len(samples))]

    @torch.no_grad()
    def encode(self, split: Split[Any]) -> Float[Tensor, "m p c"]:
        """What the projector reads of each image of a split, on the CPU."""
        self.backbone.model.eval()
        pictures = Pictures(split, range(len(split.images)), image_px=self.cfg.model.image_px)
        starts = range(0, len(pictures), ENCODED_AT_ONCE)
        parts = [self.backbone.tower(list(pictures[at : at + ENCODED_AT_ONCE])).patches for at in starts]
        return torch.stack([patches.cpu() for part in parts for patches in part])

    def _rows(
        self, said: Sequence[Said], is_learnt: Sequence[bool], split: Split[Any], patches: Tensor | None
    ) -> tuple[list[VlmBatch], list[bool], Tensor, Tensor | None]:
        """The first four fields of a `PairBatch`; each part has rows of like length, all learnt from or none.

        `patches` are of all images of the split; None encodes those of the rows in the step.
        """
        images = list(dict.fromkeys(row for _, _, row in said if row is not None))
        number = {row: place for place, row in enumerate(images)}
        pixels = {} if patches is not None or not images else self.backbone.read_images(list(self.see(split, images)))
        read = self._tokens(said)
        # rows without an image are shorter by all of its tokens
        kinds = [
            (learnt, row is not None, len(answer.split()) > LONG_WORDS)
            for learnt, (_, answer, row) in zip(is_learnt, said, strict=True)
        ]
        parts, order = [], []
        for kind in sorted(set(kinds)):
            rows = self._laid_out([place for place, own in enumerate(kinds) if own == kind], said, read)
            answered = [Answered(read[own[0]][0], [read[place][1] for place in own]) for own in rows]
            part = answer_rows(answered, self.backbone.tokenizer.pad_token_id)
            shown = [number[row] for own in rows if (row := said[own[0]][2]) is not None]
            parts.append(replace(part, shared=_shared(pixels, shown) if shown else None))
            order += [place for own in rows for place in own]
        own = None if patches is None else patches[images]
        return parts, [learnt for learnt, _, _ in sorted(set(kinds))], torch.tensor(order).argsort(), own

    def _laid_out(
        self, places: Sequence[int], said: Sequence[Said], read: Sequence[tuple[list[int], list[int]]]
    ) -> list[list[int]]:
        """Places of the answers of each row: joined by prompt and image, or apart where that pads to fewer tokens."""
        apart = [[place] for place in places]
        if not self._can_join:
            return apart
        joined: dict[tuple[str, int | None], list[int]] = {}
        for place in places:
            joined.setdefault((said[place][0], said[place][2]), []).append(place)

        def cost(rows: Sequence[Sequence[int]]) -> int:
            lengths = [len(Answered(read[own[0]][0], [read[place][1] for place in own])) for own in rows]
            return max(lengths) * len(lengths)

        return min(list(joined.values()), apart, key=cost)

    def _tokens(self, said: Sequence[Said]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each prompt, image included, and of each answer, as the backbone writes them; each is read once."""
        keys = [(prompt, answer, row is not None) for prompt, answer, row in said]
        if new := [key for key in dict.fromkeys(keys) if key not in self._read]:
            blank = Image.new("L", (8, 8))  # only the number of its tokens counts
            turns = [
                Conversation((user(*[blank] * has_image, prompt), assistant(answer)))
                for prompt, answer, has_image in new
            ]
            batch = self.backbone.prepare_conversations(turns, max_tokens=UNLIMITED)
            assert batch.labels is not None, "every conversation is answered"
            for key, ids, mask, labels in zip(
                new, batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels, strict=True
            ):
                is_said = labels[mask.bool()] != IGNORED
                self._read[key] = ids[mask.bool()].int(), int(is_said.int().argmax())
        tokens = [(ids.tolist(), start) for ids, start in map(self._read.__getitem__, keys)]
        return [(ids[:start], ids[start:]) for ids, start in tokens]


def _shared(pixels: ImageFields, shown: list[int]) -> SharedImages:
    """The images of a part: of its own alone where a tower will run, all of the batch's where features are there."""
    own = list(dict.fromkeys(shown))
    if not pixels:
        return SharedImages({}, shown)
    return SharedImages({name: value[own] for name, value in pixels.items()}, [own.index(place) for place in shown])


def sides_of(objective: str) -> tuple[Side, ...]:
    """What an objective of `losses.preference` reads of a pair, in the order of the rows of log-probabilities.

    Raises:
        RequestError: an unknown name.
    """
    reads = objective_of(objective)
    return CHOSEN, REJECTED, *(BLIND,) * reads.reads_blind, *MISMATCHED * reads.reads_mismatched


def pair_facts(learner: PairLearner, samples: Sequence[Sample[Pair]]) -> dict[str, object]:
    """What a run's card says of its pairs: how many, and the share that was won before the first step, by grade."""
    counts = {kind: sum(sample.record.kind == kind for sample in samples) for kind in ("text", "image")}
    if learner.reference is None:
        return {"pairs": counts}
    won = (learner.reference[0] > learner.reference[1]).tolist()
    by_grade: dict[str, list[bool]] = {"all": won}
    for sample, own in zip(samples, won, strict=True):
        by_grade.setdefault(f"{sample.record.kind}, {sample.record.grade}", []).append(own)
    shares = {grade: sum(own) / len(own) for grade, own in by_grade.items()}
    warning = f"{shares['all']:.1%} of them were won before training, so the run teaches little"
    said = {"pairs are trivial": warning} if shares["all"] > TRIVIAL else {}
    return {"pairs": counts, "won before training": shares, **said}


def open_pairs(cfg: Any, base: Pretrained, *, loss: PairLoss, texts: Texts, sides: Sequence[Side]) -> PairLearner:
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
