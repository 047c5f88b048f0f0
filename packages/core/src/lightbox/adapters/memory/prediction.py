"""Peak memory of a training step, by part, in closed form from a config.json alone. No torch, no weights.

A step is a row of layers (see `layers`). On the way back, when a layer is computed, what is in memory is: what the
layers before it keep, what it keeps itself, the gradients of what lies behind it, and a little for its own backward
pass. The peak is the largest of these sums; with M = batch times tokens, width D, feed-forward width F, L layers, V
tokens in the vocabulary and w bytes a number the parts come to about the formulas in `PARTS`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lightbox.adapters.memory.layers import FLOAT32, Layer, decoder_layer, paired_layer, tower_layer
from lightbox.adapters.memory.request import Request
from lightbox.backbones.sizes import is_tied, text_of, vision_of, whole

GIB = 1024**3
CONTEXT_BYTES = 600 * 1024**2
FRAGMENTED_SHARE = SPREAD = 0.05
STATE_BLOCK, SMALL_STATE = 256, 4096
INTEGER, BLOCK, NESTED_BLOCK = 8, 64, 256
PARTS = {
    "quantised weights": "0.5159 bytes a weight in NF4 with double quantisation, 1 in int8",
    "language weights": "w bytes a weight that is not quantised, norms too",
    "table and head": "w·V·D, twice where the head is not the table",
    "vision weights": "w bytes a weight of tower and projector",
    "adapters": "4 bytes a number; r·(in + out) numbers for each adapted linear layer",
    "gradients": "4 bytes a number of adapters, or w a weight in full training",
    "optimiser": "8 bytes a number with AdamW, about 2 with 8 bits",
    "inputs and masks": "the batch, attention masks, tables of positions",
    "kept layer inputs": "w·M·D·L with checkpointing: the input of each layer",
    "layers": "about w·M·(12·D + 4·F) for one layer with checkpointing, of every layer without",
    "adapter copies": "4·M·(6·D + F) where adapters in float32 are not fused; w·r·(in + out) where they are",
    "dequantised weights": "w·in·out of the largest quantised matrix",
    "logits": "n·V·(w + 8), n supervised tokens, backward n·V·12",
    "vision": "features of the tower, and its largest layer while it runs",
    "context": "CUDA's own 0.6 GiB, and 5 % of values for gaps between them; nothing on a CPU",
}
"""Parts of a prediction, in the order of tables -> their formula."""
WEIGHTS = {"linears": "language weights", "norms": "language weights", "embeddings": "table and head"}
WEIGHTS |= {"head": "table and head", "vision": "vision weights", "projector": "vision weights"}
"""Group of numbers -> the part that its weights are counted to."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes at the peak, by part in the order of `PARTS`, and the numbers of the model by group.

    Args:
        parts: only those that are not 0.
        counts: numbers of the model in tower (vision), projector, token table (embeddings), linear layers of the
            language model (linears), its norms, and a head that is not the table; without biases.
        trained: numbers that learn.
    """

    parts: dict[str, int]
    counts: dict[str, int]
    trained: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())

    @property
    def tensors(self) -> int:
        """Bytes of tensors, which is what an allocator's peak shows: without context and gaps."""
        return self.total - self.parts.get("context", 0)

    @property
    def largest(self) -> str:
        """The part that takes most."""
        return max(self.parts, key=lambda part: self.parts[part])


def predict(request: Request) -> MemoryReport:
    """Add up one step and say what is in memory at its peak.

    The model's state is that of the second step and later ones: moments of the optimiser exist. Not counted: rows of
    new tokens, and what an evaluation or a checkpoint adds.

    Raises:
        RequestError: a config without a tower's sizes, or with a part whose layers are not known.
    """
    layers, is_on_gpu = list(_layers(request)), request.device == "cuda"
    held, counts, kept, sizes = Counter[str](), Counter[str](), Counter[str](), list[int]()
    behind = gradients = sum(sum(trained) * item for trained, item in map(_trained, layers))
    moments = list[Counter[str]]()
    for layer in layers:
        (trained, item), (stays, now) = _trained(layer), _bytes(layer)
        kept += stays
        behind -= sum(trained) * item
        moments.append(kept + now + Counter(gradients=0 if request.accumulates else behind))
        counts[layer.group] += sum(n_in * n_out for _, n_in, n_out in layer.matrices)
        counts["norms" if layer.group == "linears" else layer.group] += layer.others
        held += _weights(layer)
        held["adapters"] += FLOAT32 * sum(trained) * (not request.is_full)
        held["optimiser"] += sum(state_bytes(request.optimizer, size, item) for size in trained)
        sizes += trained
    # bitsandbytes on a CPU widens a tensor five times, and its gradient where that is in 16 bit
    times = (5 + (request.is_full and request.dtype != "fp32")) * (not is_on_gpu and request.optimizer != "adamw")
    update = times * FLOAT32 * max(sizes, default=0)
    moments.append(Counter(gradients=0 if request.accumulates else gradients, optimiser=update))
    held += max(moments, key=Counter.total)
    held["gradients"] += gradients * request.accumulates
    values = sum(size for part, size in held.items() if "weights" not in part)
    held["context"] = (CONTEXT_BYTES + int(FRAGMENTED_SHARE * values)) * is_on_gpu
    return MemoryReport({part: held[part] for part in PARTS if held[part]}, dict(+counts), sum(sizes))


