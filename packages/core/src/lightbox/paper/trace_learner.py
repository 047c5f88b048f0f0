"""A model that learns from traces: conversations of several turns, with images in later ones.

A trace does not change while it is learnt, so its tokens are made once, and with a frozen tower each of its images is
encoded once: a step is then the projector and the language model. Labels are the tokens of supervised answers with
their ends, as everywhere; what the model was told is read and not learnt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import Conversation
from lightbox.backbones.episodes import batch_of_ids
from lightbox.backbones.rows import IGNORED, UNLIMITED, VlmBatch
from lightbox.backbones.vision import VisionFeatures
from lightbox.errors import RequestError
from lightbox.paper.learner import Learner, open_backbone
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.purpose import check_purpose
from lightbox.paper.samples import Sample, Split
from lightbox.train import processes

AT_ONCE = 64
"""Conversations read and images encoded together."""


@dataclass(frozen=True)
class TraceRow:
    """Tokens of a trace; `images` are places among the distinct images of all traces, in order of appearance."""

    ids: list[int]
    is_label: list[bool]
    images: list[int]


@dataclass(frozen=True)
class TraceImages:
    """Distinct images of traces.

    Args:
        pictures: as they are shown.
        patches: what the projector reads of each, on the CPU; empty where images are encoded in the step.
        fields: what else the family reads of each, such as its size in patches, one row an image.
    """

    pictures: list[Image.Image]
    patches: list[Tensor]
    fields: dict[str, Tensor]


class TraceLearner(Learner):
    """A learner of samples whose records are conversations; made by `open_traces`."""

    _rows: list[TraceRow]

    def collate(self, samples: Sequence[Sample[Conversation]], split: Split[Any]) -> Callable[[list[int]], VlmBatch]:
        """The function that makes a batch of places in `samples`; tokens, and features of a frozen tower, come first.

        Where features are kept, `VlmBatch.shared.features` are patches, which the loss projects.

        Raises:
            RequestError: as `Backbone.prepare_conversations`; a trace that does not fit the context, for one.
        """
        self._rows, pictures = read_traces(self.backbone, [sample.record for sample in samples])
        is_kept = self.cfg.model.freezes_tower and self.cfg.model.keeps_features
        images = encode(self.backbone, pictures) if is_kept else TraceImages(pictures, [], {})

        def batch_of(places: list[int]) -> VlmBatch:
            return batch_of_traces(self.backbone, [self._rows[place] for place in places], images)

        return batch_of

    def row_lengths(self, samples: Sequence[Sample[Conversation]], split: Split[Any]) -> list[list[int]]:
        """Tokens of each trace, images included; `collate` has counted them."""
        return [[len(row.ids)] for row in self._rows]


def read_traces(backbone: Backbone, traces: Sequence[Conversation]) -> tuple[list[TraceRow], list[Image.Image]]:
    """Tokens of traces, as `prepare_conversations` gives them, and their distinct images, compared by content."""
    distinct: dict[tuple[str, tuple[int, int], bytes], Image.Image] = {}
    for trace in traces:
        for image in trace.images:
            distinct.setdefault(_content(image), image)
    number = {content: place for place, content in enumerate(distinct)}
    own: list[TraceRow] = []
    for start in range(0, len(traces), AT_ONCE):
        part = traces[start : start + AT_ONCE]
        batch = backbone.prepare_conversations(part, max_tokens=UNLIMITED)
        is_token = batch.inputs["attention_mask"].bool()
        for row, trace in enumerate(part):
            ids, labels = (values[row][is_token[row]] for values in (batch.inputs["input_ids"], batch.labels))
            images = [number[_content(image)] for image in trace.images]
            own.append(TraceRow(ids.tolist(), (labels != IGNORED).tolist(), images))
    return own, list(distinct.values())


def _content(image: Image.Image) -> tuple[str, tuple[int, int], bytes]:
    return image.mode, image.size, image.tobytes()


@torch.no_grad()
def encode(backbone: Backbone, pictures: Sequence[Image.Image]) -> TraceImages:
    """What the projector reads of each picture, in evaluation mode, and the family's other fields of it."""
    backbone.model.eval()
    patches: list[Tensor] = []
    fields: dict[str, list[Tensor]] = {}
    for start in range(0, len(pictures), AT_ONCE):
        part = pictures[start : start + AT_ONCE]
        patches += [own.cpu() for own in backbone.tower(part).patches]
        for name, values in backbone.read_images(part).items():
            if name != backbone.IMAGE_FIELDS[0]:  # the pixels, which the patches replace
                fields.setdefault(name, []).append(values)
    return TraceImages(list(pictures), patches, {name: torch.cat(own) for name, own in fields.items()})


