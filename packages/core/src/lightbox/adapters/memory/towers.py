"""Vision towers on sizes: CLIP, SigLIP, those of Qwen2-VL and Qwen2.5-VL with their merger."""

from lightbox.adapters.memory.decoders import gated
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.shapes import Shape
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Storage, Value


def patches_of(step: Step, pixels: Value, rows: int, width: int, name: str, *, kernel: int, has_bias: bool) -> Value:
    """A convolution: `kernel` numbers of the input for each number of the result."""
    learned = step.weight(name + ".weight", kernel * width)
    learned += step.weight(name + ".bias", width) if has_bias else []
    return step.run([pixels], (rows, width, pixels.item), saves=[pixels] if learned else [], weights=learned)


# ---- CLIP and SigLIP


def vit(step: Step, images: int, shape: Shape, *, is_clip: bool, read_layer: int = -1) -> list[Value]:
    """Outputs of CLIP, the embeddings first, or the last output of SigLIP.

    transformers keeps every output of a tower where one is asked for by its number, and runs the layers behind it too.

    Args:
        images: how many.
        shape: sizes.
        is_clip: False for SigLIP, which has no class token and whose last norm is used.
        read_layer: which of CLIP's outputs is read; the layers behind it get no gradient.
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
    outputs, last = [x], read_layer % (shape.num_hidden_layers + 1)
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
