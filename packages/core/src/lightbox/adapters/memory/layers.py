"""What one layer of each kind has in numbers and keeps for the backward pass, as sums of products of its sizes.

M is rows (tokens or patches), D a width, F that of the feed-forward part, w bytes a number. Only what autograd keeps is
counted, and each tensor once: a norm keeps its input (in float32 where w is 2), linear layers that read one tensor and
learn keep it together, attention keeps queries, keys, values and its result, an activation its input.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightbox.backbones.sizes import Shape
from lightbox.config import AdapterConfig

FLOAT32 = 4


@dataclass(frozen=True)
class How:
    """How a model is stored and trained: `adapter.*`, and the layers that get an adapter.

    Args:
        item: w.
        adapter: see there.
        targets: pattern of the paths of adapted linear layers; None where everything learns.
        is_cuda: kernels of a GPU, which differ in what they keep.
        is_eager: True where attention keeps its scores.
        kept: last names of linear layers that are never quantised.
        is_fp16: True for fp16, in which T5 clamps its values and computes `wo` in float32.
    """

    item: int
    adapter: AdapterConfig
    targets: re.Pattern[str] | None
    is_cuda: bool
    is_eager: bool
    kept: tuple[str, ...] = ()
    is_fp16: bool = False


@dataclass
class Layer:
    """One layer of `rows` rows of `sequences` sequences, below `path`; sizes are bytes.

    Args:
        width: D.
        is_reached: True where a gradient passes through it.
        learns: True where its own weights learn (and not only adapters).
        matrices: path, in and out of each linear layer.
        others: numbers of biases, norms and the like.
        saved: kept for the backward pass.
        copies: the part of `saved` that only adapters need.
        clinging: the part of `saved` that is kept even where the layer is computed again.
        gradients: of adapters.
        widest: the largest result of a linear layer, M·F·w.
        early: bytes of the first weight gradient of its backward pass.
        inner: the part of `saved` that belongs to the feed-forward part.
        is_gated: True where that has a factor.
        turns: True where queries and keys are turned in float32.
        kind: of the activation.
        scores: bytes of attention scores in float32 where they are made.
        probs: bytes of those in 16 bit.
        dense: the largest quantised matrix in full.
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
    clinging: int = 0
    gradients: int = 0
    widest: int = 0
    early: int = 0
    inner: int = 0
    is_gated: bool = False
    turns: bool = False
    kind: str = ""
    scores: int = 0
    probs: int = 0
    dense: int = 0

    def keep(self, width: float, *, rows: int | None = None, item: int | None = None) -> None:
        """Keep a tensor of `rows` by `width`."""
        self.saved += int((self.rows if rows is None else rows) * width * (item or self.how.item))

    def rms_norm(self, width: int, *, numbers: int | None = None, is_t5: bool = False) -> None:
        """The input in float32, which is the input itself where w is 4; T5 keeps both; where it learns x/rms(x) too."""
        self.others += numbers or width
        self.keep(width, item=FLOAT32)
        if is_t5 and self.how.item < FLOAT32:
            self.keep(width)
        if self.learns:
            self.keep(width)

    def layer_norm(self, width: int) -> None:
        """The input."""
        self.others += 2 * width
        self.keep(width)

    def linears(self, n_in: int, outs: Mapping[str, int], *, has_bias: bool = False, rows: int = 0, is_kept: bool = False) -> None:
        """Linear layers that read one tensor, by name: kept once, and in float32 for each adapter that is not fused.

        Args:
            n_in: its width.
            outs: name -> width of the result.
            has_bias: of all of them.
            rows: of the tensor, 0 for the layer's own.
            is_kept: True where the tensor is kept anyway.
        """
        how, adapter, rows = self.how, self.how.adapter, rows or self.rows
        is_fused = adapter.use_fused and not adapter.use_dora and adapter.dropout_prob == 0
        is_shared = self.learns
        for name, n_out in outs.items():
            path = f"{self.path}.{name}"
            self.matrices.append((path, n_in, n_out))
            self.others += n_out * has_bias
            self.widest = max(self.widest, rows * n_out * how.item)
            is_quantised = adapter.quant != "none" and name.rpartition(".")[2] not in how.kept
            if is_quantised:
                is_wide = adapter.quant == "int8" and how.is_cuda  # the input in 16 and 8 bit, the result in 32
                dense = rows * (3 * n_in + 4 * n_out) if is_wide else 0
                self.dense = max(self.dense, n_in * n_out * how.item, dense)
                is_shared |= adapter.quant == "int8"
            if how.targets is None or not how.targets.fullmatch(path):
                continue
            self.gradients += FLOAT32 * adapter.r * (n_in + n_out)
            self.keep(adapter.r, rows=rows, item=how.item if is_fused else FLOAT32)
            if is_fused:
                is_shared = True
                copies = adapter.r * (n_in + n_out) * how.item * (how.item < FLOAT32)
            elif adapter.dropout_prob:
                copies = rows * n_in * (FLOAT32 + (1 if how.is_cuda else FLOAT32))
            else:
                copies = rows * n_in * FLOAT32 * (how.item < FLOAT32)
                is_shared |= how.item == FLOAT32
            if adapter.use_dora:
                copies += rows * n_out * (how.item + FLOAT32)
                copies += n_in * n_out * how.item * (is_quantised and adapter.dropout_prob > 0)
                self.dense = max(self.dense, FLOAT32 * n_in * (n_in + 4 * n_out))  # B·A of an identity, and its sums
            self.saved += copies
            self.copies += copies
        if is_shared:
            self.keep(n_in, rows=0 if is_kept else rows)
            if adapter.quant == "int8":
                self.clinging += rows * n_in * how.item

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
        bias: str = "",
        dropout_prob: float = 0.0,
    ) -> None:
        """Queries, keys, values, the result and a number a row; or the scores b·k·t·s, where they are made.

        Args:
            width: of the queries.
            heads: k.
            out: name and width of the linear layer that reads the result.
            has_bias: of that layer.
            key_width: of keys and values, None for that of the queries; a mask repeats them to it.
            others: rows that are attended to, 0 for the layer's own.
            has_mask: True for a mask of booleans, which each layer turns into numbers.
            bias: "given" for a bias a head that is added to the mask, "learned" where it needs a gradient.
            dropout_prob: of scores.
        """
        how, item = self.how, self.how.item
        others = others or self.rows
        key_width = width if key_width is None or has_mask else key_width
        t, s = self.rows // max(1, self.sequences), others // max(1, self.sequences)
        self.keep(width)
        self.keep(2 * key_width, rows=others)
        scores = self.sequences * heads * t * s
        is_grouped = how.is_cuda and item == FLOAT32 and key_width < width
        is_made = how.is_eager or is_grouped or (not how.is_cuda and (dropout_prob > 0 or bias == "learned"))
        if is_made:
            self.scores = scores * FLOAT32
            self.probs = scores * item if how.is_eager and item < FLOAT32 else 0
            self.saved += self.scores + self.probs + (2 * self.scores if dropout_prob else 0)
        else:
            self.keep(width)
            self.keep(heads, item=FLOAT32)
            if has_mask or bias:
                self.saved += item * t * s * (self.sequences if has_mask else 1) * (heads if bias else 1)
        self.linears(width, out, has_bias=has_bias, is_kept=not is_made)

    def dropout(self, width: int, prob: float) -> None:
        """The noise: as numbers on a CPU, one byte each on a GPU."""
        if prob:
            self.keep(width, item=1 if self.how.is_cuda else self.how.item)

    def activation(self, width: int, kind: str) -> None:
        """The input, or what its parts keep: quick GELU is x·sigmoid(1.702 x), GELU by tanh is made of five parts."""
        self.kind = kind
        self.keep(width * {"quick_gelu": 2, "gelu_new": 4}.get(kind, 1))

    def passing(self) -> int:
        """Bytes while a frozen layer runs: what it reads, its norm, and the widest of its results two or three times."""
        times = 3 if self.is_gated or self.kind == "quick_gelu" else 2
        return int(self.rows * self.width * (self.how.item * 4 + 24 * self.turns)) + times * self.widest

    @property
    def numbers(self) -> int:
        """All of them."""
        return sum(n_in * n_out for _, n_in, n_out in self.matrices) + self.others


