"""What one layer of each kind has in numbers and keeps for the backward pass, as sums of products of its sizes.

M is rows (tokens or patches), D a width, F that of the feed-forward part, w bytes a number. Only what autograd keeps is
counted, each tensor once: a norm keeps its input (in float32 where w is 2), linear layers that read one tensor keep it
together, attention keeps queries, keys, values and result, an activation its input.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightbox.backbones.sizes import Shape
from lightbox.config import AdapterConfig

FLOAT32 = 4


@dataclass(frozen=True)
class How:
    """How a model is trained: w, `adapter.*`, the pattern of adapted layers (None: all learns), and its device.

    `kept` are last names of layers that are never quantised; in fp16, T5 clamps values and computes `wo` in float32.
    """

    item: int
    adapter: AdapterConfig
    targets: re.Pattern[str] | None
    is_cuda: bool
    is_eager: bool = False
    kept: tuple[str, ...] = ()
    is_fp16: bool = False


@dataclass
class Layer:
    """One layer of `rows` rows of `width` numbers in `sequences` sequences; sums are bytes.

    `matrices` are path, in and out of linear layers, `others` numbers of biases and norms. It `learns` where its own
    weights do, `is_reached` where a gradient comes by. Of `saved`, `copies` is for adapters only, `inner` of the
    feed-forward part, `clinging` kept even where a layer is computed again. `widest` is the largest result, `dense` the
    largest quantised matrix in full, `scores` attention scores, `probs` what they became, `made` both while a frozen
    layer runs.
    """

    how: How
    path: str
    rows: int
    sequences: int
    width: int
    learns: bool = False
    is_reached: bool = False
    matrices: list[tuple[str, int, int]] = field(default_factory=list)
    others: int = 0
    saved: int = 0
    copies: int = 0
    inner: int = 0
    clinging: int = 0
    gradients: int = 0
    widest: int = 0
    dense: int = 0
    scores: int = 0
    probs: int = 0
    made: int = 0
    is_gated: bool = False
    turns: bool = False
    kind: str = ""

    @property
    def numbers(self) -> int:
        """All of them."""
        return sum(n_in * n_out for _, n_in, n_out in self.matrices) + self.others

    def keep(self, width: float, *, rows: int | None = None, item: int | None = None) -> None:
        """Keep a tensor of `rows` by `width`."""
        self.saved += int((self.rows if rows is None else rows) * width * (item or self.how.item))

    def rms_norm(self, width: int, *, numbers: int | None = None, is_t5: bool = False) -> None:
        """Keep the input in float32, in T5 as it is too; where the factor learns, also what it multiplies."""
        self.others += numbers or width
        self.keep(width, item=FLOAT32)
        self.keep(width * ((is_t5 and self.how.item < FLOAT32) + self.learns))

    def layer_norm(self, width: int) -> None:
        """Keep the input."""
        self.others += 2 * width
        self.keep(width)

    def dropout(self, width: int, prob: float) -> None:
        """Keep the noise: as numbers on a CPU, one byte each on a GPU."""
        self.keep(width * (prob > 0), item=1 if self.how.is_cuda else None)

    def linears(
        self, n_in: int, outs: Mapping[str, int], *, has_bias: bool = False, rows: int = 0, is_kept: bool = False
    ) -> None:
        """Linear layers that read one tensor of `rows`, kept once (unless `is_kept`) where any of them needs it."""
        how, adapter, rows = self.how, self.how.adapter, rows or self.rows
        is_fused = adapter.use_fused and not adapter.use_dora and adapter.dropout_prob == 0
        is_shared, is_narrow = self.learns, how.item < FLOAT32
        for name, n_out in outs.items():
            path = f"{self.path}.{name}"
            self.matrices.append((path, n_in, n_out))
            self.others += n_out * has_bias
            self.widest = max(self.widest, rows * n_out * how.item)
            is_packed = adapter.quant != "none" and name.rpartition(".")[2] not in how.kept
            if is_packed:
                # int8 on a GPU multiplies in 8 bit: the input in 16 and in 8, the result in 32
                integers = rows * (3 * n_in + FLOAT32 * n_out) if how.is_cuda and adapter.quant == "int8" else 0
                self.dense = max(self.dense, n_in * n_out * how.item, integers)
                is_shared |= adapter.quant == "int8"
            if how.targets is None or not how.targets.fullmatch(path):
                continue
            self.gradients += FLOAT32 * adapter.r * (n_in + n_out)
            self.keep(adapter.r, rows=rows, item=how.item if is_fused else FLOAT32)
            is_shared |= is_fused or (not is_narrow and adapter.dropout_prob == 0)
            if is_fused:
                copies = adapter.r * (n_in + n_out) * how.item * is_narrow
            elif adapter.dropout_prob:
                copies = rows * n_in * (FLOAT32 + (1 if how.is_cuda else FLOAT32))
            else:
                copies = rows * n_in * FLOAT32 * is_narrow
            if adapter.use_dora:
                copies += rows * n_out * (how.item + FLOAT32)
                copies += n_in * n_out * FLOAT32 * (adapter.dropout_prob > 0 and (is_packed or is_narrow))
                self.dense = max(self.dense, FLOAT32 * n_in * (n_in + 4 * n_out))  # B·A of an identity, and its sums
            self.saved += copies
            self.copies += copies
        if is_shared and not is_kept:
            self.keep(n_in, rows=rows)
        self.clinging += rows * n_in * how.item * (is_shared and adapter.quant == "int8" and not is_fused)

    def attention(
        self,
        width: int,
        heads: int,
        out: Mapping[str, int],
        *,
        has_bias: bool = False,
        key_width: int | None = None,
        others: int = 0,
        has_mask: bool = False,
        has_places: bool = False,
        is_paired: bool = False,
        dropout_prob: float = 0.0,
    ) -> None:
        """Queries, keys, values, result and a number a row; or scores, where they are made; then the layer `out`.

        Keys and values have `key_width`, until a mask repeats them to that of the queries, and `others` rows, 0 for the
        layer's own. Each layer has a mask as numbers of its own; `has_places` for T5, which has one a head. Scores of
        both pairs of encoder and decoder stay in 16 bit.
        """
        how, item, others = self.how, self.how.item, others or self.rows
        key_width = width if key_width is None or has_mask else key_width
        t, s = self.rows // max(1, self.sequences), others // max(1, self.sequences)
        scores = self.sequences * heads * t * s
        is_learned = has_places and self.learns
        is_grouped = how.is_cuda and item == FLOAT32 and key_width < width
        is_made = how.is_eager or is_grouped or (not how.is_cuda and (dropout_prob > 0 or is_learned))
        self.keep(width)
        self.keep(2 * key_width, rows=others)
        if is_made:
            number = item if how.is_eager else FLOAT32
            softmax = number if is_paired else FLOAT32
            noise = (1 if how.is_cuda else number) + number * (number == softmax)
            self.scores = scores * softmax
            self.probs = scores * (number * (number < softmax) + noise * (dropout_prob > 0))
            self.made = scores * (2 * FLOAT32 + item * (item < FLOAT32))
            self.saved += self.scores + self.probs
        else:
            self.keep(width)
            self.keep(heads, item=FLOAT32)
            count = (self.sequences if has_mask else 1) * (heads if has_places else 1)
            self.saved += item * t * s * count * (has_mask or has_places)
        self.linears(width, out, has_bias=has_bias, is_kept=not is_made)

    def feed_forward(
        self, name: str, width: int, inner: int, kind: str, names: tuple[str, ...], *, prob: float = 0.0, **bias: bool
    ) -> None:
        """down(act(up(x))), or down(act(gate(x))·up(x)) where there are three names; dropout before down."""
        before, self.kind, self.is_gated = self.saved, kind, len(names) > 2
        self.linears(width, {name + up: inner for up in names[:-1]}, **bias)
        # quick GELU is x·sigmoid(1.702 x), T5's GELU a chain of five operations
        self.keep(inner * ({"quick_gelu": 2, "gelu_new": 4}.get(kind, 1) + 2 * self.is_gated))
        self.dropout(inner, prob)
        self.linears(inner, {name + names[-1]: width}, **bias)
        self.inner = self.saved - before

    def passing(self) -> int:
        """Bytes while a frozen layer runs: what it reads, its norms, and the widest of its results or scores."""
        times = 3 if self.is_gated or self.kind == "quick_gelu" else 2
        turned = self.rows * self.width * (self.how.item * 4 + 24 * self.turns)
        return turned + max(times * self.widest, self.made)


def decoder_layer(layer: Layer, shape: Shape, *, has_mask: bool) -> Layer:
    """Llama, Mistral, Qwen2; Gemma 3 with four norms, and norms of queries and keys."""
    width, wide, key_width = shape.hidden_size, shape.num_attention_heads * shape.head_width, shape.key_width
    is_gemma, is_qwen = shape.model_type == "gemma3_text", shape.model_type.startswith("qwen2")
    for _ in range(4 if is_gemma else 2):
        layer.rms_norm(width)
    outs = {"self_attn.q_proj": wide, "self_attn.k_proj": key_width, "self_attn.v_proj": key_width}
    layer.linears(width, outs, has_bias=is_qwen or shape.attention_bias)
    for norm in (wide, key_width) if is_gemma else ():
        layer.rms_norm(norm, numbers=shape.head_width)
    layer.attention(
        wide,
        shape.num_attention_heads,
        {"self_attn.o_proj": width},
        has_bias=shape.attention_bias and not is_qwen,
        key_width=key_width,
        has_mask=has_mask,
        dropout_prob=shape.attention_dropout,
    )
    kind, names = shape.get("hidden_act") or shape.hidden_activation, ("gate_proj", "up_proj", "down_proj")
    layer.feed_forward("mlp.", width, shape.intermediate_size, kind, names, has_bias=bool(shape.mlp_bias))
    return layer


def paired_layer(layer: Layer, shape: Shape, *, place: int, has_mask: bool, encoded: int = 0) -> Layer:
    """T5 and BART, place 0 for the encoder and 1 for the decoder, which attends to `encoded` rows too."""
    is_t5, width = shape.model_type == "t5", shape.d_model
    side = ("encoder", "decoder")[place]
    heads = shape.num_heads if is_t5 else shape[f"{side}_attention_heads"]
    wide, prob = (heads * shape.d_kv, shape.dropout_rate) if is_t5 else (width, shape.dropout)
    letters = ("q", "k", "v", "o") if is_t5 else ("q_proj", "k_proj", "v_proj", "out_proj")
    norm, clamped = layer.rms_norm if is_t5 else layer.layer_norm, is_t5 and layer.how.is_fp16
    for number, rows in enumerate((0, encoded)[: 1 + place]):
        below = ("layer.0.SelfAttention", "layer.1.EncDecAttention") if is_t5 else ("self_attn", "encoder_attn")
        query, key, value, out = (f"{below[number]}.{letter}" for letter in letters)
        norm(width, **({"is_t5": True} if is_t5 else {}))
        pair = {key: wide, value: wide}
        layer.linears(width, {query: wide} | ({} if rows else pair), has_bias=not is_t5)
        layer.linears(width, pair if rows else {}, has_bias=not is_t5, rows=rows, is_kept=True)
        attention_prob = prob if is_t5 else shape.attention_dropout
        layer.attention(
            wide,
            heads,
            {out: width},
            has_bias=not is_t5,
            others=rows,
            has_mask=has_mask,
            has_places=is_t5,
            is_paired=True,
            dropout_prob=attention_prob,
        )
        layer.dropout(width, prob)
        layer.keep(width * clamped)
    norm(width, **({"is_t5": True} if is_t5 else {}))
    if is_t5:
        inner, kind = shape.d_ff, shape.feed_forward_proj.removeprefix("gated-")
        is_gated = kind != shape.feed_forward_proj
        names = ("wi_0", "wi_1", "wo") if is_gated else ("wi", "wo")
        kind = "gelu_new" if is_gated and kind == "gelu" else kind
        layer.feed_forward(f"layer.{1 + place}.DenseReluDense.", width, inner, kind, names, prob=prob)
        layer.keep((width + 2 * inner) * clamped)
    else:
        inner, kind = shape[f"{side}_ffn_dim"], shape.activation_function
        layer.feed_forward("", width, inner, kind, ("fc1", "fc2"), prob=shape.activation_dropout, has_bias=True)
    layer.dropout(width, prob)
    return layer


def vit_layer(layer: Layer, shape: Shape) -> Layer:
    """CLIP, SigLIP, and the towers of Qwen, which turn queries and keys in float32; the newer has gates."""
    width, is_qwen, is_newer = layer.width, "depth" in shape, shape.model_type == "qwen2_5_vl_vision"
    norm = layer.rms_norm if is_newer else layer.layer_norm
    norm(width)
    norm(width)
    layer.turns = is_qwen
    layer.linears(width, {"qkv": 3 * width}, has_bias=True)
    layer.keep(3 * width * is_qwen)  # values lie in one tensor with what was turned, results are pieces put together
    heads, prob = (shape.num_heads, 0) if is_qwen else (shape.num_attention_heads, shape.attention_dropout)
    layer.attention(width, heads, {"out": width}, has_bias=True, dropout_prob=prob)
    inner = int(width * shape.mlp_ratio) if "mlp_ratio" in shape else shape.intermediate_size
    names = ("gate", "up", "down") if is_newer else ("fc1", "fc2")
    layer.feed_forward("", width, inner, shape.hidden_act, names, has_bias=True)
    return layer


def davit_block(layer: Layer, shape: Shape, side: int, *, is_window: bool) -> Layer:
    """A block of Florence-2's tower: attention inside of padded windows, or between channels; two convolutions."""
    width, window = layer.width, shape.window_size
    padded = layer.sequences * (-(-side // window) * window) ** 2 if is_window else layer.rows
    for _ in range(2):
        layer.others += 10 * width  # a convolution of each channel by itself
        layer.keep(width)
        layer.layer_norm(width)
    layer.linears(width, {"qkv": 3 * width}, has_bias=bool(shape.qkv_bias))
    layer.keep(3 * width, rows=padded)
    layer.keep(width)
    if layer.how.is_eager and is_window:
        layer.scores = padded * window * window * shape.num_attention_heads * layer.how.item
        layer.saved += layer.scores
        layer.made = 3 * layer.scores
    layer.linears(width, {"proj": width}, has_bias=True, is_kept=is_window)
    kind = shape.activation_function
    layer.feed_forward("", width, int(width * shape.mlp_ratio), kind, ("fc1", "fc2"), has_bias=True)
    return layer