def _trained(layer: Layer) -> tuple[list[int], int]:
    """Numbers of each tensor that learns, and bytes of one."""
    adapter = layer.request.adapter
    if layer.learns:
        return [*(n_in * n_out for _, n_in, n_out in layer.matrices), layer.others], layer.item
    pairs = [pair for path, *pair in layer.matrices if layer.targets and layer.targets.fullmatch(path)]
    return [size for a, b in pairs for size in (adapter.r * a, adapter.r * b, *[b] * adapter.use_dora)], FLOAT32


def _weights(layer: Layer) -> Counter[str]:
    """Bytes of weights by part; T5's `wo` is never quantised."""
    part, item = WEIGHTS[layer.group], FLOAT32 if layer.request.dtype == "fp32" else 2
    held = Counter({part: layer.others * item})
    for path, n_in, n_out in layer.matrices:
        is_packed = layer.quant != "none" and not path.endswith(".wo")
        size = packed_bytes(layer.quant, n_in * n_out, n_out) if is_packed else n_in * n_out * item
        held["quantised weights" if is_packed else part] += size
    return held


def _bytes(layer: Layer) -> tuple[Counter[str], Counter[str]]:
    """What a layer keeps from the forward pass on, and what is there beside that while it is computed back.

    What a layer keeps follows from its operations. What its backward pass has beside that for a moment was read off
    traces of the real models, so an odd configuration is in doubt here first.
    """
    stays, now, request = Counter(layer.stays), Counter(layer.extra), layer.request
    part, arriving = "layers" if layer.group == "linears" else "vision", layer.width * layer.rows * layer.item
    if not (layer.learns or layer.is_reached):  # while it runs: its input, norms, and the widest result or scores
        return stays, now + Counter({part: 4 * arriving + max(layer.times * layer.widest, layer.made)})
    if not layer.rows:
        return stays, now
    # the gradient of the last matrix is there before anything of the layer is gone
    matrix = layer.matrices[-1][1] * layer.matrices[-1][2] * layer.item if layer.learns and layer.matrices else 0
    inner = matrix + layer.widest * (layer.times - 1)
    if layer.is_noisy and not request.is_full and layer.is_narrow:
        inner = matrix + 3 * (layer.widest + arriving) * (1 + request.adapter.use_dora)
    inner = max(inner, max(layer.scores, 2 * layer.scores - layer.probs) - layer.inner)
    now["layers"] += arriving + inner
    now["dequantised weights"] += max(0, matrix + layer.widest + layer.dense - inner)
    saved = Counter({part: layer.saved - layer.copies, "adapter copies": layer.copies})
    if layer.group != "linears" or not request.checkpoint_layers:
        return stays + saved, now
    stays += Counter({"kept layer inputs": arriving, part: layer.clinging})
    now[part] -= layer.clinging + arriving * (layer.item == FLOAT32)
    return stays, now + saved


def _layers(request: Request) -> Iterator[Layer]:
    """The whole model in the order of the forward pass: table, tower and projector, layers, head."""
    family, b, learns, images = request.family, request.batch, request.is_full, request.row_images
    is_paired, is_t5, tokens = family.is_encoder_decoder, family.name == "t5", request.row_tokens
    text, tied = whole(request.config) if is_t5 else text_of(request.config), is_tied(request.config)
    width, vocabulary = text.d_model if is_paired else text.hidden_size, text.vocab_size
    item, has_mask = Layer(request, "").item, request.has_padding or family.name == "gemma3"
    # the gradient of a table that is the head too is there already, and the sum is a third tensor
    tables = {"gradients": (2 + request.accumulates) * vocabulary * width * item * learns * tied}
    stays = {"inputs and masks": b * tokens * (3 * INTEGER + tokens * has_mask)}
    stays["vision"] = b * tokens * width * bool(images.tiles)
    positions = 2 * text.max_position_embeddings * width if is_paired and not is_t5 else 0
    numbers = vocabulary * width * (not tied) + positions
    yield Layer(request, "embeddings", learns=learns, others=numbers, stays=stays, extra=tables)
    if family.has_vision:
        yield from _vision(request, width)
    sides = ("num_layers", "num_decoder_layers") if is_t5 else ("encoder_layers", "decoder_layers")
    for place, side in enumerate(sides if is_paired else ["num_hidden_layers"]):
        if place:
            yield Layer(request, "norms", stays={"layers": b * tokens * width * item}, extra=tables)
        for index in range(text[side] or text.num_layers):
            path, rows = f"{family.layers[place]}.{index}", b * (request.supervised if place else tokens)
            layer = Layer(request, "linears", rows, width, b, path, learns, True, targets=request.adapted)
            if is_paired:
                paired_layer(layer, text, b * request.has_padding, place, place * b * tokens)
            else:
                decoder_layer(layer, text, b * has_mask)
            yield layer
    # a tied table is held, and has its gradient, from here on
    logits = {"logits": 12 * b * request.supervised * vocabulary}
    yield Layer(request, "embeddings" if tied else "head", learns=learns, others=vocabulary * width, extra=logits)


