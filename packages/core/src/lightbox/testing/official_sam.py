"""A random SAM or SAM-Med2D in the layout of its authors' code: names and shapes as there, a few channels wide.

Names are those of facebookresearch/segment-anything and OpenGVLab/SAM-Med2D.
"""

import torch
from torch import Tensor

WIDTH, HEADS, LAYERS, PATCH, GRID, WINDOW, PROMPT, CHANNELS = 32, 2, 3, 4, 8, 3, 32, 8
"""Windows of 3 in a grid of 8, so that each row of windows is filled up; layer 1 sees the whole grid."""


class DrawnSam(dict[str, Tensor]):
    """Random tensors by their official names."""

    def __init__(self, *, has_adapters: bool) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self._add_encoder(has_adapters=has_adapters)
        self._add_prompt_encoder()
        self._add_decoder()

    def _draw(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * std

    def _add(self, name: str, *shape: int, bias: int = 0) -> None:
        self[f"{name}.weight"] = self._draw(*shape, std=max(1, torch.Size(shape[1:]).numel()) ** -0.5)
        if bias:
            self[f"{name}.bias"] = self._draw(bias, std=0.1)

    def _add_norm(self, name: str, width: int) -> None:
        self[f"{name}.weight"] = 1 + self._draw(width, std=0.1)
        self[f"{name}.bias"] = self._draw(width, std=0.1)

    def _add_attention(self, name: str, inner: int) -> None:
        for part in "qkv":
            self._add(f"{name}.{part}_proj", inner, PROMPT, bias=inner)
        self._add(f"{name}.out_proj", PROMPT, inner, bias=PROMPT)

    def _add_encoder(self, *, has_adapters: bool) -> None:
        self["image_encoder.pos_embed"] = self._draw(1, GRID, GRID, WIDTH, std=0.1)
        self._add("image_encoder.patch_embed.proj", WIDTH, 3, PATCH, PATCH, bias=WIDTH)
        for layer in range(LAYERS):
            at = f"image_encoder.blocks.{layer}"
            self._add_norm(f"{at}.norm1", WIDTH)
            self._add_norm(f"{at}.norm2", WIDTH)
            self._add(f"{at}.attn.qkv", 3 * WIDTH, WIDTH, bias=3 * WIDTH)
            self._add(f"{at}.attn.proj", WIDTH, WIDTH, bias=WIDTH)
            for axis in "hw":
                rows = 2 * (GRID if layer == 1 else WINDOW) - 1
                self[f"{at}.attn.rel_pos_{axis}"] = self._draw(rows, WIDTH // HEADS, std=0.3)
            self._add(f"{at}.mlp.lin1", 4 * WIDTH, WIDTH, bias=4 * WIDTH)
            self._add(f"{at}.mlp.lin2", WIDTH, 4 * WIDTH, bias=WIDTH)
            if has_adapters:
                self._add_norm(f"{at}.Adapter.norm", WIDTH)
                self._add(f"{at}.Adapter.channel.0", WIDTH // 4, WIDTH)
                self._add(f"{at}.Adapter.channel.2", WIDTH, WIDTH // 4)
                self._add(f"{at}.Adapter.spatial.0", WIDTH, WIDTH, 3, 3)
                self._add(f"{at}.Adapter.spatial.2", WIDTH, WIDTH, 4, 4)
        self._add("image_encoder.neck.0", PROMPT, WIDTH, 1, 1)
        self._add_norm("image_encoder.neck.1", PROMPT)
        self._add("image_encoder.neck.2", PROMPT, PROMPT, 3, 3)
        self._add_norm("image_encoder.neck.3", PROMPT)

    def _add_prompt_encoder(self) -> None:
        at = "prompt_encoder"
        self[f"{at}.pe_layer.positional_encoding_gaussian_matrix"] = self._draw(2, PROMPT // 2)
        for name in (*(f"point_embeddings.{kind}" for kind in range(4)), "not_a_point_embed", "no_mask_embed"):
            self._add(f"{at}.{name}", 1, PROMPT)
        self._add(f"{at}.mask_downscaling.0", CHANNELS // 4, 1, 2, 2, bias=CHANNELS // 4)
        self._add_norm(f"{at}.mask_downscaling.1", CHANNELS // 4)
        self._add(f"{at}.mask_downscaling.3", CHANNELS, CHANNELS // 4, 2, 2, bias=CHANNELS)
        self._add_norm(f"{at}.mask_downscaling.4", CHANNELS)
        self._add(f"{at}.mask_downscaling.6", PROMPT, CHANNELS, 1, 1, bias=PROMPT)

    def _add_decoder(self) -> None:
        at = "mask_decoder"
        self._add(f"{at}.iou_token", 1, PROMPT)
        self._add(f"{at}.mask_tokens", 4, PROMPT)
        for layer in range(2):
            own = f"{at}.transformer.layers.{layer}"
            self._add_attention(f"{own}.self_attn", PROMPT)
            self._add_attention(f"{own}.cross_attn_token_to_image", PROMPT // 2)
            self._add_attention(f"{own}.cross_attn_image_to_token", PROMPT // 2)
            self._add(f"{own}.mlp.lin1", 2 * PROMPT, PROMPT, bias=2 * PROMPT)
            self._add(f"{own}.mlp.lin2", PROMPT, 2 * PROMPT, bias=PROMPT)
            for norm in range(1, 5):
                self._add_norm(f"{own}.norm{norm}", PROMPT)
        self._add_attention(f"{at}.transformer.final_attn_token_to_image", PROMPT // 2)
        self._add_norm(f"{at}.transformer.norm_final_attn", PROMPT)
        self._add(f"{at}.output_upscaling.0", PROMPT, PROMPT // 4, 2, 2, bias=PROMPT // 4)
        self._add_norm(f"{at}.output_upscaling.1", PROMPT // 4)
        self._add(f"{at}.output_upscaling.3", PROMPT // 4, PROMPT // 8, 2, 2, bias=PROMPT // 8)
        heads = {f"output_hypernetworks_mlps.{place}": PROMPT // 8 for place in range(4)} | {"iou_prediction_head": 4}
        for name, out in heads.items():
            for layer, width in enumerate((PROMPT, PROMPT, out)):
                self._add(f"{at}.{name}.layers.{layer}", width, PROMPT, bias=width)


def official_sam(*, has_adapters: bool = True) -> dict[str, Tensor]:
    """Tensors by their official names; the same at each call."""
    return dict(DrawnSam(has_adapters=has_adapters))
