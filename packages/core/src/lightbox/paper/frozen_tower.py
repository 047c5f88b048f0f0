"""A learner whose own vision tower stays as it is: its features of an image are computed once and kept.

`learner.open_learner` gives a model with a tower of its own the pictures in every step. Where the tower is frozen that
is the same computation again and again, and most of a step of a small model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.florence2 import Florence2Backbone, Florence2OnFeatures
from lightbox.files import write_json
from lightbox.paper.conditions import Pictures, picture
from lightbox.paper.learner import Learner, Loss, Texts, open_backbone
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.purpose import PURPOSE, check_purpose
from lightbox.paper.samples import Split
from lightbox.paper.schema import PaperConfig
from lightbox.train import processes

MOST_BYTES = 2 * 2**30
"""Of features of earlier splits in memory: arms of a seed see the same images, and a worker trains several of them."""
ENCODED_AT_ONCE = 64


class FrozenTowerLearner(Learner):
    """A learner on features of the model's own tower; made by `open_frozen`."""

    backbone: Florence2OnFeatures

    def see_file(self, image: Path) -> Any:
        """Features 1 p c of one image file."""
        return self.backbone.encode_images([picture(image, self.cfg.model.image_px)])

    def save(self, folder: Path, purpose: dict[str, str]) -> None:
        """See `Learner.save`; the tower is among the weights, so no other one is named."""
        super().save(folder, purpose)
        write_json(folder / PURPOSE, {"purpose": purpose})


def open_frozen(
    cfg: PaperConfig,
    base: Pretrained,
    splits: Sequence[Split[Any]],
    *,
    texts: Texts,
    purpose: dict[str, str],
    loss: Loss = Backbone.loss,
    kind: Callable[..., Florence2OnFeatures] = Florence2OnFeatures,
) -> Learner:
    """Load a model of family florence2 and compute what its tower sees of some splits.

    Args:
        cfg: which weights, and how they are stored.
        base: found from `cfg.model.backbone`.
        splits: all that the learner will be shown; () for images by file only.
        texts: the paper's prompts and targets.
        purpose, loss: see `learner.open_learner`.
        kind: what reads the features.

    Raises:
        RequestError: weights that were trained for another purpose, and what loading refuses.
    """
    if not cfg.objective.is_trained:
        check_purpose(base.adapter or Path(base.name), purpose, backbone=cfg.model.backbone)
    processes.join(cfg.run)
    settled = base.under(cfg)
    backbone = on_features(open_backbone(settled, base), kind)
    vision = {split.name: _features(backbone, split, settled.model.image_px) for split in splits}
    return FrozenTowerLearner(settled, backbone, texts=texts, loss=loss, vision=vision)


def on_features(backbone: Any, kind: Callable[..., Florence2OnFeatures] = Florence2OnFeatures) -> Florence2OnFeatures:
    """The same Florence-2, read through features of its tower, which gets no gradient."""
    assert isinstance(backbone, Florence2Backbone), type(backbone)
    backbone.part(backbone.family.vision).requires_grad_(False)
    return kind(
        backbone.model,
        backbone.processor,
        backbone.family,
        attention=backbone.attention,
        name=backbone.name,
        revision=backbone.revision,
        quant=backbone.quant,
        dtype=backbone.dtype,
    )


_kept: dict[tuple[str, ...], Tensor] = {}


def _features(backbone: Florence2OnFeatures, split: Split[Any], image_px: int) -> Float[Tensor, "n p c"]:
    """One row an image, and a last row for the blank one; computed once in this process for images and weights."""
    name = split.digest(), backbone.digest, str(backbone.dtype), str(backbone.device), str(image_px)
    if name not in _kept:
        while sum(rows.nbytes for rows in _kept.values()) > MOST_BYTES:
            del _kept[next(iter(_kept))]
        _kept[name] = _encode(backbone, Pictures(split, range(len(split.images) + 1), image_px=image_px))
    return _kept[name]


def _encode(backbone: Florence2OnFeatures, pictures: Pictures) -> Float[Tensor, "n p c"]:
    starts = range(0, len(pictures), ENCODED_AT_ONCE)
    rows: Tensor | None = None
    for start in starts:
        part = backbone.encode_images(list(pictures[start : start + ENCODED_AT_ONCE]))
        if rows is None:  # filled in place: joined at the end, all of it would be there twice
            rows = part.new_empty(len(pictures), *part.shape[1:])
        rows[start : start + len(part)] = part
    assert rows is not None
    return rows
