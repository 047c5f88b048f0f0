"""Peak memory of a training step, by part, in closed form from a config.json alone. No torch, no weights.

A step is a row of layers (see `layers`). The peak is the largest of the sums, taken while each layer is computed back:
what layers before it keep, what it keeps itself, gradients of what lies behind it, and what its own pass needs.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lightbox.adapters.memory.layers import FLOAT32, LANGUAGE_WEIGHTS, Layer, decoder_layer, paired_layer, tower_layer
from lightbox.adapters.memory.request import ITEMS, Request
from lightbox.backbones.sizes import is_tied, text_of, tower_of, vision_of, whole

GIB = 1024**3
CONTEXT_BYTES = 600 * 1024**2
FRAGMENTED_SHARE = SPREAD = 0.05
TABLES, VISION_WEIGHTS = "table and head", "vision weights"
STATE_BLOCK, SMALL_STATE = 256, 4096
INTEGER = 8
PARTS = ("quantised weights", LANGUAGE_WEIGHTS, TABLES, VISION_WEIGHTS, "adapters", "gradients", "optimiser")
PARTS += ("inputs and masks", "kept layer inputs", "layers", "adapter copies", "dequantised weights", "logits")
PARTS += ("vision", "context")
"""Parts of a prediction in the order of tables; `lightbox memory` shows the formula of each."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes at the peak by part, in the order of `PARTS` and without those of 0 bytes.

    `counts` are the numbers of the model in "language weights" (quantised or not), "table and head" and "vision
    weights", without biases; `trained` those that learn.
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


def predict(request: Request) -> MemoryReport:
    """Add up one step and say what is in memory at its peak.

    The model's state is that of the second step and later ones: moments of the optimiser exist. Not counted: rows of
    new tokens, and what an evaluation or a checkpoint adds.

    Raises:
        RequestError: a config without a tower's sizes, or with a part whose layers are not known.
    """
    layers, is_on_gpu = list(_layers(request)), request.device == "cuda"
    held, counts, saved = Counter[str](), Counter[str](), Counter[str]()
    # what no row comes by has neither gradient nor moments
    sizes = [size for layer in layers if layer.rows or not layer.width for size in layer.owned]
    item = ITEMS[request.dtype] if request.is_full else FLOAT32
    behind = gradients = item * sum(sizes)
    moments = list[Counter[str]]()
    for layer in layers:
        stays, now = _bytes(layer)
        saved += stays
        behind -= item * sum(layer.owned) * bool(layer.rows or not layer.width)
        moments.append(saved + now + Counter(gradients=0 if request.accumulates else behind))
        counts[layer.group] += layer.numbers + layer.others
        held["quantised weights"] += layer.packed
        held[layer.group] += (layer.plain + layer.others) * ITEMS[request.dtype]
        held["adapters"] += FLOAT32 * sum(layer.owned) * (not request.is_full)
    held["optimiser"] = sum(state_bytes(request.optimizer, size, item) for size in sizes)
    # bitsandbytes on a CPU widens a tensor five times, and its gradient where that is in 16 bit
    times = (5 + (request.is_full and request.dtype != "fp32")) * (not is_on_gpu and request.optimizer != "adamw")
    update = times * FLOAT32 * max(sizes, default=0)
    moments.append(Counter(gradients=0 if request.accumulates else gradients, optimiser=update))
    held += max(moments, key=Counter.total)
    held["gradients"] += gradients * request.accumulates
    values = sum(size for part, size in held.items() if "weights" not in part)
    held["context"] = (CONTEXT_BYTES + int(FRAGMENTED_SHARE * values)) * is_on_gpu
    return MemoryReport({part: held[part] for part in PARTS if held[part]}, dict(+counts), sum(sizes))


