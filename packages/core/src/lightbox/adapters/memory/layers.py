"""What one layer has in numbers and keeps for the backward pass, as sums of products of its sizes.

Only what autograd keeps is counted, each tensor once: a norm keeps its input (RMSNorm in float32), linear layers that
read one tensor keep it together, attention keeps queries, keys, values and result, an activation its input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from re import Pattern

from lightbox.adapters.memory.request import ITEMS, Request
from lightbox.backbones.sizes import Shape

FLOAT32 = 4
BLOCK, NESTED_BLOCK = 64, 256
LANGUAGE_WEIGHTS = "language weights"


def packed_bytes(quant: str, count: int, rows: int) -> int:
    """Bytes of a quantised matrix: int8 with a float32 a row, or NF4 with nested scales and their tables."""
    if quant == "int8":
        return count + FLOAT32 * rows
    blocks = -(-count // BLOCK)
    return -(-count // 2) + blocks + FLOAT32 * (-(-blocks // NESTED_BLOCK) + 16 + NESTED_BLOCK + 1)


@dataclass
class Layer:
    """One layer of M `rows` of `width` numbers in `sequences`; what has no rows only holds `others` numbers.

    It `learns` where its own weights do, adapters are at `targets`, `is_reached` where a gradient comes by. `stays` and
    `extra` are bytes by part that it adds from here on, and while it is computed back. Of the `numbers` in its linear
    layers `plain` are not quantised, `last` are the last one's; `trained` has those of each tensor that learns.

    Sums of bytes: `packed` of quantised layers; of `saved`, `copies` is for adapters only, `inner` of the feed-forward
    part, `clinging` kept even where a layer is computed again. `widest` is the largest result, `dense` the largest
    quantised matrix in full, `scores` and `probs` attention before and after softmax, `made` both while a frozen layer
    runs.
    """

    request: Request
    group: str
    rows: int = 0
    width: int = 0
    sequences: int = 1
    path: str = ""
    learns: bool = False
    is_reached: bool = False
    others: int = 0
    targets: Pattern[str] | None = None
    stays: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    numbers = plain = packed = last = 0
    saved = copies = inner = clinging = widest = dense = scores = probs = made = 0
    times = 2

    def __post_init__(self) -> None:
        adapter, self.is_on_gpu = self.request.adapter, self.request.device == "cuda"
        # a projector beside a frozen base is trained in float32
        self.item = FLOAT32 if self.learns and not self.request.is_full else ITEMS[self.request.dtype]
        self.is_narrow, self.is_noisy = self.item < FLOAT32, adapter.dropout_prob > 0
        self.quant = adapter.quant if self.group == LANGUAGE_WEIGHTS else "none"
        self.is_fused = adapter.use_fused and not adapter.use_dora and not self.is_noisy

    @property
    def owned(self) -> list[int]:
        """Numbers of each of its tensors that learns."""
        return [*self.trained, self.others * self.learns]

    def keep(self, width: int, *, rows: int | None = None, item: int | None = None) -> None:
        """Keep a tensor of `rows` by `width`."""
        self.saved += (self.rows if rows is None else rows) * width * (item or self.item)

    def norm(self, kind: str, *widths: int) -> None:
        """LayerNorm keeps its input, RMSNorm in float32, T5's as it is too; a factor that learns what it multiplies."""
        factor = self.learns * (FLOAT32 if kind == "gemma" else self.item)
        as_is = self.item * (kind == "t5" and self.is_narrow)
        self.others += sum(widths) * (1 + (kind == "layer"))
        self.keep(sum(widths), item=self.item if kind == "layer" else FLOAT32 + factor + as_is)

    def drop(self, width: int, prob: float) -> None:
        """Dropout keeps its noise: as numbers on a CPU, one byte each on a GPU."""
        self.keep(width * (prob > 0), item=1 if self.is_on_gpu else None)

    def linears(self, n_in: int, outs: Mapping[str, int], *, rows: int = 0, is_kept: bool = False) -> None:
        """Linear layers, name -> outputs, that read one tensor, kept once (unless `is_kept`) where one needs it."""
        quant = "none" if any(name.endswith(".wo") for name in outs) else self.quant  # T5's is never quantised
        r, rows, is_int8 = self.request.adapter.r, rows or self.rows, quant == "int8"
        is_shared = self.learns or is_int8
        for name, n_out in outs.items():
            path, self.last = f"{self.path}.{name}", n_in * n_out
            self.numbers += self.last
            self.plain += self.last * (quant == "none")
            self.packed += packed_bytes(quant, self.last, n_out) if quant != "none" else 0
            self.trained += [self.last] * self.learns
            self.widest = max(self.widest, rows * n_out * self.item)
            self.dense = max(self.dense, self.last * self.item * (quant != "none"))
            if not (self.targets and self.targets.fullmatch(path)):
                continue
            self.trained += [r * n_in, r * n_out, *[n_out] * self.request.adapter.use_dora]
            self.keep(r, rows=rows, item=self.item if self.is_fused else FLOAT32)
            is_shared |= self.is_fused or not (self.is_narrow or self.is_noisy)
            noise = self.is_noisy * (1 if self.is_on_gpu else FLOAT32)
            copies = rows * n_in * (FLOAT32 * (self.is_narrow or self.is_noisy) + noise)
            if self.is_fused:
                copies = r * (n_in + n_out) * self.item * self.is_narrow
            if self.request.adapter.use_dora:
                copies += rows * n_out * (self.item + FLOAT32) + FLOAT32 * self.last * self.is_noisy
                self.dense = max(self.dense, FLOAT32 * n_in * (n_in + 4 * n_out))  # B·A of an identity, and its sums
            self.saved += copies
            self.copies += copies
        self.keep(n_in * (is_shared and not is_kept), rows=rows)
        self.clinging += rows * n_in * self.item * (is_int8 and not self.is_fused)

    def attend(
        self, wide: int, heads: int, out: str, *, keys: int = 0, others: int = 0, mask: int = 0, prob: float = 0
    ) -> None:
        """Queries, keys, values, result and a number a row; or scores, where they are made; then the layer `out`.

        Keys and values have width `keys` until a mask repeats them to that of the queries, and `others` rows, 0 for the
        layer's own. There are `mask` masks of numbers: a sequence each, in T5 a head each. Scores of encoder-decoders
        stay in 16 bit.
        """
        others, family = others or self.rows, self.request.family
        is_eager, has_places = self.request.attention == "eager", self.learns and family.name == "t5"
        is_grouped = not (self.is_narrow or mask) and 0 < keys < wide  # no fused kernel of a GPU takes these
        is_made = is_eager or (is_grouped if self.is_on_gpu else prob > 0 or has_places)
        t, s = self.rows // max(1, self.sequences), others // max(1, self.sequences)
        self.keep(wide)
        self.keep(2 * (keys if keys and not mask else wide), rows=others)
        if is_made:
            scores, number = self.sequences * heads * t * s, self.item if is_eager else FLOAT32
            softmax = number if family.is_encoder_decoder else FLOAT32
            noise = (1 if self.is_on_gpu else number) * (prob > 0)
            self.scores, self.made = scores * softmax, scores * (2 * softmax + self.item * self.is_narrow)
            self.probs = scores * (number * (prob > 0 or number < softmax) + noise)
            self.saved += self.scores + self.probs
        else:
            self.saved += self.rows * (wide * self.item + heads * FLOAT32) + self.item * t * s * mask
        self.linears(wide, {out: self.width}, is_kept=not is_made)

    def feed_forward(self, width: int, inner: int, act: str, ups: tuple[str, ...], down: str, prob: float = 0) -> None:
        """down(act(up(x))), or down(act(gate(x))·up(x)) where `ups` are two; dropout before down."""
        before, is_gated = self.saved, len(ups) > 1
        self.times = 3 if is_gated or act == "quick_gelu" else 2
        self.linears(width, dict.fromkeys(ups, inner))
        # quick GELU is x·sigmoid(1.702 x), T5's GELU a chain of five operations
        self.keep(inner * ({"quick_gelu": 2, "gelu_new": 4}.get(act, 1) + 2 * is_gated))
        self.drop(inner, prob)
        self.linears(inner, {down: width})
        self.inner = self.saved - before


