"""What the tower makes of the study's images: once in a process, for all prompts, conditions, policies and budgets.

The model is frozen and its tower reads no prompt, so all that stands before a choice follows from the image alone. Arms
of one seed see the same images, and a worker scores several arms, so the outputs are kept from job to job.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.conversation import conversations_of
from lightbox.backbones.rows import UNLIMITED, SharedImages, VlmBatch
from lightbox.files import digest
from lightbox.paper.conditions import Pictures
from lightbox.paper.samples import Split
from lightbox.pruning.finding_head import load_head
from lightbox.pruning.layouts import LAYOUTS, finding_on_grid
from lightbox.pruning.options import Options
from lightbox.pruning.pipeline import Pruning
from lightbox.pruning.records import ImageRecord, layers_for, make_records, taps_of
from lightbox.pruning.regions import tokens_of
from lightbox.pruning.types import ImageInputs
from lightbox.studies.pruning.config import Config
from lightbox.studies.pruning.data import Asked

NEEDS = frozenset({"attention", "early_attention", "metric"})
"""What some policy asks of the tower, finding maps apart."""
ENCODED_AT_ONCE = 20
MOST_BYTES = 2**28
"""Of outputs of earlier jobs in memory."""


@dataclass(frozen=True, eq=False)
class Views:
    """The images of a split and, last, the blank one; an entry an image.

    Args:
        features: p d, as the language model reads them.
        records: what methods ask of the image.
        states: p c, the patches as the tower's last layer leaves them, which a finding head reads.
    """

    features: list[Float[Tensor, "p d"]] = field(default_factory=list)
    records: list[ImageRecord] = field(default_factory=list)
    states: list[Float[Tensor, "p c"]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of the tensors that grow with the width of the model."""
        return sum(own.nbytes for own in (*self.features, *self.states))


_kept: dict[str, Views] = {}
_kept_maps: WeakKeyDictionary[Views, Views] = WeakKeyDictionary()


def see(cfg: Config, backbone: Backbone, split: Split[Asked]) -> Views:
    """Run the tower on each image of a split and on the blank one, unless this process has done so.

    Args:
        cfg: how images are shown.
        backbone: of family llava, in evaluation.
        split: the images.
    """
    name = digest([split.digest(), _tower_digest(backbone), backbone.name, str(backbone.device), cfg.model])
    if name not in _kept:
        while sum(views.nbytes for views in _kept.values()) > MOST_BYTES:
            del _kept[next(iter(_kept))]
        pictures = Pictures(split, range(len(split.images) + 1), image_px=cfg.model.image_px)
        _kept[name] = _encode(backbone, pictures)
    return _kept[name]


def forget() -> None:
    """Drop what is kept from job to job."""
    _kept.clear()


def with_own_maps(views: Views, backbone: Backbone) -> Views:
    """The views with the finding map that the head beside the weights reads off the tower; made once for some views.

    Raises:
        RequestError: weights without a head.
    """
    if views not in _kept_maps:
        head = load_head(backbone.name).to(backbone.device)
        records: list[ImageRecord] = []
        for start in range(0, len(views.states), ENCODED_AT_ONCE):
            here = slice(start, start + ENCODED_AT_ONCE)
            with torch.no_grad():
                maps = head(torch.stack(views.states[here]).float())
            records += [_with_map(record, own) for record, own in zip(views.records[here], maps, strict=True)]
        _kept_maps[views] = replace(views, records=records)
    return _kept_maps[views]


def with_one_map(views: Views, map_of: Callable[[ImageInputs], Sequence[Tensor]]) -> Views:
    """The views with a finding map that looks at no image, the same over each; see `Options.finding_map`."""
    laid = _with_map(views.records[0], map_of({"pixel_values": views.features[:1]})[0])
    records = [replace(own, finding=laid.finding, regions=laid.regions) for own in views.records]
    return replace(views, records=records)


def show(handle: Pruning, views: Views) -> None:
    """Let a block choose among images that were encoded outside it."""
    handle.records.keep(BaseModelOutputWithPooling(pooler_output=views.features), views.records)


def rows_about(backbone: Backbone, features: Sequence[Float[Tensor, "p d"]], prompts: Sequence[str]) -> VlmBatch:
    """A batch to be answered: a prompt about each image, padded on the left.

    Args:
        backbone: whose images have equally many tokens.
        features: of `Views`, one a prompt.
        prompts: without template.
    """
    # rows depend on the number of an image's tokens alone, so one picture stands for all while they are written
    stand_in, distinct = Image.new("L", (1, 1)), list(dict.fromkeys(prompts))
    conversations = conversations_of([stand_in] * len(distinct), distinct, None)
    batch = backbone.prepare_conversations(conversations, max_tokens=UNLIMITED, padding="left", features=[features[0]])
    row_of = [distinct.index(prompt) for prompt in prompts]
    return replace(
        batch,
        inputs={name: rows[row_of] for name, rows in batch.inputs.items()},
        conversations=[batch.conversations[row] for row in row_of],
        shared=SharedImages({}, list(range(len(features))), list(features)),
    )


@torch.no_grad()
def _encode(backbone: Backbone, pictures: Pictures) -> Views:
    layout = LAYOUTS[backbone.family.name](backbone.core, backbone.family.vision)
    views = Views()
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        images = backbone.read_images(list(pictures[start : start + ENCODED_AT_ONCE]))
        inputs = {name: value.to(backbone.device) for name, value in images.items()}
        with taps_of(layout, layers_for(layout, NEEDS, inputs)) as taps:
            output: Any = backbone.core.get_image_features(**inputs, return_dict=True)
        views.features.extend(output.pooler_output)
        views.records.extend(make_records(layout, inputs, NEEDS, Options(), taps))
        views.states.extend(output.last_hidden_state[:, layout.prefix :])
    return views


def _with_map(record: ImageRecord, finding: Float[Tensor, "h w"]) -> ImageRecord:
    regions = tokens_of(finding, record.grid.shown, Options().threshold)
    return replace(record, finding=finding_on_grid(finding, record.grid), regions=regions)


def _tower_digest(backbone: Backbone) -> str:
    """SHA-256 of the weights that images pass through; names of weights do not say what an adapter changed."""
    content = hashlib.sha256()
    for part in (backbone.family.vision, backbone.family.projector):
        for name, value in backbone.part(part).state_dict().items():
            content.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
            content.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