def _vision(request: Request, width: int) -> Iterator[Layer]:
    """Tower and projector, which learn in full training; the projector also by itself."""
    mode, family = "full" if request.is_full else request.adapter.projector, request.family.name
    shape, images, read = vision_of(request.config), request.row_images, None
    tiles, stages, norm = request.batch * images.tiles, list[tuple[int, ...]](), 0
    if family.startswith("qwen"):
        inside, rows = shape.get("embed_dim") or shape.hidden_size, request.batch * images.patches
        joined, numbers = shape.spatial_merge_size**2, shape.in_channels * shape.patch_size**2
        stages = [(rows, inside, numbers * shape.temporal_patch_size, shape.depth, shape.num_heads, 0)]
        out = shape.get("out_hidden_size") or shape.hidden_size
        rows, steps = rows // joined, [(inside * joined, inside * joined), (inside * joined, out)]
    elif family == "florence2":
        side, before = images.image_px, shape.in_channels
        sizes = zip(*(shape[key] for key in _DAVIT), strict=True)
        for inside, kernel, stride, padding, depth, heads in sizes:
            side = (side + 2 * padding - kernel) // stride + 1
            stages += [(tiles * side * side, inside, before * kernel**2, 2 * depth, heads, shape.window_size**2)]
            before = inside
        rows, steps, norm = stages[-1][0], [(before, shape.projection_dim)], shape.max_position_embeddings * before
    else:
        patches, inside, is_gemma = (shape.image_size // shape.patch_size) ** 2, shape.hidden_size, family == "gemma3"
        numbers, depth = shape.num_channels * shape.patch_size**2 + patches, shape.num_hidden_layers
        stages = [(tiles * (patches + (not is_gemma)), inside, numbers, depth, shape.num_attention_heads, 0)]
        read = depth + 1 + whole(request.config).get("vision_feature_layer", -1)
        rows = tiles * (whole(request.config).mm_tokens_per_image if is_gemma else patches)
        steps = [(inside, width)] if is_gemma else [(inside, width), (width, width)]
    for count, inside, numbers, depth, heads, window in stages:
        for place in range(-1, depth):
            learns = request.is_full and tiles > 0 and place != read
            layer = Layer(request, "vision", count, inside, max(1, tiles), learns=learns)
            if place < 0:
                layer.others = numbers * inside
                layer.norm("layer", inside)
            else:
                tower_layer(layer, shape, heads, min(1, window) if place % 2 else window)
            yield layer
    layer = Layer(request, "projector", rows, width, max(1, tiles), "", mode == "full", mode != "frozen", norm)
    layer.targets = re.compile(".*") if mode == "lora" else None
    for number, (n_in, n_out) in enumerate(steps):
        layer.linears(n_in, {str(number): n_out})
        layer.keep(n_out)
    yield layer


_DAVIT = ("embed_dim", "patch_size", "patch_stride", "patch_padding", "depths", "num_heads")


def packed_bytes(quant: str, count: int, rows: int) -> int:
    """Bytes of a quantised matrix: int8 with a float32 a row, or NF4 with nested scales and their tables."""
    if quant == "int8":
        return count + FLOAT32 * rows
    blocks = -(-count // BLOCK)
    return -(-count // 2) + blocks + FLOAT32 * (-(-blocks // NESTED_BLOCK) + 16 + NESTED_BLOCK + 1)


def state_bytes(optimizer: str, count: int, item: int) -> int:
    """Bytes of an optimiser's two moments for one tensor of `count` numbers of `item` bytes.

    With 8 bits: two bytes a number, and two float32 for each block of 256; tensors below 4,096 numbers keep float32.
    """
    if optimizer == "adamw":
        return 2 * item * count
    return 2 * count + 2 * FLOAT32 * -(-count // STATE_BLOCK) if count >= SMALL_STATE else 2 * FLOAT32 * count