def _gated(layer: Layer, name: str, width: int, inner: int, kind: str, *, has_bias: bool = False) -> None:
    """down(act(gate(x))·up(x)): gate, up and act(gate) beside what the linear layers keep."""
    layer.is_gated, before = True, layer.saved
    layer.linears(width, {f"{name}.gate_proj": inner, f"{name}.up_proj": inner}, has_bias=has_bias)
    layer.activation(inner, kind)
    layer.keep(2 * inner)
    layer.linears(inner, {f"{name}.down_proj": width}, has_bias=has_bias)
    layer.inner = layer.saved - before


def decoder_layer(layer: Layer, shape: Shape, *, has_mask: bool) -> Layer:
    """Llama, Mistral, Qwen2; Gemma 3 with four norms, and norms of queries and keys."""
    width, wide, key_width = shape.hidden_size, shape.num_attention_heads * shape.head_width, shape.key_width
    is_gemma, is_qwen = shape.model_type == "gemma3_text", shape.model_type.startswith("qwen2")
    for _ in range(4 if is_gemma else 2):
        layer.rms_norm(width)
    outs = {"self_attn.q_proj": wide, "self_attn.k_proj": key_width, "self_attn.v_proj": key_width}
    layer.linears(width, outs, has_bias=is_qwen or shape.attention_bias)
    if is_gemma:
        layer.rms_norm(wide, numbers=shape.head_width)
        layer.rms_norm(key_width, numbers=shape.head_width)
    heads, prob = shape.num_attention_heads, shape.attention_dropout
    has_bias, out = shape.attention_bias and not is_qwen, {"self_attn.o_proj": width}
    layer.attention(
        wide, heads, out, has_bias=has_bias, key_width=key_width, has_mask=has_mask, dropout_prob=prob
    )
    kind = shape.hidden_activation if is_gemma else shape.hidden_act
    _gated(layer, "mlp", width, shape.intermediate_size, kind, has_bias=bool(shape.mlp_bias))
    return layer


