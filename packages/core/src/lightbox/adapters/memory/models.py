"""One training step of a model of each family on sizes: tower, projector, language model, head and loss."""

from lightbox.adapters.memory import decoders, shapes
from lightbox.adapters.memory.decoders import Rows
from lightbox.adapters.memory.parts import INPUTS, INTEGER, LOGITS, Load, embedded, pair_mask, placed, run_layer
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.shapes import Config, Shape
from lightbox.adapters.memory.step import Step
from lightbox.adapters.memory.tape import Storage, Value
from lightbox.backbones.families import Family


def forward(step: Step, config: Config, family: Family, load: Load) -> Value:
    """The loss of a step, as one number; weights are noted on the way."""
    if family.name == "t5":
        shape = shapes.whole(config)
        hidden = _t5(step, shape, load)
        return _loss(step, hidden, load, shape.vocab_size, family.head, is_tied=True, table="shared.weight")
    text = shapes.text_of(config)
    body = _florence if family.name == "florence2" else _causal
    hidden = body(step, config, text, family, load)
    is_tied = shapes.is_tied(config)
    return _loss(step, hidden, load, text.vocab_size, family.head, is_tied=is_tied, table=family.embeddings + ".weight")


def _loss(step: Step, hidden: Value, load: Load, vocabulary: int, head: str, *, is_tied: bool, table: str) -> Value:
    """Rows that carry a label, their logits, in float32, and the cross-entropy: n·V·(w + 4 + 4), backward n·V·12."""
    chosen = load.sequences * load.supervised
    with step.counted_as(LOGITS):
        rows = step.run([hidden], (chosen, hidden.width, hidden.item))
        del hidden
        count = vocabulary * rows.width
        if is_tied:
            learned = [(table, count * step.setting.item)] if step.setting.trains_all else []
        else:
            with step.within(head, "head"):
                learned = step.weight("weight", count)
        logits = step.run([rows], (chosen, vocabulary, rows.item), saves=[rows] if learned else [], weights=learned)
        del rows
        wide = step.cast(logits, FLOAT32)
        logps = step.run([wide], (chosen, vocabulary, FLOAT32), saves_result=True)
        del wide
        return step.run([logps], (1, 1, FLOAT32))


def _causal(step: Step, config: Config, text: Shape, family: Family, load: Load) -> Value:
    item = step.setting.item
    step.hold(3 * INTEGER * load.rows, INPUTS)
    x, layer_inputs = placed(step, config, text, family, load)
    is_gemma = family.name == "gemma3"
    mask = decoders.causal_mask(step, load.sequences, load.tokens) if load.is_padded or is_gemma else None
    places = load.rows if family.name.startswith("qwen") else load.tokens  # one table for all rows, but for Qwen's
    tables = step.allocate(2 * item * places * text.head_width, INPUTS)
    rows = Rows(load.sequences, load.tokens, mask, tables)
    layer = decoders.gemma_layer if is_gemma else decoders.llama_layer
    with step.within(family.language, "linears"):
        for index in range(text.num_hidden_layers):
            x = run_layer(step, load, f"layers.{index}", [x], lambda x=x: layer(step, x, text, rows))
        x = step.rms_norm(x, "norm", offset=is_gemma)
    del layer_inputs
    return x


def _florence(step: Step, config: Config, text: Shape, family: Family, load: Load) -> Value:
    step.hold(3 * INTEGER * load.rows, INPUTS)
    x, layer_inputs = placed(step, config, text, family, load)
    encoded = _bart_stack(step, text, load, f"{family.language}.encoder", x, load.tokens, None, None)
    del x, layer_inputs
    encoded_mask = pair_mask(step, load, load.supervised, load.tokens)
    count = load.sequences * load.supervised
    x = embedded(step, count, text.vocab_size, text.d_model, family.embeddings)
    x = _bart_stack(step, text, load, f"{family.language}.decoder", x, load.supervised, encoded, encoded_mask)
    return x


def _bart_stack(
    step: Step,
    text: Shape,
    load: Load,
    scope: str,
    x: Value,
    length: int,
    encoded: Value | None,
    encoded_mask: Storage | None,
) -> Value:
    """Positions, a norm, and the layers of the encoder or, with what was encoded, of the decoder."""
    with step.within(scope, "linears"):
        with step.within("embed_positions", "embeddings"):
            learned = step.weight("weight", (text.max_position_embeddings + 2) * text.d_model)
        places = step.run([], (x.rows, x.width, x.item), weights=learned)
        x = step.add(x, places)
        del places
        x = step.layer_norm(x, "layernorm_embedding")
        x = step.dropout(x, text.dropout)
        mask = pair_mask(step, load, length, length) if encoded is None else None
        rows = Rows(load.sequences, length, mask)
        for index in range(text.encoder_layers if encoded is None else text.decoder_layers):
            if encoded is None:
                x = run_layer(
                    step, load, f"layers.{index}", [x], lambda x=x: decoders.bart_encoder_layer(step, x, text, rows)
                )
            else:
                x = run_layer(
                    step,
                    load,
                    f"layers.{index}",
                    [x, encoded],
                    lambda x=x: decoders.bart_decoder_layer(step, x, encoded, text, rows, encoded_mask),
                )
    return x


def _t5(step: Step, shape: Shape, load: Load) -> Value:
    count = load.sequences * load.supervised
    step.hold(2 * INTEGER * (load.rows + count), INPUTS)
    x = embedded(step, load.rows, shape.vocab_size, shape.d_model, "shared.weight")
    encoded = _t5_stack(step, shape, load, "encoder", x, load.tokens, None)
    del x
    x = embedded(step, count, shape.vocab_size, shape.d_model, "shared.weight")
    x = _t5_stack(step, shape, load, "decoder", x, load.supervised, encoded)
    return step.scaled(x)


def _t5_stack(step: Step, shape: Shape, load: Load, scope: str, x: Value, length: int, encoded: Value | None) -> Value:
    """The layers of the encoder or, with what was encoded, of the decoder, with position biases shared by them."""
    item, heads = step.setting.item, shape.num_heads
    with step.within(scope, "linears"):
        x = step.dropout(x, shape.dropout_rate)
        rows = Rows(load.sequences, length, pair_mask(step, load, length, length))
        with step.within("block.0.layer.0.SelfAttention.relative_attention_bias", "norms"):
            learned = step.weight("weight", shape.relative_attention_num_buckets * heads)
        bias = step.run([], (heads * length, length, item), weights=learned)
        reads, other, other_mask = [], None, None
        if encoded is not None:
            other = step.run([], (heads * length, load.tokens, item))
            other_mask = pair_mask(step, load, length, load.tokens)
            reads = [encoded]
        count = shape.num_layers if encoded is None else shape.num_decoder_layers or shape.num_layers
        for index in range(count):
            x = run_layer(
                step,
                load,
                f"block.{index}",
                [x, *reads],
                lambda x=x: decoders.t5_layer(step, x, shape, rows, bias, encoded, other, other_mask),
            )
        x = step.rms_norm(x, "final_layer_norm", is_t5=True)
        return step.dropout(x, shape.dropout_rate)
