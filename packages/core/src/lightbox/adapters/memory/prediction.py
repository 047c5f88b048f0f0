"""Peak memory of a training step, by part, in closed form from a config.json alone. No torch, no weights.

A step is a row of layers (see `layers`). On the way back, when a layer is computed, what is in memory is: what the
layers before it keep, what it keeps itself, the gradients of what lies behind it, and a little for its own backward
pass. The peak is the largest of these sums; with M = batch times tokens, width D, feed-forward width F, L layers, V
tokens in the vocabulary and w bytes a number the parts come to about the formulas in `PARTS`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from lightbox.adapters.memory import layers
from lightbox.adapters.memory.layers import FLOAT32, How, Layer
from lightbox.adapters.memory.request import ITEMS, Load, Request, load_of
from lightbox.backbones.sizes import is_tied, text_of, vision_of, whole
from lightbox.config import LANGUAGE

GIB = 1024**3
CONTEXT_BYTES = 600 * 1024**2
FRAGMENTED_SHARE = 0.05
SPREAD = 0.05
STATE_BLOCK, SMALL_STATE = 256, 4096
INTEGER, BLOCK, NESTED_BLOCK = 8, 64, 256
PARTS = {
    "quantised weights": "0.5159 bytes a weight in NF4 with double quantisation, 1 in int8",
    "language weights": "w bytes a weight that is not quantised, norms and biases too",
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
            language model (linears), the rest of it (norms), and a head that is not the table.
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


@dataclass(frozen=True)
class Stage:
    """One place of the step, in the order of the forward pass; bytes by part.

    `kept` stays from the forward pass until the backward pass is through, `now` is there beside it while this place is
    computed in the backward pass, `gradients` are of its numbers or adapters, `passing` what a frozen layer needs while
    it runs.
    """

    group: str
    numbers: int = 0
    layer: Layer | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    now: Mapping[str, int] = field(default_factory=dict)
    gradients: int = 0
    passing: int = 0


def predict(request: Request) -> MemoryReport:
    """Add up one step and say what is in memory at its peak.

    The model's state is that of the second step and later ones: moments of the optimiser exist. Not counted: rows of
    new tokens, and what an evaluation or a checkpoint adds.

    Raises:
        RequestError: a config without a tower's sizes, or with a part whose layers are not known.
    """
    how, load = how_of(request), load_of(request)
    stages = list(_stages(request, how, load))
    held, trained = _held(stages, request, how)
    later = everything = sum(stage.gradients for stage in stages)
    kept = Counter()
    moments = [{"vision": max(stage.passing for stage in stages)}]
    for stage in stages:
        kept.update(stage.kept)
        later -= stage.gradients
        moments.append(kept + Counter(stage.now) + Counter(gradients=0 if request.accumulates else later))
    largest = max(trained, default=0)
    # bitsandbytes on a CPU widens a tensor five times, and its gradient where that is in 16 bit
    times = 5 + (how.targets is None and how.item < FLOAT32)
    update = times * FLOAT32 * largest if request.device == "cpu" and request.optimizer != "adamw" else 0
    moments.append({"gradients": 0 if request.accumulates else everything, "optimiser": update})
    held.update(max(moments, key=lambda moment: sum(moment.values())))
    if request.accumulates:
        held["gradients"] += everything
    if request.device == "cuda":
        values = sum(size for part, size in held.items() if "weights" not in part)
        held["context"] = CONTEXT_BYTES + int(FRAGMENTED_SHARE * values)
    counts = Counter()
    for stage in stages:
        is_language = stage.group == "linears"
        matrices = sum(n_in * n_out for _, n_in, n_out in stage.layer.matrices) if is_language else 0
        counts.update({"linears": matrices, "norms" if is_language else stage.group: stage.numbers - matrices})
    return MemoryReport({part: held[part] for part in PARTS if held[part]}, dict(+counts), sum(trained))


def how_of(request: Request) -> How:
    """What of a request the layers need to know."""
    adapter, family = request.adapter, request.family
    places = "|".join(re.escape(path) for path in family.layers)
    own = rf"(?:{places})\.\d+\.(?:.+\.)?(?:{'|'.join(map(re.escape, family.linears))})"
    return How(
        item=ITEMS[request.dtype],
        adapter=adapter,
        targets=re.compile(own if adapter.targets == LANGUAGE else adapter.targets) if adapter.kind == "lora" else None,
        is_cuda=request.device == "cuda",
        is_eager=request.attention == "eager",
        kept=("wo",) if family.name == "t5" and (adapter.quant != "none" or request.dtype == "fp16") else (),
        is_fp16=request.dtype == "fp16",
    )


def _placed(group: str, layer: Layer, *, is_checkpointed: bool = False, is_read: bool = True) -> Stage:
    """A layer as a place of the step; `is_read` is False for one behind the output that is read.

    What a layer keeps follows from its operations. What its backward pass has beside that for a moment was read off
    traces of the real models, so an odd configuration is in doubt here first, and in `Layer.passing`.
    """
    how, numbers = layer.how, layer.numbers
    if not (is_read and layer.rows and (layer.learns or layer.is_reached)):
        return Stage(group, numbers, layer, passing=layer.passing())
    arriving = layer.width * layer.rows * how.item
    # the gradient of the last matrix is there before anything of the layer is gone
    matrix = layer.matrices[-1][1] * layer.matrices[-1][2] * how.item if layer.learns and layer.matrices else 0
    is_noisy = how.adapter.dropout_prob > 0 and how.targets is not None and how.item < FLOAT32
    inner = 3 * (layer.widest + arriving) if is_noisy else layer.widest * (1 + layer.is_gated)
    back = {"layers": arriving + matrix + inner}
    if layer.widest + layer.dense > inner:
        back = {"layers": arriving + matrix + layer.widest, "dequantised weights": layer.dense}
    scores = arriving + max(layer.scores, 2 * layer.scores - layer.probs) - layer.inner
    if scores > sum(back.values()):
        back = {"layers": scores}
    if not layer.matrices:  # a norm: the mean, the square and their products
        back = {"layers": arriving + 5 * FLOAT32 * layer.rows * layer.width}
    part = "layers" if group == "linears" else "vision"
    saved = {part: layer.saved - layer.copies, "adapter copies": layer.copies}
    if is_checkpointed:
        kept = {"kept layer inputs": arriving, part: layer.clinging}
        again = arriving * (how.item == FLOAT32) + layer.clinging
        now = Counter(back) + Counter(saved) - Counter({part: again})
    else:
        kept, now = saved, back
    own = FLOAT32 if how.adapter.kind == "lora" else how.item  # a projector beside a frozen base is trained in float32
    return Stage(group, numbers, layer, kept, now, layer.gradients + numbers * own * layer.learns)


def _stages(request: Request, how: How, load: Load) -> Iterator[Stage]:
    """The whole model: table, tower and projector, layers, head."""
    family, b, learns = request.family, load.sequences, how.targets is None
    is_paired, is_t5 = family.is_encoder_decoder, family.name == "t5"
    text, tied = whole(request.config) if is_t5 else text_of(request.config), is_tied(request.config)
    width, vocabulary = text.d_model if is_paired else text.hidden_size, text.vocab_size
    table = vocabulary * width * how.item * learns
    encoded = b * load.tokens
    has_mask = load.is_padded or family.name == "gemma3"
    inputs = 3 * INTEGER * encoded + encoded * load.tokens * has_mask

    def norm(rows: int, *, is_layer: bool = False) -> Stage:
        layer = Layer(how, "", rows, b, width, learns=learns, is_reached=learns or not is_layer)
        if is_layer:
            layer.layer_norm(width)
            layer.dropout(width, text.dropout)
        else:
            layer.rms_norm(width, is_t5=is_t5)
        return _placed("linears", layer)

    for place, rows in enumerate((encoded, b * load.supervised)[: 1 + is_paired]):
        # the gradient of a table that is the head too is there already, and the sum is a third tensor
        kept = {"inputs and masks": inputs * (not place), "vision": rows * width * bool(load.images) * (not place)}
        now = {"gradients": (2 + request.accumulates) * table * tied}
        yield Stage("embeddings", vocabulary * width * (not place), None, kept, now, table * (not tied))
        if not place and family.has_vision:
            yield from _vision(request, how, load, width)
        if is_t5:
            numbers = text.relative_attention_num_buckets * text.num_heads
            count = (text.num_decoder_layers if place else 0) or text.num_layers
            yield Stage("norms", numbers, gradients=numbers * how.item * learns)
        elif is_paired:
            numbers = (text.max_position_embeddings + 2) * width
            count = text[("encoder_layers", "decoder_layers")[place]]
            yield Stage("embeddings", numbers, gradients=numbers * how.item * learns)
            yield norm(rows, is_layer=True)
        else:
            count = text.num_hidden_layers
        yield Stage("norms", kept={"layers": encoded * width * how.item * place})
        for index in range(count):
            layer = Layer(how, f"{family.layers[place]}.{index}", rows, b, width, learns=learns, is_reached=True)
            if is_paired:
                masked = load.is_padded or (is_t5 and place == 1)
                layers.paired_layer(layer, text, place=place, has_mask=masked, encoded=place * encoded)
            else:
                layers.decoder_layer(layer, text, has_mask=has_mask)
                if index == 0 and not learns and not (load.images and how.adapter.projector != "frozen"):
                    layer.saved -= FLOAT32 * rows * width  # no gradient goes through its first norm
            yield _placed("linears", layer, is_checkpointed=request.checkpoint_layers)
        if is_t5 or not is_paired:
            yield norm(rows)
    logits = 12 * b * load.supervised * vocabulary
    yield Stage("head", vocabulary * width * (not tied), now={"logits": logits}, gradients=table)


def _vision(request: Request, how: How, load: Load, width: int) -> Iterator[Stage]:
    """Tower and projector, which learn in full training; the projector also by itself."""
    learns, name = how.targets is None, request.family.name
    shape, top, images = vision_of(request.config), whole(request.config), load.sequences * load.images
    base = replace(how, targets=None if learns else re.compile("(?!)"), adapter=replace(how.adapter, quant="none"))

    def layer_of(rows: int, inside: int, others: int = 0, *, has_norm: bool = False) -> Layer:
        layer = Layer(base, "", rows, images, inside, learns=learns)
        layer.others += others - 2 * inside * has_norm
        if has_norm:
            layer.layer_norm(inside)
        return layer

    norm, has_bias = 0, True
    if name.startswith("qwen"):
        inside = shape.get("embed_dim") or shape.hidden_size
        rows, joined = load.sequences * load.patches, shape.spatial_merge_size**2
        kernel = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
        yield Stage("vision", kept={"inputs and masks": rows * kernel * how.item})
        yield _placed("vision", layer_of(rows, inside, kernel * inside))
        for _ in range(shape.depth):
            yield _placed("vision", layers.vit_layer(layer_of(rows, inside), shape))
        norm, rows = inside * (1 if "out_hidden_size" in shape else 2), rows // joined
        out = shape.get("out_hidden_size") or shape.hidden_size
        steps = [(inside * joined, inside * joined), (inside * joined, out)]
    elif name == "florence2":
        side, before = load.image_px, shape.in_channels
        yield Stage("vision", kept={"inputs and masks": images * before * side * side * how.item})
        for stage, inside in enumerate(shape.embed_dim):
            kernel, stride, padding = shape.patch_size[stage], shape.patch_stride[stage], shape.patch_padding[stage]
            side = (side + 2 * padding - kernel) // stride + 1
            rows, normed = images * side * side, before if shape.patch_prenorm[stage] else inside
            shape |= {"num_attention_heads": shape.num_heads[stage]}
            yield _placed(
                "vision", layer_of(rows, inside, before * kernel**2 * inside + inside + 2 * normed, has_norm=True)
            )
            for place in range(2 * shape.depths[stage]):
                yield _placed(
                    "vision", layers.davit_block(layer_of(rows, inside), shape, side, is_window=place % 2 == 0)
                )
            before = inside
        steps, has_bias = [(before, shape.projection_dim)], False
        norm = 2 * shape.projection_dim + shape.max_position_embeddings * before
    else:
        is_clip = shape.model_type == "clip_vision_model"
        side, inside = shape.image_size // shape.patch_size, shape.hidden_size
        rows = images * (side * side + is_clip)
        yield Stage("vision", kept={"inputs and masks": images * shape.num_channels * shape.image_size**2 * how.item})
        numbers = (shape.num_channels * shape.patch_size**2 + 1 + side * side + is_clip) * inside
        yield _placed("vision", layer_of(rows, inside, numbers + 2 * inside * is_clip, has_norm=is_clip))
        last = (
            top.get("vision_feature_layer", -1) % (shape.num_hidden_layers + 1) if is_clip else shape.num_hidden_layers
        )
        for index in range(shape.num_hidden_layers):
            yield _placed("vision", layers.vit_layer(layer_of(rows, inside), shape), is_read=index < last)
        yield _placed("vision", layer_of(rows, inside, 2 * inside, has_norm=True), is_read=not is_clip)
        rows = images * (top.mm_tokens_per_image if name == "gemma3" else side * side)
        norm, has_bias = (inside, False) if name == "gemma3" else (width * (name == "llava_next"), True)
        steps = [(inside, width)] if name == "gemma3" else [(inside, width), (width, width)]
    mode = "full" if learns else how.adapter.projector
    targets = re.compile(".*") if mode == "lora" else base.targets
    projector = replace(base, targets=targets, item=FLOAT32 if mode == "full" and not learns else how.item)
    layer = Layer(projector, "", rows, images, width, learns=mode == "full", is_reached=mode != "frozen", others=norm)
    for number, (n_in, n_out) in enumerate(steps):
        layer.linears(n_in, {str(number): n_out}, has_bias=has_bias)
        layer.keep(n_out)
    yield _placed("projector", layer)


def _held(stages: Sequence[Stage], request: Request, how: How) -> tuple[Counter[str], list[int]]:
    """Weights, adapters and moments by part, and how many numbers each tensor has that learns."""
    held, trained, quant = Counter(), [], request.adapter.quant
    for stage in stages:
        matrices = stage.layer.matrices if stage.layer else []
        sizes = [n_in * n_out for _, n_in, n_out in matrices]
        rest = stage.numbers - sum(sizes)
        part = WEIGHTS[stage.group]
        for path, n_in, n_out in matrices:
            is_kept = path.rpartition(".")[2] in how.kept
            if stage.group != "linears" or quant == "none" or is_kept:
                held[part] += n_in * n_out * (FLOAT32 if is_kept and how.is_fp16 else how.item)
            else:
                held["quantised weights"] += packed_bytes(quant, n_in * n_out, n_out)
        held[part] += rest * how.item
        own, layer = how.item, stage.layer
        if how.targets is not None:
            own, is_copied, pattern = FLOAT32, layer is not None and layer.learns, layer.how.targets if layer else None
            adapted = [(n_in, n_out) for path, n_in, n_out in matrices if pattern and pattern.fullmatch(path)]
            if not is_copied:
                sizes, rest = [how.adapter.r * n for pair in adapted for n in pair], 0
                sizes += [n_out for _, n_out in adapted if how.adapter.use_dora]
            held["adapters"] += FLOAT32 * (sum(sizes) + rest)
        elif layer is None:
            sizes, rest = [rest], 0
        # a tied table has its gradient from the head
        if stage.gradients or (stage.group == "embeddings" and how.targets is None):
            trained += [*sizes, rest]
            held["optimiser"] += sum(state_bytes(request.optimizer, size, own) for size in sizes)
            held["optimiser"] += 2 * rest * (own if request.optimizer == "adamw" else FLOAT32)
    return held, trained


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
    if count < SMALL_STATE:
        return 2 * FLOAT32 * count
    return 2 * count + 2 * FLOAT32 * -(-count // STATE_BLOCK)


def largest_batch(request: Request, usable_bytes: float) -> int:
    """The largest batch whose prediction is at most `usable_bytes`; 0 where not even one row fits."""
    return largest_batches(request, [usable_bytes])[0]


def largest_batches(request: Request, usable_bytes: Sequence[float], *, at_most: int = 4096) -> list[int]:
    """`largest_batch` for several cards; beyond a few rows the peak grows evenly, so few steps are run."""

    @cache
    def total(batch: int) -> int:
        return predict(replace(request, batch=batch)).total

    def largest(usable: float) -> int:
        if total(1) > usable:
            return 0
        batch = 2 + int(2 * (usable - total(2)) / max(1, total(4) - total(2)))
        batch = max(1, min(batch, at_most))
        while batch > 1 and total(batch) > usable:
            batch -= 1
        while batch < at_most and total(batch + 1) <= usable:
            batch += 1
        return batch

    return [largest(usable) for usable in usable_bytes]
