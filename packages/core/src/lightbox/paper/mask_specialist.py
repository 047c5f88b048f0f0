"""The small specialist that a mask model is read beside: MONAI's U-Net, told the class, trained on the same items.

The U-Net gives features of every pixel, and the logit of a pixel is their product with an embedding of the class. The
class comes in at the end because MONAI's U-Net normalises each channel of each image: a class laid over the input as
constant planes would be subtracted again by its first layer.

Images of any aspect are stretched to a square, and logits are read off it at the image's own pixels. Steps, batch and
rate are the caller's: they are those of the model beside it, or were chosen in as many trials as that model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from PIL import Image
from torch import Tensor, nn

from lightbox.config import check_positive
from lightbox.errors import RequestError, WorkError
from lightbox.eval.masks import THRESHOLD, drawn_at
from lightbox.paper.mask_items import MaskItem
from lightbox.paper.mask_rivals import Masks, squared, unsquared
from lightbox.train.batches import BatchSource
from lightbox.train.seeds import untouched_rng
from lightbox.train.updates import lr_factor

SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class SpecialistConfig:
    """How large the specialist is and how it is trained.

    Args:
        n_steps: optimiser steps, >= 1; those of the model beside it.
        batch_size: items of a step, >= 1.
        lr: peak rate of Adam, > 0; it falls linearly to 0.
        seed: of the weights and of the order of items, >= 0.
        side_px: of the square, a multiple of 2 for each pair of neighbouring `channels`.
        channels: of the U-Net from the top down, two or more; each level has half the side.
        class_width: features of a pixel, as wide as the embedding of a class, >= 1.
        dice, bce: weights of the two losses, >= 0.
    """

    n_steps: int
    batch_size: int
    lr: float
    seed: int
    side_px: int = 64
    channels: tuple[int, ...] = (16, 32, 64)
    class_width: int = 16
    dice: float = 1.0
    bce: float = 1.0

    def __post_init__(self) -> None:
        for key in ("n_steps", "batch_size", "lr", "class_width"):
            check_positive(key, getattr(self, key))
        halved = 2 ** (len(self.channels) - 1)
        # a bottom of one cell has no variance to be normalised by
        if len(self.channels) < 2 or self.side_px % halved or self.side_px < 2 * halved:
            raise RequestError(
                f"side_px={self.side_px} with {len(self.channels)} channels",
                f"The U-Net has two levels or more, and halves the side {len(self.channels) - 1} times, to 2 or more",
                f"Choose a multiple of {halved} from {2 * halved} on, or other channels",
            )


class ClassUNet(nn.Module):
    """MONAI's U-Net with an embedding for each of `n_classes`."""

    def __init__(self, cfg: SpecialistConfig, n_classes: int) -> None:
        super().__init__()
        strides = (2,) * (len(cfg.channels) - 1)
        self.features = UNet(2, 3, cfg.class_width, channels=cfg.channels, strides=strides, num_res_units=1)
        self.classes = nn.Parameter(torch.randn(n_classes, cfg.class_width) / cfg.class_width**0.5)
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, pixels: Float[Tensor, "b 3 h w"], classes: Int[Tensor, " b"]) -> Float[Tensor, "b h w"]:
        """Logits of the asked class, one a pixel; class -1 is the mean of all classes, for one that was never met."""
        every = torch.cat([self.classes, self.classes.mean(dim=0, keepdim=True)])
        bias = torch.cat([self.bias, self.bias.mean(dim=0, keepdim=True)])
        return torch.einsum("bdhw,bd->bhw", self.features(pixels), every[classes]) + bias[classes][:, None, None]


@dataclass(frozen=True)
class Specialist:
    """A trained specialist; `names` are the classes that it knows, in the order of its embeddings.

    `losses` are the mean loss of each step's items.
    """

    net: ClassUNet
    names: tuple[str, ...]
    cfg: SpecialistConfig
    losses: tuple[float, ...]

    def logits(self, asked: Sequence[MaskItem]) -> list[Float[np.ndarray, "_ _"]]:
        """Logits of each item's class at the size of its image, float32."""
        logits = []
        for start in range(0, len(asked), SCORED_AT_ONCE):
            items = asked[start : start + SCORED_AT_ONCE]
            pixels, places = _pixels(items, self.cfg.side_px)
            with torch.no_grad():
                values = self.net(_scaled(pixels[places]), _classes(items, self.names)).numpy()
            logits += [unsquared(own, item.mask.shape) for own, item in zip(values, items, strict=True)]
        return logits

    def masks(self, asked: Sequence[MaskItem], *, threshold: float = THRESHOLD) -> Masks:
        """Pixels of each item whose probability is above a threshold."""
        return [drawn_at(logits, threshold) for logits in self.logits(asked)]


def train_specialist(train: Sequence[MaskItem], cfg: SpecialistConfig) -> Specialist:
    """Train a specialist on the CPU; the same items and configuration give the same weights, bit by bit.

    That is with one thread on one machine. Nobody else's generators are moved.

    Args:
        train: items, also of absent classes, whose masks are empty.
        cfg: see `SpecialistConfig`.

    Raises:
        RequestError: no item.
        WorkError: a loss that is not finite.
    """
    if not train:
        raise RequestError("No training item", "A specialist learns from masks", "Give one item or more")
    names = tuple(sorted({item.name for item in train}))
    with untouched_rng():
        torch.manual_seed(cfg.seed)
        net = ClassUNet(cfg, len(names))
    pixels, places = _pixels(train, cfg.side_px)
    masks = torch.from_numpy(np.stack([squared(item.mask, cfg.side_px) for item in train]))  # n h w
    classes = _classes(train, names)
    loss_of = DiceCELoss(sigmoid=True, lambda_dice=cfg.dice, lambda_ce=cfg.bce)  # of one channel, CE is binary
    adam = torch.optim.Adam(net.parameters(), lr=cfg.lr)
    order = BatchSource(len(train), list, cfg.batch_size, cfg.seed, ids=[item.id for item in train])
    losses = []
    for step in range(cfg.n_steps):
        batch = order.next_indices()
        for group in adam.param_groups:
            group["lr"] = cfg.lr * lr_factor(step, max_steps=cfg.n_steps)
        logits = net(_scaled(pixels[places[batch]]), classes[batch])
        loss = loss_of(logits[:, None], masks[batch][:, None])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise WorkError(
                f"The specialist's loss is {losses[-1]} in step {step + 1}, items {', '.join(order.names(batch))}",
                "Its weights are of no use from there on",
                "Lower lr, or look at these items",
            )
    return Specialist(net.eval(), names, cfg, tuple(losses))


def _pixels(items: Sequence[MaskItem], side_px: int) -> tuple[Tensor, Tensor]:
    """The images of items as squares, uint8 n 3 h w, each once; and the place of each item's image among them."""
    place_of: dict[str, int] = {}
    squares = []
    for item in items:
        if item.case_id not in place_of:
            place_of[item.case_id] = len(squares)
            picture = Image.fromarray(item.image).convert("RGB").resize((side_px, side_px), Image.Resampling.BILINEAR)
            squares.append(np.asarray(picture).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(squares)), torch.tensor([place_of[item.case_id] for item in items])


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def _classes(items: Sequence[MaskItem], names: Sequence[str]) -> Tensor:
    """Place of each item's class among the names, -1 for one that is not among them."""
    place_of = {name: place for place, name in enumerate(names)}
    return torch.tensor([place_of.get(item.name, -1) for item in items])
