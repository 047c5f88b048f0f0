"""Layers of language models, written as the models of transformers 5.23 are, on sizes.

Names of values live as long as in the models' own code, since that decides what is in memory together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lightbox.adapters.memory.shapes import Shape
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Storage, Value

Layer = Callable[[], Value]


@dataclass(frozen=True)
class Rows:
    """Tokens of a step: `sequences` rows of `length`, with the memory of their mask and of the tables of rotation."""

    sequences: int
    length: int
    mask: Storage | None = None
    tables: Storage | None = None


def causal_mask(step: Step, sequences: int, length: int, other: int | None = None) -> Storage:
    """One byte for each pair of positions: b·t·s."""
    return step.allocate(sequences * length * (other or length), "inputs and masks")


# ---- Llama, Mistral, Qwen2, Gemma


def llama_layer(step: Step, x: Value, shape: Shape, rows: Rows) -> Value:
    """Grouped attention and a gated layer behind RMS norms: Llama, Mistral, Qwen2."""
    residual = x
    x = step.rms_norm(x, "input_layernorm")
    with step.within("self_attn"):
        x = _grouped_attention(step, x, shape, rows)
    x = step.add(residual, x)
    residual = x
    x = step.rms_norm(x, "post_attention_layernorm")
    with step.within("mlp"):
        x = gated(step, x, shape.intermediate_size, shape.hidden_act, has_bias=shape.mlp_bias)
    return step.add(residual, x)


def gemma_layer(step: Step, x: Value, shape: Shape, rows: Rows) -> Value:
    """As Llama's, with four norms, and norms of queries and keys: Gemma 3."""
    residual = x
    x = step.rms_norm(x, "input_layernorm", offset=True)
    with step.within("self_attn"):
        x = _grouped_attention(step, x, shape, rows, has_norms=True)
    x = step.rms_norm(x, "post_attention_layernorm", offset=True)
    x = step.add(residual, x)
    residual = x
    x = step.rms_norm(x, "pre_feedforward_layernorm", offset=True)
    with step.within("mlp"):
        x = gated(step, x, shape.intermediate_size, shape.hidden_activation, has_bias=False)
    x = step.rms_norm(x, "post_feedforward_layernorm", offset=True)
    return step.add(residual, x)


def _grouped_attention(step: Step, x: Value, shape: Shape, rows: Rows, *, has_norms: bool = False) -> Value:
    width = shape.num_attention_heads * shape.head_width
    is_qwen = shape.get("model_type", "").startswith("qwen2")
    has_bias = is_qwen or shape.attention_bias
    query = step.linear(x, width, "q_proj", has_bias=has_bias)
    key = step.linear(x, shape.key_width, "k_proj", has_bias=has_bias)
    value = step.linear(x, shape.key_width, "v_proj", has_bias=has_bias)
    if has_norms:
        query = step.rms_norm(query, "q_norm", width=shape.head_width, offset=True)
        key = step.rms_norm(key, "k_norm", width=shape.head_width, offset=True)
    query, key = step.rope(query, rows.tables), step.rope(key, rows.tables)
    x = step.attention(
        query,
        key,
        value,
        sequences=rows.sequences,
        heads=shape.num_attention_heads,
        mask=rows.mask,
        dropout_prob=shape.attention_dropout,
    )
    return step.linear(x, shape.hidden_size, "o_proj", has_bias=shape.attention_bias and not is_qwen)


def gated(step: Step, x: Value, width: int, kind: str, *, has_bias: bool) -> Value:
    """down(act(gate(x))·up(x))."""
    inner = step.multiply(
        step.activation(step.linear(x, width, "gate_proj", has_bias=has_bias), kind),
        step.linear(x, width, "up_proj", has_bias=has_bias),
    )
    return step.linear(inner, x.width, "down_proj", has_bias=has_bias)


# ---- BART


def bart_encoder_layer(step: Step, x: Value, shape: Shape, rows: Rows) -> Value:
    """Attention and feed-forward, each with dropout, its residual and a layer norm behind it."""
    residual = x
    with step.within("self_attn"):
        x = bart_attention(step, x, x, shape, shape.encoder_attention_heads, rows.sequences, rows.mask)
    x = step.add(residual, step.dropout(x, shape.dropout))
    x = step.layer_norm(x, "self_attn_layer_norm")
    return _bart_feed_forward(step, x, shape, shape.encoder_ffn_dim)


