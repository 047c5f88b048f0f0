"""DaViT, the tower of Florence-2, and its projector on sizes."""

from collections.abc import Callable

from lightbox.adapters.memory.shapes import Shape
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Value
from lightbox.adapters.memory.towers import patches_of

Attend = Callable[[Step, Value, Shape, int, int, int], Value]


def davit(step: Step, images: int, image_px: int, shape: Shape) -> Value:
    """Four stages, each a strided convolution and pairs of a window block and a channel block."""
    item, side = step.setting.item, image_px
    x = step.given(images, shape.in_channels * side * side, item, "inputs and masks")
    before, number, total = shape.in_channels, 0, 2 * sum(shape.depths)
    for stage, width in enumerate(shape.embed_dim):
        kernel, stride, padding = shape.patch_size[stage], shape.patch_stride[stage], shape.patch_padding[stage]
        side = (side + 2 * padding - kernel) // stride + 1
        rows = images * side * side
        with step.within(f"convs.{stage}"):
            if shape.patch_prenorm[stage]:
                x = step.layer_norm(step.copied(x), "norm")
            x = patches_of(step, x, rows, width, "conv", kernel=before * kernel * kernel, has_bias=True)
            if not shape.patch_prenorm[stage]:
                x = step.layer_norm(step.copied(x), "norm")
        for depth in range(shape.depths[stage]):
            for name, attend in (("spatial_block", _window_attention), ("channel_block", _channel_attention)):
                drop_prob = shape.drop_path_rate * number / max(1, total - 1)
                number += 1
                with step.within(f"blocks.{stage}.{depth}.{name}"):
                    x = _davit_block(step, x, shape, stage, images, side, attend, drop_prob=drop_prob)
        before = width
    return x


def _davit_block(
    step: Step, x: Value, shape: Shape, stage: int, images: int, side: int, attend: Attend, *, drop_prob: float
) -> Value:
    x = step.add(_depthwise(step, x, "conv1"), x)
    residual = x
    x = attend(step, step.layer_norm(x, "norm1"), shape, stage, images, side)
    x = step.add(residual, _drop_path(step, x, drop_prob))
    x = step.add(_depthwise(step, x, "conv2"), x)
    residual = x
    x = step.layer_norm(x, "norm2")
    with step.within("ffn"):
        hidden = step.linear(x, int(x.width * shape.mlp_ratio), "fc1", has_bias=True)
        hidden = step.activation(hidden, shape.activation_function)
        x = step.linear(hidden, x.width, "fc2", has_bias=True)
        del hidden
    return step.add(residual, _drop_path(step, x, drop_prob))


def _depthwise(step: Step, x: Value, name: str) -> Value:
    """A 3 by 3 convolution of each channel by itself."""
    return patches_of(step, x, x.rows, x.width, name, kernel=9, has_bias=True)


def _drop_path(step: Step, x: Value, prob: float) -> Value:
    return x if prob == 0 else step.scaled(step.scaled(x))


def _window_attention(step: Step, x: Value, shape: Shape, stage: int, images: int, side: int) -> Value:
    """Attention inside of windows; the image is padded to whole windows."""
    width, window = x.width, shape.window_size
    windows = images * (-(-side // window)) ** 2
    rows = windows * window * window
    with step.within("window_attn"):
        x = step.run([x], (rows, width, x.item))  # padded
        x = step.copied(x)  # by window
        joint = step.linear(x, 3 * width, "qkv", has_bias=shape.qkv_bias)
        query, key, value = (step.run([joint], (rows, width, x.item), in_place=True) for _ in range(3))
        x = step.attention(query, key, value, sequences=windows, heads=shape.num_heads[stage])
        del joint, query, key, value
        x = step.linear(x, width, "proj", has_bias=True)
        x = step.copied(x)
        return step.run([x], (images * side * side, width, x.item))


def _channel_attention(step: Step, x: Value, shape: Shape, stage: int, images: int, side: int) -> Value:
    """Attention between channels: a channel's values at all places are its query, key and value."""
    width, rows, groups = x.width, x.rows, shape.num_groups[stage]
    with step.within("channel_attn"):
        joint = step.linear(x, 3 * width, "qkv", has_bias=shape.qkv_bias)
        query, key, value = (
            step.run([joint], (images * width, rows // images, x.item), in_place=True) for _ in range(3)
        )
        x = step.attention(query, key, value, sequences=images, heads=groups)
        del joint, query, key, value
        x = step.run([x], (rows, width, x.item))  # back to places by channels
        return step.linear(x, width, "proj", has_bias=True)


def florence_projector(step: Step, x: Value, images: int, shape: Shape) -> Value:
    """Learned positions, the mean of the image as one more token, a linear layer and a norm."""
    width = x.width
    half = width // 2
    learned = step.weight("image_position_embed.row_embeddings.weight", shape.max_position_embeddings * half)
    learned += step.weight(
        "image_position_embed.column_embeddings.weight", shape.max_position_embeddings * (width - half)
    )
    places = step.run([], (x.rows, width, x.item), weights=learned)
    x = step.add(x, places)
    del places
    x = step.copied(x)
    x = step.run([x], (x.rows + images, width, x.item))
    x = step.linear(x, shape.projection_dim, "image_projection")
    return step.layer_norm(x, "image_proj_norm")
