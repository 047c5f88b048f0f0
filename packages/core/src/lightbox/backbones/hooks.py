"""What a family may say differently: how a prompt is written and read, what an image costs, how vision is taken out.

A family overrides some of the methods below in its own file and gets its row in `loading.CLASSES`; `Backbone` builds on
them and holds what is the same for all.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones import weights
from lightbox.backbones.attention import AttentionChoice
from lightbox.backbones.codecs import CODECS, CoordinateCodec
from lightbox.backbones.families import Family
from lightbox.errors import RequestError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of `model.dtype` -> what torch calls them."""
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class VisionTokens:
    """What a tower and its projector make of images, one entry an image, since a family may spend unequal counts.

    Args:
        tokens: p d after the projector, as the language model reads them.
        taps: layer of the tower, as asked for -> the output of that layer for each image, p c without class tokens
            (n p c where an image is cut into n tiles).
        grids: rows and columns of the tokens of each image.
    """

    tokens: list[Float[Tensor, "p d"]]
    taps: dict[int, list[Tensor]]
    grids: list[tuple[int, int]]


class FamilyHooks:
    """A pretrained generator with its processor, and what is particular to its family.

    Args:
        model: a model of transformers, or a wrapper around one (peft, data parallel); see `with_model`.
        processor: turns text and images into inputs; a tokenizer for a text-only family.
        family: names of parts.
        attention: what computes attention, and why.
        name, revision: what was loaded.
        quant: none, nf4 or int8.
        dtype: of weights that are not quantised, and of image inputs.
        digest: identifies the weights; "" computes it when it is asked for, which reads every file once.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        family: Family,
        *,
        attention: AttentionChoice,
        name: str,
        revision: str,
        quant: str,
        dtype: torch.dtype,
        digest: str = "",
    ) -> None:
        self.model, self.processor, self.family, self.attention = model, processor, family, attention
        self.name, self.revision, self.quant, self.dtype, self._digest = name, revision, quant, dtype, digest
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masks and labels say what is padding

    def with_model(self, model: nn.Module) -> Self:
        """The same backbone around a wrapped model: `forward` goes through the wrapper."""
        other = copy.copy(self)
        other.model = model
        return other

    @property
    def digest(self) -> str:
        """What identifies the weights, for job keys and adapters."""
        return self._digest or weights.digest_of(self.name, revision=self.revision)

    @property
    def core(self) -> Any:
        """The model of transformers inside any wrapper."""
        model: Any = self.model
        while True:
            if hasattr(model, "get_base_model"):
                model = model.get_base_model()
            elif isinstance(getattr(model, "module", None), nn.Module):
                model = model.module
            else:
                return model

    @property
    def device(self) -> torch.device:
        """Where the inputs of the model belong; the whole model is in one place."""
        return next(self.core.parameters()).device

    def part(self, path: str) -> Any:
        """A module of the model by its path in `family`."""
        return self.core.get_submodule(path)

    # ---- text

    @property
    def context_tokens(self) -> int | None:
        """Longest row that the language model has positions for; None where positions are relative."""
        return getattr(self.core.config.get_text_config(), "max_position_embeddings", None)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @property
    def decoder_start_id(self) -> int:
        """What the decoder of an encoder-decoder reads first."""
        return self.core.config.get_text_config().decoder_start_token_id

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The text that the processor reads: the processor's chat template, image first, ready for the answer."""
        content: list[dict[str, str]] = [{"type": "image"}] if has_image else []
        message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def encode_prompts(self, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> dict[str, Tensor]:
        """Call the processor: `rows.TOKEN_FIELDS` padded on the right, and what the tower reads.

        A begin token that the template wrote is not written twice.
        """
        begin = self.tokenizer.bos_token
        has_begin = begin is not None and all(text.startswith(begin) for text in texts)
        pictures = {} if images is None else {"images": list(images)}
        encoded = self.processor(
            text=list(texts),
            **pictures,
            padding=True,
            padding_side="right",
            add_special_tokens=not has_begin,
            return_tensors="pt",
        )
        return dict(encoded)

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer with its end token."""
        return [*self.tokenizer(target, add_special_tokens=False)["input_ids"], self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    # ---- images

    @property
    def codec(self) -> CoordinateCodec:
        """How boxes are written in text."""
        return CODECS[self.family.codec]

    @property
    def image_token(self) -> str | None:
        """What `write_prompt` puts where the image is, once; None where the processor puts it itself, or has none."""
        return getattr(self.processor, "image_token", None)

    @property
    def image_token_id(self) -> int | None:
        """The token whose places vision tokens take; None for a text-only family."""
        return getattr(self.core.config, "image_token_id", None)

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """How many tokens the tower and projector give for each image, from the model's config and the pixels."""
        raise self.no_images()

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """Run tower and projector on images, in the mode and with the gradients that the model has.

        Args:
            images: 8-bit grey or colour.
            layers: places in the tower's list of layers whose outputs are wanted too; negative from the end.

        Raises:
            RequestError: a layer that is not there, or a family without a tower.
        """
        raise self.no_images()

    def no_images(self) -> RequestError:
        """The error for images where the family has no tower."""
        return RequestError(
            f"Images for {self.name}, a {self.family.name}",
            "It reads text only",
            "Leave images out, or use another backbone",
        )

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the tower reads of images, on the model's device and in its dtype."""
        encoded = self.processor.image_processor([in_colour(image) for image in images], return_tensors="pt")
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in encoded.items()
        }


def in_colour(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB.

    Raises:
        RequestError: wider values, which would be cut off.
    """
    if image.mode not in EIGHT_BIT_MODES:
        raise RequestError(
            f"An image of mode '{image.mode}'",
            "Towers read 8-bit images, and cutting wider values off would lose the picture",
            "Window it to 0..255 first",
        )
    return image.convert("RGB")
