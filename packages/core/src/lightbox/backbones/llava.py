"""LLaVA-1.5 and LLaVA-NeXT, with Llama or Mistral bodies (so LLaVA-Med), on a CLIP or SigLIP tower."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.reading import ImageFields
from lightbox.backbones.vision import VisionFeatures

PLAIN = (
    "{% for turn in messages %}{{ {'assistant': 'ASSISTANT: ', 'user': 'USER: '}.get(turn['role'], '') }}"
    "{% for part in turn['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's turns, for a processor that was saved without a template."""
HAS_CLASS_TOKEN = ("clip_vision_model",)
"""Model types of towers whose first token is no patch."""


class LlavaBackbone(Backbone):
    """LLaVA-1.5: the image is resized to the tower's square, and each patch is one token."""

    def fill_template(self, messages: list[dict[str, Any]]) -> str:
        """The processor's template; LLaVA-1.5's own where it has none."""
        own = {} if getattr(self.processor, "chat_template", None) else {"chat_template": PLAIN}
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **own)

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """Patches of the square, and the class token where the config keeps it."""
        return [rows * columns + self._extra_tokens() for rows, columns in self.grids(pixels)]

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """See `Backbone.project`; patches may have been left out."""
        projector = self.part(self.family.projector)
        return [projector(patches) for patches in features.patches]

    def prefix_tokens(self) -> int:
        """The class token of CLIP."""
        return int(self.core.config.vision_config.model_type in HAS_CLASS_TOKEN)

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """Patches of the square."""
        count, _, height, width = pixels["pixel_values"].shape
        patch = self.core.config.vision_config.patch_size
        return [(height // patch, width // patch)] * count

    def _extra_tokens(self) -> int:
        """Tokens that the projector gives beyond patches: "default" drops the first of the tower, whatever it is."""
        drops = self.core.config.vision_feature_select_strategy == "default"
        # -1 for a SigLIP tower under "default", which drops a patch there
        return self.prefix_tokens() - int(drops)


class LlavaNextBackbone(LlavaBackbone):
    """LLaVA-NeXT: a small image of the whole, then tiles at higher resolution with one newline token a row.

    The tiles' grid is the one of the config that fits the image best; the tokens of its margins are left out, so the
    count follows the image's size and shape.
    """

    IMAGE_FIELDS = ("pixel_values", "image_sizes")

    def tokens_per_image(self, pixels: ImageFields) -> list[int]:
        """Tokens of the whole, of the rows of the tiles within the image, and a newline a row."""
        whole = self._side() ** 2 + self._extra_tokens()
        return [whole + rows * (columns + 1) for rows, columns in self.grids(pixels)]

    def project(self, features: VisionFeatures) -> list[Float[Tensor, "p d"]]:
        """See `Backbone.project`; all patches must be there, since rows of tiles are joined."""
        projector, config = self.part(self.family.projector), self.core.config
        tokens, _ = self.core.pack_image_features(
            [projector(tiles) for tiles in features.patches],
            features.sizes,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=self.core.model.image_newline,
        )
        return list(tokens)

    def grids(self, pixels: ImageFields) -> list[tuple[int, int]]:
        """Rows and columns of the tiles' tokens within each image, without the whole and newlines."""
        return [self._tile_grid(size) for size in pixels["image_sizes"]]

    def split_patches(self, hidden: Tensor, pixels: ImageFields) -> list[Tensor]:
        """The tiles of each image."""
        config = self.core.config
        return list(
            hidden.split(
                [
                    image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
                    for size in pixels["image_sizes"]
                ]
            )
        )

    def _side(self) -> int:
        vision = self.core.config.vision_config
        return vision.image_size // vision.patch_size

    def _tile_grid(self, size: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens that lie within an image of `size` (height, width in pixels)."""
        config = self.core.config
        rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        # transformers' own cut of margins, on a tensor without memory, so that its rounding is ours
        whole = torch.empty(1, rows * self._side(), columns * self._side(), device="meta")
        unpadded = unpad_image(whole, size)
        return unpadded.shape[1], unpadded.shape[2]