def bart_layer(layer: Layer, shape: Shape, inner: int, heads: int, *, has_mask: bool, encoded: int = 0) -> Layer:
    """BART: layer norms behind attention and feed-forward; with `encoded` rows, a decoder's attention to them."""
    width = shape.d_model
    for name, rows in (("self_attn", 0), ("encoder_attn", encoded))[: 1 + bool(encoded)]:
        keys = {f"{name}.k_proj": width, f"{name}.v_proj": width}
        layer.linears(width, {f"{name}.q_proj": width} | ({} if rows else keys), has_bias=True)
        if rows:
            layer.linears(width, keys, has_bias=True, rows=rows, is_kept=True)
        out, prob = {f"{name}.out_proj": width}, shape.attention_dropout
        layer.attention(width, heads, out, has_bias=True, others=rows, has_mask=has_mask, dropout_prob=prob)
        layer.dropout(width, shape.dropout)
        layer.layer_norm(width)
    layer.linears(width, {"fc1": inner}, has_bias=True)
    layer.activation(inner, shape.activation_function)
    layer.dropout(inner, shape.activation_dropout)
    layer.linears(inner, {"fc2": width}, has_bias=True)
    layer.dropout(width, shape.dropout)
    layer.layer_norm(width)
    return layer


def t5_layer(layer: Layer, shape: Shape, *, has_mask: bool, encoded: int = 0) -> Layer:
    """T5: RMS norms before attention with a position bias and feed-forward, dropout everywhere."""
    width, wide, prob = shape.d_model, shape.num_heads * shape.d_kv, shape.dropout_rate
    for place, (name, rows) in enumerate((("SelfAttention", 0), ("EncDecAttention", encoded))[: 1 + bool(encoded)]):
        below = f"layer.{place}.{name}"
        layer.rms_norm(width, is_t5=True)
        keys = {f"{below}.k": wide, f"{below}.v": wide}
        layer.linears(width, {f"{below}.q": wide} | ({} if rows else keys))
        if rows:
            layer.linears(width, keys, rows=rows, is_kept=True)
        bias = "learned" if layer.learns else "given"
        out, heads = {f"{below}.o": width}, shape.num_heads
        layer.attention(wide, heads, out, others=rows, has_mask=has_mask, bias=bias, dropout_prob=prob)
        layer.dropout(width, prob)
        layer.keep(width * layer.how.is_fp16)
    below, kind = f"layer.{1 + bool(encoded)}.DenseReluDense", shape.feed_forward_proj.removeprefix("gated-")
    layer.rms_norm(width, is_t5=True)
    if kind != shape.feed_forward_proj:
        layer.linears(width, {f"{below}.wi_0": shape.d_ff, f"{below}.wi_1": shape.d_ff})
        layer.activation(shape.d_ff, "gelu_new" if kind == "gelu" else kind)
        layer.keep(2 * shape.d_ff)
    else:
        layer.linears(width, {f"{below}.wi": shape.d_ff})
        layer.activation(shape.d_ff, kind)
    layer.dropout(shape.d_ff, prob)
    layer.linears(shape.d_ff, {f"{below}.wo": width})
    layer.dropout(width, prob)
    layer.keep((width + 2 * shape.d_ff) * layer.how.is_fp16)
    return layer


