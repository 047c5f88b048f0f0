"""Norms and attention, and with them everything that a training step does."""

from dataclasses import dataclass

from lightbox.adapters.memory.linear import Linear
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.tape import Storage, Value


@dataclass
class Step(Linear):
    """A training step on sizes, with all operations that the models are made of."""

    def rms_norm(
        self, x: Value, name: str, *, width: int | None = None, offset: bool = False, is_t5: bool = False
    ) -> Value:
        """x/rms(x)·g in float32: saves x in float32 (a copy of M·D·4 where w is 2), x/rms(x) where g learns.

        The backward pass holds four more tensors of M·D·4: of the mean, the square, and their product.

        Args:
            width: of what is normed together, None for the whole width (a head's width for norms of queries and keys).
            offset: True for Gemma, whose factor is 1 + g and is applied before the result is cast back.
            is_t5: True for T5, which keeps x as it is beside its float32 copy, and gives the dtype of g.
        """
        learned = self.weight(name + ".weight", width or x.width, group="norms" if self.is_language else "")
        wide = self.cast(x, FLOAT32)
        shape = (x.rows, x.width, FLOAT32)
        saves = [x, wide] if is_t5 else [wide]
        normed = self.run([wide], shape, saves=saves, temporary=wide.size, temporary_back=4 * wide.size)
        del wide
        if offset:
            normed = self.run([normed], shape, saves=[normed] if learned else [], weights=learned)
            return self.cast(normed, x.item)
        normed = self.cast(normed, self.setting.item if is_t5 else x.item)
        back = normed.size if learned else 0
        shape = (x.rows, x.width, normed.item)
        return self.run([normed], shape, saves=[normed] if learned else [], weights=learned, temporary_back=back)

    def layer_norm(self, x: Value, name: str) -> Value:
        """Mean and spread removed, in one kernel: saves x, M·D·w, and two numbers a row."""
        group = "norms" if self.is_language else ""
        learned = self.weight(name + ".weight", x.width, group=group) + self.weight(
            name + ".bias", x.width, group=group
        )
        statistics = self.allocate(2 * FLOAT32 * x.rows)
        return self.run([x], (x.rows, x.width, x.item), saves=[x, statistics], weights=learned)

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        *,
        sequences: int,
        heads: int,
        mask: Storage | None = None,
        mask_learns: Value | None = None,
        dropout_prob: float = 0.0,
    ) -> Value:
        """Attention of t queries to s keys in k heads, for b sequences.

        Fused: saves queries, keys, values, the result, and k numbers a row; with a mask, keys and values repeated to k
        heads, and the mask in full, b·t·s·w. Otherwise (eager; on a CPU also with dropout, or where the mask learns)
        the scores b·k·t·s are saved too, and twice more with dropout; torch's plain form has them in float32.

        Args:
            sequences: b.
            heads: k.
            mask: memory of a mask that all heads share.
            mask_learns: a position bias k·t·s that is part of the mask.
            dropout_prob: of the scores.
        """
        if (mask is not None or mask_learns is not None) and key.width < query.width:
            key, value = (self.run([one], (one.rows, query.width, one.item)) for one in (key, value))
        learns = mask_learns is not None and mask_learns.needs_grad
        if self.setting.attention == "eager" or (not self.setting.is_cuda and (dropout_prob or learns)):
            return self._scores(query, key, value, sequences, heads, mask, mask_learns, dropout_prob)
        kept = [query, key, value]
        t, s = query.rows // sequences, key.rows // sequences
        if mask is not None:
            kept.append(self.allocate(sequences * t * s * query.item))
        if mask_learns is not None:
            kept.append(self.allocate(sequences * heads * t * s * query.item))
        kept.append(self.allocate(query.rows * heads * FLOAT32))
        # a GPU's kernel sums the gradient of the queries in a tensor; a CPU's works in buffers that differ by processor
        scratch = query.rows * query.width * FLOAT32 if self.setting.is_cuda else 0
        return self.run(
            [query, key, value],
            (query.rows, query.width, query.item),
            saves=kept,
            saves_result=True,
            temporary_back=scratch,
        )

    def _scores(
        self,
        query: Value,
        key: Value,
        value: Value,
        sequences: int,
        heads: int,
        mask: Storage | None,
        bias: Value | None,
        dropout_prob: float,
    ) -> Value:
        item, is_plain = query.item, self.setting.attention != "eager"
        t, s = query.rows // sequences, key.rows // sequences
        added = []
        if mask is not None or bias is not None:
            rows = (heads if bias is not None else 1) * (1 if mask is None else sequences) * t
            added.append(self.run([] if bias is None else [bias], (rows, s, item)))
        if is_plain:  # torch's own plain form computes 16-bit values in float32
            query, key, value = (self.cast(one, FLOAT32) for one in (query, key, value))
            added = [*added, *(self.cast(one, FLOAT32) for one in added[:1] if item != FLOAT32)]
        shape = (sequences * heads * t, s, query.item)
        query, key = self.scaled(query), self.scaled(key)
        value = self.copied(value)
        scores = self.run([query, key], shape, saves=[query, key])
        del query, key
        if added:
            scores = self.run([scores, added[-1]], shape, in_place=True, passes_on=True)
        scores = self.run([scores], shape, saves_result=True)
        scores = self.dropout(scores, dropout_prob)
        result = self.run([scores, value], (sequences * t, value.width, value.item), saves=[scores, value])
        return self.copied(self.cast(result, item))