def bart_decoder_layer(
    step: Step, x: Value, encoded: Value, shape: Shape, rows: Rows, encoded_mask: Storage | None
) -> Value:
    """As the encoder's, with attention to the encoded prompt in the middle."""
    residual = x
    with step.within("self_attn"):
        x = bart_attention(step, x, x, shape, shape.decoder_attention_heads, rows.sequences, rows.mask)
    x = step.add(residual, step.dropout(x, shape.dropout))
    x = step.layer_norm(x, "self_attn_layer_norm")
    residual = x
    with step.within("encoder_attn"):
        x = bart_attention(step, x, encoded, shape, shape.decoder_attention_heads, rows.sequences, encoded_mask)
    x = step.add(residual, step.dropout(x, shape.dropout))
    x = step.layer_norm(x, "encoder_attn_layer_norm")
    return _bart_feed_forward(step, x, shape, shape.decoder_ffn_dim)


def bart_attention(
    step: Step, x: Value, other: Value, shape: Shape, heads: int, sequences: int, mask: Storage | None
) -> Value:
    """Attention of `x` to `other`, itself or what was encoded; every linear layer has a bias."""
    query = step.linear(x, shape.d_model, "q_proj", has_bias=True)
    key = step.linear(other, shape.d_model, "k_proj", has_bias=True)
    value = step.linear(other, shape.d_model, "v_proj", has_bias=True)
    prob = shape.attention_dropout
    x = step.attention(query, key, value, sequences=sequences, heads=heads, mask=mask, dropout_prob=prob)
    return step.linear(x, shape.d_model, "out_proj", has_bias=True)


def _bart_feed_forward(step: Step, x: Value, shape: Shape, width: int) -> Value:
    residual = x
    x = step.activation(step.linear(x, width, "fc1", has_bias=True), shape.activation_function)
    x = step.dropout(x, shape.activation_dropout)
    x = step.linear(x, shape.d_model, "fc2", has_bias=True)
    x = step.add(residual, step.dropout(x, shape.dropout))
    return step.layer_norm(x, "final_layer_norm")


# ---- T5


def t5_layer(
    step: Step,
    x: Value,
    shape: Shape,
    rows: Rows,
    bias: Value,
    encoded: Value | None = None,
    encoded_bias: Value | None = None,
    encoded_mask: Storage | None = None,
) -> Value:
    """Attention with a position bias, in the decoder also to the encoded prompt, and feed-forward, behind RMS norms."""
    with step.within("layer.0"):
        normed = step.rms_norm(x, "layer_norm", is_t5=True)
        with step.within("SelfAttention"):
            normed = _t5_attention(step, normed, normed, shape, rows, bias, rows.mask)
        x = step.add(x, step.dropout(normed, shape.dropout_rate))
        del normed
    if encoded is not None and encoded_bias is not None:
        with step.within("layer.1"):
            normed = step.rms_norm(x, "layer_norm", is_t5=True)
            with step.within("EncDecAttention"):
                normed = _t5_attention(step, normed, encoded, shape, rows, encoded_bias, encoded_mask)
            x = step.add(x, step.dropout(normed, shape.dropout_rate))
            del normed
    with step.within("layer.1" if encoded is None else "layer.2"):
        normed = step.rms_norm(x, "layer_norm", is_t5=True)
        with step.within("DenseReluDense"):
            normed = _t5_feed_forward(step, normed, shape)
        return step.add(x, step.dropout(normed, shape.dropout_rate))


def _t5_attention(
    step: Step, x: Value, other: Value, shape: Shape, rows: Rows, bias: Value, mask: Storage | None
) -> Value:
    width = shape.num_heads * shape.d_kv
    query = step.linear(x, width, "q")
    key, value = step.linear(other, width, "k"), step.linear(other, width, "v")
    x = step.attention(
        query,
        key,
        value,
        sequences=rows.sequences,
        heads=shape.num_heads,
        mask=mask,
        mask_learns=bias,
        dropout_prob=shape.dropout_rate,
    )
    return step.linear(x, shape.d_model, "o")


def _t5_feed_forward(step: Step, x: Value, shape: Shape) -> Value:
    first, _, kind = shape.feed_forward_proj.rpartition("-")
    kind = "gelu_new" if shape.feed_forward_proj == "gated-gelu" else kind
    if first == "gated":
        inner = step.activation(step.linear(x, shape.d_ff, "wi_0"), kind)
        inner = step.multiply(inner, step.linear(x, shape.d_ff, "wi_1"))
    else:
        inner = step.activation(step.linear(x, shape.d_ff, "wi"), kind)
    return step.linear(step.dropout(inner, shape.dropout_rate), shape.d_model, "wo")