def batch_of_traces(backbone: Backbone, traces: Sequence[TraceRow], images: TraceImages) -> VlmBatch:
    """Traces as one batch on the CPU, padded on the right, each distinct image once; see `TraceLearner.collate`."""
    ids, is_label = [row.ids for row in traces], [row.is_label for row in traces]
    if not images.patches:
        return batch_of_ids(backbone, ids, is_label, [[images.pictures[k] for k in row.images] for row in traces])
    shown = list(dict.fromkeys(k for row in traces for k in row.images))
    index = [shown.index(k) for row in traces for k in row.images]
    pixels = {name: values[shown] for name, values in images.fields.items()}
    fields, shared = backbone.image_fields(pixels, index, [images.patches[k] for k in shown])
    # without images, the tokens alone
    bare = batch_of_ids(backbone, ids, is_label, [[] for _ in traces])
    return replace(bare, inputs=bare.inputs | fields, shared=shared)


def trace_loss(backbone: Backbone, batch: VlmBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`Backbone.loss` of a batch whose shared features are patches, which are projected here, with gradient."""
    if batch.shared is not None and batch.shared.features is not None:
        patches = batch.shared.features
        tokens = backbone.project(VisionFeatures([torch.cat(patches)], grids=[]))[0]  # one call for all
        features = list(tokens.split([len(own) for own in patches]))
        batch = replace(batch, shared=replace(batch.shared, features=features))
    return backbone.loss(batch)


def open_traces(cfg: Any, base: Pretrained, *, purpose: dict[str, str]) -> TraceLearner:
    """Load a causal model that several images are shown to, ready to learn from traces.

    Args:
        cfg: a `schema.PaperConfig` whose model part has `freezes_tower` and `keeps_features`; the projector learns in
            any case, unless an adapter says otherwise.
        base: the weights.
        purpose: what the weights are asked to do, by config key; saved ones must have been trained for it.

    Raises:
        RequestError: adapters that begin from data, and what loading refuses.
    """
    if cfg.adapter.kind != "none" and cfg.adapter.init == "eva":
        raise RequestError(
            "adapter.init is eva",
            "It looks at what layers read in a plain forward pass, and traces keep their images as features",
            "Set adapter.init=default",
        )
    if not cfg.objective.is_trained:
        check_purpose(base.adapter or Path(base.name), purpose, backbone=cfg.model.backbone)
    processes.join(cfg.run)
    settled = base.under(cfg)
    backbone = open_backbone(settled, base)
    if cfg.model.freezes_tower and settled.adapter.kind == "none":  # beside adapters all else is frozen anyway
        backbone.part(backbone.family.vision).requires_grad_(False)
        backbone.part(backbone.family.projector).requires_grad_(True)  # of Qwen's tower it is a part
    return TraceLearner(settled, backbone, texts=_ends_of, loss=trace_loss, vision=None)


def _ends_of(samples: Sequence[Sample[Conversation]], tokenizer: Any) -> list[tuple[str, str]]:
    """What is read first and what is said last, for what of the kit knows one prompt and one target."""
    return [(sample.record.turns[0].text, sample.record.answers[-1].text) for sample in samples]