def decoder_layer(layer: Layer, shape: Shape, mask: int) -> None:
    """Llama, Mistral, Qwen2; Gemma 3 with four norms, and norms of queries and keys."""
    width, heads, keys = shape.hidden_size, shape.num_attention_heads, shape.key_width
    wide, is_gemma = heads * shape.head_width, shape.model_type == "gemma3_text"
    layer.norm("gemma" if is_gemma else "rms", *[width] * (4 if is_gemma else 2), *[wide, keys] * is_gemma)
    layer.linears(width, {"self_attn.q_proj": wide, "self_attn.k_proj": keys, "self_attn.v_proj": keys})
    layer.attend(wide, heads, "self_attn.o_proj", keys=keys, mask=mask, prob=shape.attention_dropout)
    act = shape.get("hidden_act") or shape.hidden_activation
    layer.feed_forward(width, shape.intermediate_size, act, ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")


def paired_layer(layer: Layer, shape: Shape, mask: int, place: int, encoded: int) -> None:
    """T5 and BART, place 0 for the encoder and 1 for the decoder, which attends to `encoded` rows too."""
    side, kind, width = ("encoder", "decoder")[place], "layer", shape.d_model
    if shape.model_type == "t5":
        heads, kind, inner, act = shape.num_heads, "t5", shape.d_ff, shape.feed_forward_proj
        wide, is_gated, down = heads * shape.d_kv, act.startswith("gated"), f"layer.{1 + place}.DenseReluDense."
        probs, act = [shape.dropout_rate] * 3, "gelu_new" if act == "gated-gelu" else act
        names, ends = ["layer.0.SelfAttention.", "layer.1.EncDecAttention."], ("q", "k", "v", "o")
        ups, down = tuple(down + up for up in (("wi_0", "wi_1") if is_gated else ("wi",))), f"{down}wo"
        mask = heads * max(mask, layer.sequences * place, 1)  # positions, which the decoder makes for each sequence
    else:
        heads, wide, inner = shape[f"{side}_attention_heads"], width, shape[f"{side}_ffn_dim"]
        probs, act = [shape.dropout, shape.attention_dropout, shape.activation_dropout], shape.activation_function
        names, ends = ["self_attn.", "encoder_attn."], ("q_proj", "k_proj", "v_proj", "out_proj")
        ups, down = ("fc1",), "fc2"
    for name, others in list(zip(names, (0, encoded), strict=True))[: 1 + place]:
        query, key, value, out = (name + end for end in ends)
        layer.norm(kind, width)
        layer.linears(width, {query: wide} | ({} if others else {key: wide, value: wide}))
        layer.linears(width, {key: wide, value: wide} if others else {}, rows=others, is_kept=True)
        layer.attend(wide, heads, out, others=others, mask=mask, prob=probs[1])
        layer.drop(width, probs[0])
    layer.norm(kind, width)
    layer.feed_forward(width, inner, act, ups, down, probs[2])
    layer.drop(width, probs[0])


def tower_layer(layer: Layer, shape: Shape, heads: int, window: int) -> None:
    """CLIP, SigLIP, the towers of Qwen (the newer has gates), and blocks of Florence-2's.

    Florence-2 attends inside of windows of `window` patches or, where that is 1, between channels; each of its two
    convolutions keeps as much as a norm.
    """
    width, is_newer, is_florence = layer.width, shape.model_type == "qwen2_5_vl_vision", window > 0
    layer.norm("rms" if is_newer else "layer", *[width] * (4 if is_florence else 2))
    layer.linears(width, {"qkv": 3 * width})
    is_qwen = "depth" in shape  # turns queries and keys in float32, and its values lie in one tensor with the result
    layer.extra = {"vision": 6 * FLOAT32 * layer.rows * width * is_qwen}
    layer.keep(width * (3 * is_qwen + (window == 1)))  # channels are turned back before they are projected
    layer.sequences = layer.rows // window if is_florence else layer.sequences
    layer.attend(width, heads, "out")
    layer.made //= max(1, layer.sequences) if is_qwen else 1  # one image after the other
    inner = int(width * shape.mlp_ratio) if "mlp_ratio" in shape else shape.intermediate_size
    act = shape.get("hidden_act") or shape.activation_function
    layer.feed_forward(width, inner, act, ("gate", "up") if is_newer else ("up",), "down")
