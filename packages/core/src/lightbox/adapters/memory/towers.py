"""Vision towers and projectors on sizes: CLIP, SigLIP, those of Qwen2-VL and Qwen2.5-VL, and DaViT of Florence-2."""

from collections.abc import Callable

from lightbox.adapters.memory.decoders import gated
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.shapes import Shape
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Storage, Value

Attend = Callable[[Step, Value, Shape, int, int, int], Value]


def patches_of(step: Step, pixels: Value, rows: int, width: int, name: str, *, kernel: int, has_bias: bool) -> Value:
    """A convolution: `kernel` numbers of the input for each number of the result."""
    learned = step.weight(name + ".weight", kernel * width)
    learned += step.weight(name + ".bias", width) if has_bias else []
    return step.run([pixels], (rows, width, pixels.item), saves=[pixels] if learned else [], weights=learned)


# ---- CLIP and SigLIP


def vit(step: Step, images: int, shape: Shape, *, is_clip: bool, wanted: int = -1) -> list[Value]:
    """Outputs of CLIP, the embeddings first, or the last output of SigLIP.

    transformers keeps every output of a tower where one is asked for by its number, and runs the layers behind it too.

    Args:
        images: how many.
        shape: sizes.
        is_clip: False for SigLIP, which has no class token and whose last norm is used.
        wanted: which of CLIP's outputs is read; the layers behind it get no gradient.
    """
    side = shape.image_size // shape.patch_size
    item, width = step.setting.item, shape.hidden_size
    pixels = step.given(images, shape.num_channels * shape.image_size**2, item, "inputs and masks")
    kernel = shape.num_channels * shape.patch_size**2
    count = side * side + is_clip
    with step.within("embeddings"):
        x = patches_of(
            step, pixels, images * side * side, width, "patch_embedding", kernel=kernel, has_bias=not is_clip
        )
        if is_clip:
            learned = step.weight("class_embedding", width)
            x = step.run([x], (images * count, width, item), weights=learned)
        learned = step.weight("position_embedding.weight", count * width)
        x = step.run([x], (images * count, width, item), weights=learned, passes_on=not learned)
    if is_clip:
        x = step.layer_norm(x, "pre_layrnorm")
    outputs, last = [x], wanted % (shape.num_hidden_layers + 1)
    for index in range(shape.num_hidden_layers):
        step.is_idle = is_clip and index >= last
        with step.within(f"encoder.layers.{index}"):
            x = _vit_layer(step, x, shape, images)
        outputs = [*outputs, x] if is_clip else [x]
    step.is_idle = is_clip
    x = step.layer_norm(x, "post_layernorm")
    step.is_idle = False
    return outputs if is_clip else [x]


def _vit_layer(step: Step, x: Value, shape: Shape, images: int) -> Value:
    residual, width = x, shape.hidden_size
    x = step.layer_norm(x, "layer_norm1")
    with step.within("self_attn"):
        query, key, value = (step.linear(x, width, name, has_bias=True) for name in ("q_proj", "k_proj", "v_proj"))
        prob = shape.attention_dropout
        heads = shape.num_attention_heads
        x = step.attention(query, key, value, sequences=images, heads=heads, dropout_prob=prob)
        del query, key, value
        x = step.linear(x, width, "out_proj", has_bias=True)
    x = step.add(residual, x)
    residual = x
    x = step.layer_norm(x, "layer_norm2")
    with step.within("mlp"):
        x = step.activation(step.linear(x, shape.intermediate_size, "fc1", has_bias=True), shape.hidden_act)
        x = step.linear(x, width, "fc2", has_bias=True)
    return step.add(residual, x)


# ---- Qwen2-VL and Qwen2.5-VL


def qwen_vit(step: Step, patches: int, images: int, shape: Shape, *, is_newer: bool) -> Value:
    """Patches of all images in one row; the newer tower has RMS norms, a gated layer and windows."""
    item = step.setting.item
    width = shape.hidden_size if is_newer else shape.embed_dim
    kernel = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
    pixels = step.given(patches, kernel, item, "inputs and masks")
    with step.within("patch_embed"):
        x = patches_of(step, pixels, patches, width, "proj", kernel=kernel, has_bias=False)
    if is_newer:
        x = step.scaled(x)  # put into the order of windows
    tables = step.allocate(4 * FLOAT32 * patches * width // shape.num_heads)
    for index in range(shape.depth):
        with step.within(f"blocks.{index}"):
            x = _qwen_block(step, x, shape, images, tables, is_newer=is_newer)
    return x


def _qwen_block(step: Step, x: Value, shape: Shape, images: int, tables: Storage, *, is_newer: bool) -> Value:
    width, heads = x.width, shape.num_heads
    norm = step.rms_norm if is_newer else step.layer_norm
    inner = norm(x, "norm1")
    with step.within("attn"):
        joint = step.linear(inner, 3 * width, "qkv", has_bias=True)
        # queries, keys and values are views of one tensor; turning the first two makes tensors of their own
        query, key, value = (step.run([joint], (x.rows, width, x.item), in_place=True) for _ in range(3))
        query, key = (step.rope(one, tables, in_float32=True) for one in (query, key))
        inner = step.attention(query, key, value, sequences=images, heads=heads)
        inner = step.scaled(inner)  # the pieces of images and windows put together
        inner = step.linear(inner, width, "proj", has_bias=True)
        del joint, query, key, value
    x = step.add(x, inner)
    inner = norm(x, "norm2")
    with step.within("mlp"):
        if is_newer:
            inner = gated(step, inner, shape.intermediate_size, shape.hidden_act, has_bias=True)
        else:
            hidden = step.linear(inner, int(width * shape.mlp_ratio), "fc1", has_bias=True)
            inner = step.linear(step.activation(hidden, shape.hidden_act), width, "fc2", has_bias=True)
            del hidden
    return step.add(x, inner)


def qwen_merger(step: Step, x: Value, shape: Shape, *, is_newer: bool) -> Value:
    """Four neighbours become one token of the language model's width."""
    merged = shape.spatial_merge_size**2
    x = (step.rms_norm if is_newer else step.layer_norm)(x, "ln_q")
    x = step.run([x], (x.rows // merged, x.width * merged, x.item), in_place=True, passes_on=True)
    x = step.activation(step.linear(x, x.width, "mlp.0", has_bias=True), "gelu")
    x = step.linear(x, shape.out_hidden_size if is_newer else shape.hidden_size, "mlp.2", has_bias=True)
    return step.scaled(x) if is_newer else x


# ---- DaViT


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