def _bytes(layer: Layer) -> tuple[Counter[str], Counter[str]]:
    """What a layer keeps from the forward pass on, and what is there beside that while it is computed back.

    The second was read off traces of the real models, so an odd configuration is in doubt here first.
    """
    stays, now, request = Counter(layer.stays), Counter(layer.extra), layer.request
    part, arriving = "layers" if layer.group == LANGUAGE_WEIGHTS else "vision", layer.width * layer.rows * layer.item
    if not (layer.learns or layer.is_reached):  # while it runs: its input, norms, and the widest result or scores
        return stays, now + Counter({part: 4 * arriving + max(layer.times * layer.widest, layer.made)})
    if not layer.rows:
        return stays, now
    # the gradient of the last matrix is there before anything of the layer is gone
    matrix = layer.last * layer.item * layer.learns
    inner, is_noisy = layer.widest * (layer.times - 1), layer.is_noisy and layer.is_narrow and not request.is_full
    if is_noisy:
        inner = 3 * (layer.widest + arriving)
    inner = max(inner, max(layer.scores, 2 * layer.scores - layer.probs) - layer.inner - matrix)
    # a dequantised matrix takes the place of what is wider than a result; DoRA's sums are there beside dropout's copies
    beside = 0 if is_noisy and request.adapter.use_dora else inner - layer.widest
    now["layers"] += arriving + matrix + inner
    now["dequantised weights"] += max(0, layer.dense - beside)
    saved = Counter({part: layer.saved - layer.copies, "adapter copies": layer.copies})
    if layer.group != LANGUAGE_WEIGHTS or not request.checkpoint_layers:
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
    item, has_mask = ITEMS[request.dtype], request.has_padding or family.name == "gemma3"
    # the gradient of a table that is the head too is there already, and the sum is a third tensor
    tables = {"gradients": (2 + request.accumulates) * vocabulary * width * item * learns * tied}
    stays = {"inputs and masks": b * tokens * (3 * INTEGER + tokens * has_mask)}
    stays["vision"] = b * tokens * width * bool(images.tiles)
    positions = 2 * text.max_position_embeddings * width if is_paired and not is_t5 else 0
    numbers = vocabulary * width * (not tied) + positions
    yield Layer(request, TABLES, learns=learns, others=numbers, stays=stays, extra=tables)
    if family.has_vision:
        yield from _vision(request, width)
    sides = ("num_layers", "num_decoder_layers") if is_t5 else ("encoder_layers", "decoder_layers")
    for place, side in enumerate(sides if is_paired else ["num_hidden_layers"]):
        if place:
            yield Layer(request, LANGUAGE_WEIGHTS, stays={"layers": b * tokens * width * item}, extra=tables)
        for index in range(text[side] or text.num_layers):
            path, rows = f"{family.layers[place]}.{index}", b * (request.supervised if place else tokens)
            layer = Layer(request, LANGUAGE_WEIGHTS, rows, width, b, path, learns, True, targets=request.adapted)
            if is_paired:
                paired_layer(layer, text, b * request.has_padding, place, place * b * tokens)
            else:
                decoder_layer(layer, text, b * has_mask)
            yield layer
    # a tied table is held, and has its gradient, from here on
    logits = {"logits": 12 * b * request.supervised * vocabulary}
    yield Layer(request, TABLES, learns=learns, others=vocabulary * width, extra=logits)


def _vision(request: Request, width: int) -> Iterator[Layer]:
    """Tower and projector, which learn in full training; the projector also by itself."""
    mode = "full" if request.is_full else request.adapter.projector
    shape, images = vision_of(request.config), request.row_images
    tower, tiles = tower_of(request.config, request.family, images, width), request.batch * images.tiles
    pixels = request.batch * tower.pixels * ITEMS[request.dtype]
    yield Layer(request, VISION_WEIGHTS, stays={"inputs and masks": pixels})
    for stage in tower.stages:
        for place in range(-1, stage.depth):
            learns = request.is_full and place != tower.unread
            layer = Layer(
                request, VISION_WEIGHTS, request.batch * stage.rows, stage.width, max(1, tiles), learns=learns
            )
            if place < 0:
                layer.others = stage.numbers
                layer.norm("layer", stage.width)
            else:
                tower_layer(layer, shape, stage.heads, min(1, stage.window) if place % 2 else stage.window)
            yield layer
    rows, learns = request.batch * tower.rows, mode == "full"
    layer = Layer(request, VISION_WEIGHTS, rows, width, max(1, tiles), "", learns, mode != "frozen", tower.others)
    layer.targets = re.compile(".*") if mode == "lora" else None
    for number, (n_in, n_out) in enumerate(tower.projector):
        layer.linears(n_in, {str(number): n_out})
        layer.keep(n_out)
    yield layer


def state_bytes(optimizer: str, count: int, item: int) -> int:
    """Bytes of an optimiser's two moments for one tensor of `count` numbers of `item` bytes; see `optimizers`."""
    if optimizer == "adamw" or count < SMALL_STATE:
        return 2 * (item if optimizer == "adamw" else FLOAT32) * count
    return 2 * count + 2 * FLOAT32 * -(-count // STATE_BLOCK)
