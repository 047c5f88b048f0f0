"""SAM and SAM-Med2D of their authors -> our folder: the same features and masks, other sizes, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from lightbox.backbones.convert_sam import convert_sam
from lightbox.backbones.segmenter import load_segmenter
from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.testing.official_sam import GRID, HEADS, LAYERS, PATCH, PROMPT, WIDTH, WINDOW, official_sam

DECODER_HEADS = 8


class Official:
    """What the authors' code computes, written anew from its formulas."""

    def __init__(self, tensors):
        self.tensors = tensors

    def get(self, name, kind="weight"):
        return self.tensors.get(f"{name}.{kind}")

    def linear(self, name, x):
        return F.linear(x, self.get(name), self.get(name, "bias"))

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self.get(name), self.get(name, "bias"), eps)

    def norm_channels(self, name, x):
        return self.norm(name, x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)

    def see(self, name, x):
        """Attention of one layer over a square, position by position."""
        b, side, _, width = x.shape
        q, k, v = self.linear(f"{name}.qkv", x).reshape(b, side * side, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        row = torch.arange(side)
        far = row[:, None] - row[None] + side - 1
        down, right = (self.tensors[f"{name}.rel_pos_{axis}"][far] for axis in "hw")  # query key c
        own = q.reshape(b, HEADS, side, side, -1)
        bias = torch.einsum("bnhwc,hkc->bnhwk", own, down)[..., :, None]
        bias = bias + torch.einsum("bnhwc,wkc->bnhwk", own, right)[..., None, :]
        scores = q @ k.transpose(-1, -2) * (width // HEADS) ** -0.5 + bias.reshape(b, HEADS, side**2, side**2)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, side, side, width)
        return self.linear(f"{name}.proj", out)

    def adapt(self, name, x):
        x = x.permute(0, 3, 1, 2)
        gate = self.linear(f"{name}.channel.2", self.linear(f"{name}.channel.0", x.mean((2, 3))).relu()).sigmoid()
        y = F.conv2d(gate[:, :, None, None] * x, self.get(f"{name}.spatial.0"), stride=2, padding=1).relu()
        y = F.conv_transpose2d(y, self.get(f"{name}.spatial.2"), stride=2, padding=1).relu()
        return self.norm(f"{name}.norm", (x + y).permute(0, 2, 3, 1), 1e-5)

    def encode(self, pixels):
        name = "image_encoder.patch_embed.proj"
        x = F.conv2d(pixels, self.get(name), self.get(name, "bias"), stride=PATCH).permute(0, 2, 3, 1)
        x = x + self.tensors["image_encoder.pos_embed"]
        side = x.shape[1]
        for layer in range(LAYERS):
            at = f"image_encoder.blocks.{layer}"
            y = self.norm(f"{at}.norm1", x, 1e-6)
            if layer == 1:
                x = x + self.see(f"{at}.attn", y)
            else:
                wide = -(-side // WINDOW) * WINDOW
                y = F.pad(y, (0, 0, 0, wide - side, 0, wide - side))
                out = torch.empty_like(y)
                for top in range(0, wide, WINDOW):
                    for left in range(0, wide, WINDOW):
                        place = (slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
                        out[place] = self.see(f"{at}.attn", y[place])
                x = x + out[:, :side, :side]
            y = self.norm(f"{at}.norm2", x, 1e-6)
            change = self.linear(f"{at}.mlp.lin2", F.gelu(self.linear(f"{at}.mlp.lin1", y)))
            x = x + change + (self.adapt(f"{at}.Adapter", y) if f"{at}.Adapter.norm.weight" in self.tensors else 0)
        x = F.conv2d(x.permute(0, 3, 1, 2), self.get("image_encoder.neck.0"))
        x = F.conv2d(self.norm_channels("image_encoder.neck.1", x), self.get("image_encoder.neck.2"), padding=1)
        return self.norm_channels("image_encoder.neck.3", x)

    def place(self, x):
        """Fourier features of places as fractions."""
        angles = (
            2 * torch.pi * (2 * x - 1) @ self.tensors["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        )
        return torch.cat([angles.sin(), angles.cos()], -1)

    def attend(self, name, query, key, value):
        q, k, v = (self.linear(f"{name}.{part}_proj", x) for part, x in zip("qkv", (query, key, value), strict=True))
        q, k, v = (x.unflatten(-1, (DECODER_HEADS, -1)).transpose(-2, -3) for x in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return self.linear(f"{name}.out_proj", (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))

    def mlp(self, name, x):
        x = self.linear(f"{name}.layers.1", self.linear(f"{name}.layers.0", x).relu()).relu()
        return self.linear(f"{name}.layers.2", x)

    def decode(self, features, point, coarse):
        """All four masks and their overlaps, for a point that is inside and a coarse mask, of one image."""
        side, at = features.shape[-1], "mask_decoder"
        inside = self.place((point + 0.5) / (side * PATCH)) + self.get("prompt_encoder.point_embeddings.1")
        nothing = self.get("prompt_encoder.not_a_point_embed")
        tokens = torch.cat([self.get(f"{at}.iou_token"), self.get(f"{at}.mask_tokens"), inside, nothing])
        dense, down = coarse[None, None], "prompt_encoder.mask_downscaling"
        for conv in (0, 3):
            name = f"{down}.{conv}"
            dense = F.conv2d(dense, self.get(name), self.get(name, "bias"), stride=2)
            dense = F.gelu(self.norm_channels(f"{down}.{conv + 1}", dense))
        dense = F.conv2d(dense, self.get(f"{down}.6"), self.get(f"{down}.6", "bias"))
        middle = (torch.arange(side) + 0.5) / side
        where = self.place(torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1)).flatten(0, 1)
        image, queries = (features + dense)[0].flatten(1).T, tokens
        for layer in range(2):
            own = f"{at}.transformer.layers.{layer}"
            if layer == 0:
                queries = self.attend(f"{own}.self_attn", queries, queries, queries)
            else:
                asked = queries + tokens
                queries = queries + self.attend(f"{own}.self_attn", asked, asked, queries)
            queries = self.norm(f"{own}.norm1", queries, 1e-5)
            seen = self.attend(f"{own}.cross_attn_token_to_image", queries + tokens, image + where, image)
            queries = self.norm(f"{own}.norm2", queries + seen, 1e-5)
            change = self.linear(f"{own}.mlp.lin2", self.linear(f"{own}.mlp.lin1", queries).relu())
            queries = self.norm(f"{own}.norm3", queries + change, 1e-5)
            told = self.attend(f"{own}.cross_attn_image_to_token", image + where, queries + tokens, queries)
            image = self.norm(f"{own}.norm4", image + told, 1e-5)
        last = f"{at}.transformer.final_attn_token_to_image"
        queries = queries + self.attend(last, queries + tokens, image + where, image)
        queries = self.norm(f"{at}.transformer.norm_final_attn", queries, 1e-5)
        wide, up = image.T.reshape(1, -1, side, side), f"{at}.output_upscaling"
        wide = F.conv_transpose2d(wide, self.get(f"{up}.0"), self.get(f"{up}.0", "bias"), stride=2)
        wide = F.gelu(self.norm_channels(f"{up}.1", wide))
        wide = F.gelu(F.conv_transpose2d(wide, self.get(f"{up}.3"), self.get(f"{up}.3", "bias"), stride=2))
        rows = [self.mlp(f"{at}.output_hypernetworks_mlps.{place}", queries[1 + place]) for place in range(4)]
        masks = torch.einsum("mc,chw->mhw", torch.stack(rows), wide[0])
        return masks, self.mlp(f"{at}.iou_prediction_head", queries[0])


def save_checkpoint(path, tensors):
    """A file as SAM-Med2D's training writes it, with its optimiser as an object that has seen a step."""
    weight = nn.Parameter(torch.ones(2))
    optimiser = torch.optim.Adam([weight], lr=1e-4)
    weight.sum().backward()
    optimiser.step()
    torch.save({"model": tensors, "optimizer": optimiser}, path)
    return path


@pytest.fixture(scope="module")
def tensors():
    return official_sam()


@pytest.fixture(scope="module")
def source(tmp_path_factory, tensors):
    return save_checkpoint(tmp_path_factory.mktemp("official") / "sam-med2d.pth", tensors)


def random_pixels(side):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


# ---- tests


def test_sam_med2d_has_the_features_and_masks_of_its_authors_formulas(source, tensors, tmp_path):
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "sam")])
    assert result.exit_code == 0, result.output
    assert f"SAM of {GRID * PATCH} px with adapters" in " ".join(result.output.split())
    segmenter = load_segmenter(str(tmp_path / "sam"))
    assert {path.suffix for path in (tmp_path / "sam").iterdir()} == {".json", ".safetensors"}
    pixels, official = random_pixels(GRID * PATCH), Official(tensors)
    with torch.no_grad():
        features = segmenter.model.vision_encoder(pixels).last_hidden_state
    expected = official.encode(pixels)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    without = Official({name: tensor for name, tensor in tensors.items() if ".Adapter." not in name})
    assert (without.encode(pixels) - expected).abs().max() > 0.1  # adapters matter here

    point, coarse = (
        torch.tensor([[11.0, 20.0]]),
        torch.randn(4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(2)),
    )
    masks, overlaps = official.decode(expected[:1], point, coarse)
    with torch.no_grad():
        for several, own in ((False, slice(0, 1)), (True, slice(1, 4))):
            output = segmenter.model(
                image_embeddings=features[:1],
                input_points=point[None, None],
                input_labels=torch.ones(1, 1, 1, dtype=torch.long),
                input_masks=coarse[None, None],
                multimask_output=several,
            )
            torch.testing.assert_close(output.pred_masks[0, 0], masks[own], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(output.iou_scores[0, 0], overlaps[own], atol=1e-5, rtol=1e-5)


def test_tables_of_positions_are_interpolated_for_images_of_another_size(source, tensors, tmp_path):
    side = 10  # not whole windows either
    made = convert_sam(source, tmp_path / "sam", image_px=side * PATCH)
    assert (made.image_px, made.has_adapters) == (side * PATCH, True)
    wanted = dict(tensors)
    grid = tensors["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    wanted["image_encoder.pos_embed"] = F.interpolate(grid, (side, side), mode="bilinear").permute(0, 2, 3, 1)
    for axis in "hw":  # as the authors: bilinear over a picture of rows and channels, of which the rows alone change
        name = f"image_encoder.blocks.1.attn.rel_pos_{axis}"
        size = (2 * side - 1, WIDTH // HEADS)
        wanted[name] = F.interpolate(tensors[name][None, None], size, mode="bilinear")[0, 0]
    pixels = random_pixels(side * PATCH)
    with torch.no_grad():
        features = load_segmenter(str(tmp_path / "sam")).model.vision_encoder(pixels).last_hidden_state
    torch.testing.assert_close(features, Official(wanted).encode(pixels), atol=1e-5, rtol=1e-5)


def test_plain_sam_of_its_authors_is_a_plain_sam_here(tmp_path):
    tensors = official_sam(has_adapters=False)
    torch.save(tensors, tmp_path / "sam_vit_b.pth")
    made = convert_sam(tmp_path / "sam_vit_b.pth", tmp_path / "sam")
    segmenter = load_segmenter(str(made.folder))
    assert (made.has_adapters, type(segmenter.model).__name__) == (False, "SamModel")
    pixels = random_pixels(GRID * PATCH)
    with torch.no_grad():
        features = segmenter.model.vision_encoder(pixels).last_hidden_state
    torch.testing.assert_close(features, Official(tensors).encode(pixels), atol=1e-5, rtol=1e-5)


LAST = f"image_encoder.blocks.{LAYERS - 1}"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image_encoder.pos_embed": None}, "lacks image_encoder.pos_embed"),
        ({"image_encoder.pos_embed": torch.zeros(3)}, "lacks image_encoder.pos_embed, or holds another shape"),
        ({f"{LAST}.Adapter.norm.bias": None}, "missing: vision_encoder.layers.2.mlp.adapter.norm.bias"),
        ({f"{LAST}.mlp.lin2.weight": torch.zeros(3, 3)}, "of another shape: vision_encoder.layers.2.mlp.lin2.weight"),
        ({"mask_decoder.hf_token.weight": torch.zeros(1, PROMPT)}, "unexpected: mask_decoder.hf_token.weight"),
        ({"epoch": 3}, "no tensors by name"),
    ],
)
def test_odd_tensors_are_refused_by_name_and_nothing_is_written(tensors, tmp_path, change, why):
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(RequestError, match=why):
        convert_sam(save_checkpoint(tmp_path / "odd.pth", changed), tmp_path / "sam")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pth"]


def test_other_models_sizes_and_full_folders_are_refused(source, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(RequestError, match="no SAM in its authors' layout"):
        convert_sam(tmp_path / "other.pth", tmp_path / "sam")
    for side in (0, 30, 9 * PATCH):  # nothing, no whole patches, a grid that adapters cannot halve
        with pytest.raises(RequestError, match=f"multiple of {2 * PATCH} as --image-px"):
            convert_sam(source, tmp_path / "sam", image_px=side)
    with pytest.raises(RequestError, match="exists already"):
        convert_sam(source, tmp_path)


def test_code_in_a_checkpoint_never_runs(tensors, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    torch.save({"model": tensors, "optimizer": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(RequestError, match="could run code"):
        convert_sam(tmp_path / "evil.pth", tmp_path / "sam")
    assert not (tmp_path / "marker").exists()
