"""Florence-2: the image and the prompt are encoded together, the answer is decoded. Boxes are tokens of their own.

A prompt is plain text, or a task of the published model such as `<OD>`, which its processor writes out. The processor
puts the image tokens, a begin and an end token around it.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.codecs import CoordinateCodec, FlorenceBins
from lightbox.backbones.conversation import Conversation
from lightbox.backbones.reading import ImageFields, Placed
from lightbox.backbones.vision import LayerTaps, VisionFeatures
from lightbox.errors import RequestError


class Florence2Backbone(Backbone):
    """Florence-2 with its DaViT tower and BART body."""

    @property
    def codec(self) -> CoordinateCodec:
        """As many bins as the tokenizer has location tokens."""
        # the tiny model has 64, the published ones 1,000
        bins = sum(token.startswith("<loc_") for token in self.tokenizer.get_vocab())
        return FlorenceBins(bins)

    @property
    def text_tokens(self) -> str:
        """Location tokens; without counting them, as `codec` does."""
        return FlorenceBins.control_tokens

    @property
    def image_token(self) -> None:
        """None: the processor puts it itself."""
        return

    def write(self, conversation: Conversation) -> list[str]:
        """The question itself, behind the image token; there is no template."""
        image = self.processor.image_token if conversation.images else ""
        return [image + "\n".join(turn.text for turn in conversation.turns if turn.role != "assistant")]

    def text_ids(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of what `write` gave: the processor turns a task into its sentence, and begin and end stand around it.

        Raises:
            RequestError: a task beside other text where it stands alone.
        """
        prompt = text.removeprefix(self.processor.image_token)
        try:
            ids = self.processor(text=[prompt], add_special_tokens=False)["input_ids"][0]
        except ValueError as err:
            raise RequestError(
                f"The prompt '{prompt}'",
                f"Florence-2's processor refuses it: {err}",
                "Give a task alone, a task with its own input, or plain text",
            ) from err
        image = [self.core.config.image_token_id] if prompt != text else []
        return [*image, self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]

    def target_ids(self, target: str) -> list[int]:
        """Ids of an answer between the begin and the end token: the published decoder writes both."""
        ids = self.tokenizer(target, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *ids, self.end_id]

    def read_ids(self, ids: Tensor) -> str:
        """The text of generated ids with its location tokens, which count as special."""
        # skip_special_tokens would drop the location tokens with them
        frame = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        return self.tokenizer.decode([i for i in ids.tolist() if i not in frame], skip_special_tokens=False)

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """The mean of all patches, then each patch of the last stage."""
        # one more than the grid: the mean of all patches stands first
        return [rows * columns + 1 for rows, columns in self.grids(pixels)]

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """See `Backbone.project`; all patches must be there, since positions are added by place.

        The first token is the mean of the others before projection and is not in the grid.
        """
        projector = self.part(self.family.projector)
        pairs = zip(features.patches, features.grids, strict=True)
        return [projector(rearrange(patches, "(h w) c -> 1 c h w", h=rows))[0] for patches, (rows, _) in pairs]

    def tower_layers(self) -> nn.ModuleList:
        """The last block of each of the four stages, whose patches grow."""
        return nn.ModuleList([stage[-1] for stage in self.part(self.family.vision).blocks])

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """Rows and columns after the four strided convolutions."""
        vision = self.core.config.vision_config
        count, _, *sides = pixels["pixel_values"].shape
        for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
            sides = [(side + 2 * padding - size) // stride + 1 for side in sides]
        return [(sides[0], sides[1])] * count

    def split_patches(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """Patches row by row."""
        return list(rearrange(hidden, "b c h w -> b (h w) c"))

    def layer_taps(self, tap: dict[str, Tensor], pixels: ImageFields) -> LayerTaps:
        """Outputs alone: half of the attention is between channels."""
        return LayerTaps(self.split_patches(tap["output"], pixels))

    def image_fields(self, pixels: ImageFields, index: list[int], features: list[Tensor] | None) -> Placed:
        """Pixels in every place: transformers' Florence-2 takes no features in their stead."""
        if features is not None:
            raise RequestError(
                "Features in place of images for a florence2",
                "Its model encodes image and prompt in one call",
                "Hand in the images",
            )
        return {name: value[index] for name, value in pixels.items()}, None