def vit_layer(layer: Layer, shape: Shape) -> Layer:
    """CLIP and SigLIP."""
    width, inner = shape.hidden_size, shape.intermediate_size
    layer.layer_norm(width)
    layer.linears(width, {"q": width, "k": width, "v": width}, has_bias=True)
    heads, prob = shape.num_attention_heads, shape.attention_dropout
    layer.attention(width, heads, {"out": width}, has_bias=True, dropout_prob=prob)
    layer.layer_norm(width)
    layer.linears(width, {"fc1": inner}, has_bias=True)
    layer.activation(inner, shape.hidden_act)
    layer.linears(inner, {"fc2": width}, has_bias=True)
    return layer


def qwen_block(layer: Layer, shape: Shape, *, is_newer: bool) -> Layer:
    """Towers of Qwen2-VL, and of Qwen2.5-VL with RMS norms and a gated layer; queries and keys are turned in float32."""
    width = shape.hidden_size if is_newer else shape.embed_dim
    norm = layer.rms_norm if is_newer else layer.layer_norm
    norm(width)
    layer.turns = True
    layer.linears(width, {"qkv": 3 * width}, has_bias=True)
    layer.keep(3 * width)  # values lie in one tensor with what was turned, and results are put together from pieces
    layer.attention(width, shape.num_heads, {"proj": width}, has_bias=True)
    norm(width)
    if is_newer:
        _gated(layer, "mlp", width, shape.intermediate_size, shape.hidden_act, has_bias=True)
        return layer
    inner = int(width * shape.mlp_ratio)
    layer.linears(width, {"fc1": inner}, has_bias=True)
    layer.activation(inner, shape.hidden_act)
    layer.linears(inner, {"fc2": width}, has_bias=True)
    return layer


def davit_block(layer: Layer, shape: Shape, stage: int, side: int, *, is_window: bool) -> Layer:
    """A block of Florence-2's tower: attention inside of padded windows, or between channels; two convolutions."""
    width, images, window = shape.embed_dim[stage], layer.sequences, shape.window_size
    inner = int(width * shape.mlp_ratio)
    padded = images * (-(-side // window) * window) ** 2 if is_window else layer.rows
    for _ in range(2):
        layer.others += 10 * width  # a convolution of each channel by itself
        layer.keep(width)
        layer.layer_norm(width)
    layer.linears(width, {"qkv": 3 * width}, has_bias=bool(shape.qkv_bias))
    layer.keep(3 * width, rows=padded)
    layer.keep(width)
    layer.linears(width, {"proj": width}, has_bias=True, is_kept=is_window)
    layer.linears(width, {"fc1": inner}, has_bias=True)
    layer.activation(inner, shape.activation_function)
    layer.linears(inner, {"fc2": width}, has_bias=True)
    return layer
