"""Florence-2: the image and the prompt are encoded together, the answer is decoded. Boxes are tokens of their own.

A prompt is plain text, or a task of the published model such as `<OD>`, which its processor writes out. The processor
puts the image tokens, a begin and an end token around it.
"""

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from lightbox.backbones.backbone import Backbone, VisionTokens
from lightbox.backbones.codecs import CoordinateCodec, FlorenceBins
from lightbox.backbones.llava import tapped
from lightbox.errors import RequestError


class Florence2Backbone(Backbone):
    """Florence-2 with its DaViT tower and BART body."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # the published setting would put the end token in the last place of an answer that is cut off
        self.core.generation_config.forced_eos_token_id = None

    @property
    def codec(self) -> CoordinateCodec:
        """As many bins as the tokenizer has location tokens."""
        # the tiny model has 64, the published ones 1,000
        bins = sum(token.startswith("<loc_") for token in self.tokenizer.get_vocab())
        return FlorenceBins(bins)

    @property
    def image_token(self) -> None:
        """None: the processor puts it itself."""
        return

    def write_prompt(self, prompt: str, *, has_image: bool) -> str:
        """The prompt itself; with its begin and end tokens where no image makes the processor write them."""
        if self.processor.image_token in prompt:
            raise RequestError(
                f"The prompt '{prompt}'",
                f"It contains '{self.processor.image_token}', so the image token count would not fit the prompt",
                "Leave it out of the text; the family writes it where the image is",
            )
        return prompt if has_image else f"{self.tokenizer.bos_token}{prompt}{self.tokenizer.eos_token}"

    def encode_prompts(self, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> dict[str, Tensor]:
        """Call the processor, which turns a task into its sentence.

        Raises:
            RequestError: a task beside other text where it stands alone.
        """
        pictures = {} if images is None else {"images": list(images)}
        try:
            encoded = self.processor(
                text=list(texts),
                **pictures,
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_tensors="pt",
            )
        except ValueError as err:
            raise RequestError(
                f"Prompts of which the first is '{texts[0]}'",
                f"Florence-2's processor refuses them: {err}",
                "Give a task alone, a task with its own input, or plain text",
            ) from err
        return dict(encoded)

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer between the begin and the end token: the published decoder writes both."""
        ids = self.tokenizer(target, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *ids, self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids with its location tokens, which count as special."""
        # skip_special_tokens would drop the location tokens with them
        frame = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        return self.tokenizer.decode([i for i in ids.tolist() if i not in frame], skip_special_tokens=False)

    def tokens_per_image(self, encoded: dict[str, Tensor]) -> list[int]:
        """The mean of all patches, then each patch of the last stage."""
        count, _, height, width = encoded["pixel_values"].shape
        rows, columns = self._grid(height, width)
        return [rows * columns + 1] * count  # one more than the grid: the mean of all patches stands first

    def vision_tokens(self, images: Sequence[Image.Image], *, layers: Sequence[int] = ()) -> VisionTokens:
        """See `Backbone.vision_tokens`; a layer is one of the four stages, whose patches grow.

        The first token is the mean of the others before projection and is not in the grid.
        """
        pixels = self.pixels(images)["pixel_values"]
        stages = nn.ModuleList([stage[-1] for stage in self.part(self.family.vision).blocks])
        with tapped(stages, layers) as taps:
            tokens = self.core.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return VisionTokens(
            tokens=list(tokens),
            taps={layer: list(rearrange(output, "b c h w -> b (h w) c")) for layer, output in taps.items()},
            grids=[self._grid(*pixels.shape[-2:])] * len(images),
        )

    def _grid(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Rows and columns after the four strided convolutions."""
        vision = self.core.config.vision_config
        sides = [height_px, width_px]
        for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
            sides = [(side + 2 * padding - size) // stride + 1 for side in sides]
        return sides[0], sides[1]
