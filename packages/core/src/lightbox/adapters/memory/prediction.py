"""Peak memory of a training step, by part, in closed form from a config.json alone. No torch, no weights.

A step is a row of layers (see `layers`). On the way back, when a layer is computed, what is in memory is: what the
layers before it keep, what it keeps itself, the gradients of what lies behind it, and a little for its own backward
pass. The peak is the largest of these sums; with M = batch times tokens, width D, feed-forward width F, L layers, V
tokens in the vocabulary and w bytes a number the parts come to about the formulas in `PARTS`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from lightbox.adapters.memory import layers
from lightbox.adapters.memory.layers import FLOAT32, How, Layer
from lightbox.adapters.memory.request import ITEMS, Load, Request, load_of
from lightbox.backbones.sizes import Shape, is_tied, text_of, vision_of, whole
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


@dataclass
class Stage:
    """One place of the step, in the order of the forward pass; bytes.

    Args:
        group: where its numbers are counted.
        numbers: its own, matrices and all.
        layer: what it keeps and has; None for a table or a norm.
        kept: what stays from the forward pass until its backward pass.
        again: what that adds once the layer is computed again.
        passing: what a frozen layer of a tower needs while it runs.
        back: beside it, at the highest, in its backward pass.
        gradients: of its numbers or adapters.
    """

    group: str
    numbers: int = 0
    layer: Layer | None = None
    kept: int = 0
    again: int = 0
    passing: int = 0
    back: int = 0
    gradients: int = 0


def how_of(request: Request) -> How:
    """What of a request the layers need to know."""
    adapter, family = request.adapter, request.family
    places = "|".join(re.escape(path) for path in family.layers)
    own = rf"(?:{places})\.\d+\.(?:.+\.)?(?:{'|'.join(map(re.escape, family.linears))})"
    targets = re.compile(own if adapter.targets == LANGUAGE else adapter.targets) if adapter.kind == "lora" else None
    keeps_wo = family.name == "t5" and (adapter.quant != "none" or request.dtype == "fp16")
    is_cuda, is_eager = request.device == "cuda", request.attention == "eager"
    return How(ITEMS[request.dtype], adapter, targets, is_cuda, is_eager, ("wo",) if keeps_wo else (), request.dtype == "fp16")


def _stage(group: str, layer: Layer, *, is_checkpointed: bool = False, is_read: bool = True) -> Stage:
    """A layer as a place of the step; `is_read` is False for one that gets no gradient."""
    item, adapter = layer.how.item, layer.how.adapter
    own = FLOAT32 if adapter.kind == "lora" else item  # a projector trained in full beside a frozen base
    gradients = layer.gradients + (layer.numbers * own if layer.learns else 0)
    if not is_read or not layer.rows or not (layer.learns or layer.is_reached):
        return Stage(group, layer.numbers, layer, passing=layer.passing())
    arriving = layer.width * layer.rows * item
    inner = arriving + layer.early + max(layer.widest * (2 if layer.is_gated else 1), layer.widest + layer.dense)
    back = max(inner, arriving + 2 * layer.scores - layer.probs - layer.inner)
    kept = layer.clinging + arriving if is_checkpointed else layer.saved
    again = layer.saved - layer.clinging - (arriving if item == FLOAT32 else 0) if is_checkpointed else 0
    return Stage(group, layer.numbers, layer, kept, again, 0, back, gradients)


def _stages(request: Request, how: How, load: Load) -> Iterator[Stage]:
    family, learns = request.family, how.targets is None
    rows, b = load.sequences * load.tokens, load.sequences
    if family.name == "t5":
        yield from _seq2seq(request, how, load, whole(request.config))
        return
    text = text_of(request.config)
    width = text.get("hidden_size") or text.d_model
    table = text.vocab_size * width
    if family.name == "florence2":
        yield from _seq2seq(request, how, load, text)
        return
    shared = table * how.item * learns
    tied = is_tied(request.config)
    kept = rows * width * bool(load.images)
    yield Stage("embeddings", table, gradients=0 if tied else shared, back=2 * shared * tied, kept=kept)
    yield from _vision(request, how, load, width)
    has_mask = load.is_padded or family.name == "gemma3"
    for index in range(text.num_hidden_layers):
        layer = Layer(how, f"{family.layers[0]}.{index}", rows, b, width, learns=learns, is_reached=True)
        layer = layers.decoder_layer(layer, text, has_mask=has_mask)
        if index == 0 and not learns and not (load.images and how.adapter.projector != "frozen"):
            layer.saved -= FLOAT32 * rows * width  # no gradient goes through its first norm
        yield _stage("linears", layer, is_checkpointed=request.checkpoint_layers)
    yield _norm(how, rows, width, learns=learns)
    yield from _head(request, how, load, text.vocab_size * width, text.vocab_size)


def _norm(how: How, rows: int, width: int, *, learns: bool, is_t5: bool = False) -> Stage:
    layer = Layer(how, "", rows, 1, width, learns=learns, is_reached=True)
    layer.rms_norm(width, is_t5=is_t5)
    stage = _stage("linears", layer)
    stage.back = (5 * FLOAT32 + how.item) * rows * width  # the mean, the square and their products
    return stage


def _head(request: Request, how: How, load: Load, table: int, vocabulary: int) -> Iterator[Stage]:
    """Logits of supervised tokens, in float32 with their gradient; a head that is not the table has numbers."""
    learns, tied = how.targets is None, is_tied(request.config)
    back = 12 * load.sequences * load.supervised * vocabulary
    yield Stage("head", 0 if tied else table, back=back, gradients=table * how.item * learns)


def _seq2seq(request: Request, how: How, load: Load, text: Shape) -> Iterator[Stage]:
    """Encoder and decoder of T5 and of Florence-2, which share one table of tokens."""
    family, learns, b = request.family, how.targets is None, load.sequences
    width, is_t5 = text.d_model, family.name == "t5"
    table = text.vocab_size * width
    encoded = b * load.tokens
    for place, (name, rows) in enumerate((("encoder", encoded), ("decoder", b * load.supervised))):
        if is_t5:
            count = (text.num_decoder_layers or text.num_layers) if place else text.num_layers
            numbers = text.relative_attention_num_buckets * text.num_heads
        else:
            count = text.decoder_layers if place else text.encoder_layers
            numbers = (text.max_position_embeddings + 2) * width
        shared = table * how.item * learns
        yield Stage("embeddings", 0 if place else table, back=2 * shared)
        if not place and family.has_vision:
            yield from _vision(request, how, load, width)
        yield Stage("norms" if is_t5 else "embeddings", numbers, gradients=numbers * how.item * learns)
        if not is_t5:
            layer = Layer(how, "", rows, b, width, learns=learns, is_reached=learns)
            layer.layer_norm(width)
            layer.dropout(width, text.dropout)
            yield _stage("linears", layer)
        if place:
            yield Stage("norms", kept=encoded * width * how.item)
        for index in range(count):
            layer = Layer(how, f"{family.layers[place]}.{index}", rows, b, width, learns=learns, is_reached=True)
            has_mask = load.is_padded or (is_t5 and place == 1)
            if is_t5:
                layer = layers.t5_layer(layer, text, has_mask=has_mask, encoded=place * encoded)
            else:
                inner = text.decoder_ffn_dim if place else text.encoder_ffn_dim
                heads = text.decoder_attention_heads if place else text.encoder_attention_heads
                layer = layers.bart_layer(layer, text, inner, heads, has_mask=has_mask, encoded=place * encoded)
            yield _stage("linears", layer, is_checkpointed=request.checkpoint_layers)
        if is_t5:
            yield _norm(how, rows, width, learns=learns, is_t5=True)
    yield from _head(request, how, load, table, text.vocab_size)


def _vision(request: Request, how: How, load: Load, width: int) -> Iterator[Stage]:
    """Tower and projector."""
    family, adapter, learns = request.family, how.adapter, how.targets is None
    shape, top, images = vision_of(request.config), whole(request.config), load.sequences * load.images
    name = family.name
    base = replace(how, targets=None if learns else re.compile("(?!)"), adapter=replace(adapter, quant="none"))

    def layer_of(rows: int, inside: int, *, sequences: int = images) -> Layer:
        return Layer(base, "", rows, sequences, inside, learns=learns)

    def embedded(numbers: int, rows: int, inside: int, *, has_norm: bool) -> Stage:
        layer = layer_of(rows, inside)
        if has_norm:
            layer.layer_norm(inside)
        layer.others += numbers
        return _stage("vision", layer)

    if name.startswith("qwen"):
        is_newer = name == "qwen2_5_vl"
        inside = shape.hidden_size if is_newer else shape.embed_dim
        rows = load.sequences * load.patches
        kernel = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
        yield embedded(kernel * inside, rows, inside, has_norm=False)
        for _ in range(shape.depth):
            yield _stage("vision", layers.qwen_block(layer_of(rows, inside), shape, is_newer=is_newer))
        out, group = shape.out_hidden_size if is_newer else shape.hidden_size, shape.spatial_merge_size**2
        steps = [("mlp.0", inside * group, inside * group), ("mlp.2", inside * group, out)]
        norm, rows = inside if is_newer else 2 * inside, rows // group
    elif name == "florence2":
        side, before = load.image_px, shape.in_channels
        for stage, inside in enumerate(shape.embed_dim):
            kernel, stride, padding = shape.patch_size[stage], shape.patch_stride[stage], shape.patch_padding[stage]
            numbers = before * kernel**2 * inside + inside + 2 * (before if shape.patch_prenorm[stage] else inside)
            side = (side + 2 * padding - kernel) // stride + 1
            rows = images * side * side
            yield embedded(numbers - 2 * inside, rows, inside, has_norm=True)
            for place in range(2 * shape.depths[stage]):
                layer = layers.davit_block(layer_of(rows, inside), shape, stage, side, is_window=place % 2 == 0)
                yield _stage("vision", layer)
            before = inside
        steps, norm = [("image_projection", before, shape.projection_dim)], 2 * shape.projection_dim
        norm += shape.max_position_embeddings * before
    else:
        is_clip, side, inside = shape.model_type == "clip_vision_model", shape.image_size // shape.patch_size, 0
        inside, rows = shape.hidden_size, images * (side * side + is_clip)
        numbers = shape.num_channels * shape.patch_size**2 * inside + inside + (side * side + is_clip) * inside
        yield embedded(numbers, rows, inside, has_norm=is_clip)
        last = top.get("vision_feature_layer", -1) % (shape.num_hidden_layers + 1) if is_clip else 10**9
        for index in range(shape.num_hidden_layers):
            yield _stage("vision", layers.vit_layer(layer_of(rows, inside), shape), is_read=index < last)
        layer = layer_of(rows, inside)
        layer.layer_norm(inside)
        yield _stage("vision", layer, is_read=not is_clip)
        rows, norm = images * side * side, 0
        if name == "gemma3":
            rows, norm, steps = images * top.mm_tokens_per_image, inside, [("", inside, width)]
        else:
            steps, norm = [("linear_1", inside, width), ("linear_2", width, width)], width * (name == "llava_next")
    mode = "full" if learns else adapter.projector
    targets = re.compile(".*") if mode == "lora" else base.targets
    inner = replace(base, targets=targets, item=FLOAT32 if mode == "full" else how.item)
    layer = Layer(inner, family.projector, rows, images, width, learns=mode == "full", is_reached=mode != "frozen")
    for path, n_in, n_out in steps:
        layer.linears(n_in, {path: n_out}, has_bias=name != "gemma3" and name != "florence2")
        layer.keep(n_out)
    layer.others += norm
    yield _stage("projector", layer)


def predict(request: Request) -> MemoryReport:
    """Add up one step and say what is in memory at its peak.

    The model's state is that of the second step and later ones: moments of the optimiser exist. Not counted: rows of
    new tokens, and what an evaluation or a checkpoint adds.

    Raises:
        RequestError: a config without a tower's sizes, or with a part whose layers are not known.
    """
    how, load = how_of(request), load_of(request)
    stages = list(_stages(request, how, load))
    counts = _counts(stages)
    parts = dict.fromkeys(PARTS, 0)
    trained = _hold(parts, stages, request, how, load)
    gradients = sum(stage.gradients for stage in stages)
    if request.accumulates:
        parts["gradients"] += gradients
    kept = 0
    best: tuple[int, dict[str, int]] = max((stage.passing for stage in stages), default=0), {}
    best = best[0], {"vision": best[0]}
    later = gradients
    for stage in stages:
        kept += stage.kept
        later -= stage.gradients
        total = kept + stage.again + stage.back + (0 if request.accumulates else later)
        if total >= best[0]:
            best = (
                total,
                {
                    "layers": total - (0 if request.accumulates else later),
                    "gradients": 0 if request.accumulates else later,
                },
            )
    end = {"gradients": 0 if request.accumulates else gradients, "layers": 0}
    if sum(end.values()) > best[0]:
        best = sum(end.values()), end
    for part, size in best[1].items():
        parts[part] += size
    if request.device == "cuda":
        values = sum(size for part, size in parts.items() if "weights" not in part)
        parts["context"] = CONTEXT_BYTES + int(FRAGMENTED_SHARE * values)
    return MemoryReport({part: size for part, size in parts.items() if size}, counts, trained)


def _counts(stages: Sequence[Stage]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stage in stages:
        matrices = 0
        if stage.group == "linears" and stage.layer is not None:
            matrices = sum(n_in * n_out for _, n_in, n_out in stage.layer.matrices)
            counts["linears"] = counts.get("linears", 0) + matrices
        group = "norms" if stage.group == "linears" else stage.group
        counts[group] = counts.get(group, 0) + stage.numbers - matrices
    return {group: count for group, count in counts.items() if count}


def _hold(parts: dict[str, int], stages: Sequence[Stage], request: Request, how: How, load: Load) -> int:
    """Put weights, adapters, moments and the batch into memory; how many numbers learn."""
    adapter, item, trained = request.adapter, how.item, 0
    weights = {"norms": "language weights", "vision": "vision weights", "projector": "vision weights"}
    for stage in stages:
        numbers, layer = stage.numbers, stage.layer
        if layer is not None and stage.group == "linears":
            for path, n_in, n_out in layer.matrices:
                numbers -= n_in * n_out
                is_kept = path.rpartition(".")[2] in how.kept
                if adapter.quant == "none" or is_kept:
                    parts["language weights"] += (
                        n_in * n_out * (FLOAT32 if is_kept and request.dtype == "fp16" else item)
                    )
                elif adapter.quant == "int8":
                    parts["quantised weights"] += n_in * n_out + FLOAT32 * n_out
                else:
                    blocks = -(-n_in * n_out // BLOCK)
                    tables = FLOAT32 * (16 + NESTED_BLOCK + 1)
                    parts["quantised weights"] += (
                        -(-n_in * n_out // 2) + blocks + FLOAT32 * -(-blocks // NESTED_BLOCK) + tables
                    )
        part = "language weights" if stage.group in ("linears", "norms") else weights.get(stage.group, "table and head")
        parts[part] += numbers * item
        is_table = stage.group == "embeddings" and layer is None  # a tied one has its gradient from the head
        if (stage.gradients or is_table) and how.targets is None:
            trained += stage.numbers
            sizes = [n_in * n_out for _, n_in, n_out in layer.matrices] if layer else []
            rest = stage.numbers - sum(sizes)
            small = rest if layer is None else 0
            parts["optimiser"] += sum(state_bytes(request.optimizer, size, item) for size in [*sizes, small])
            parts["optimiser"] += (rest - small) * 2 * (item if request.optimizer == "adamw" else FLOAT32)
        elif how.targets is not None and layer is not None and (layer.gradients or layer.learns):
            pairs = [
                n
                for path, n_in, n_out in layer.matrices
                for n in (n_in, n_out)
                if layer.how.targets and layer.how.targets.fullmatch(path)
            ]
            sizes = (
                [adapter.r * n for n in pairs]
                if not layer.learns
                else [n_in * n_out for _, n_in, n_out in layer.matrices] + [layer.others]
            )
            trained += sum(sizes)
            parts["adapters"] += FLOAT32 * sum(sizes)
            if stage.gradients:
                parts["optimiser"] += sum(state_bytes(request.optimizer, size, FLOAT32) for size in sizes)
    parts["inputs and masks"] += 3 * INTEGER * load.sequences * load.tokens
    return trained


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
