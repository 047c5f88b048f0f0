"""Weights and linear layers: plain, quantised, with an adapter beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lightbox.adapters.memory.elementwise import Elementwise
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.tape import Storage, Value

BLOCK, NESTED_BLOCK = 64, 256
DEQUANTISED, COPIES = "dequantised weights", "adapter copies"


@dataclass(frozen=True)
class Weight:
    """Some numbers of the model: the part they belong to, whether they learn, and their bytes as stored."""

    group: str
    count: int
    is_trained: bool
    size: int


@dataclass
class Linear(Elementwise):
    """A tape that knows where in the model it is and what weights there are.

    Args:
        weights: what the model has, once by name.
        adapters: numbers that are added to it and learn, by name.
        scope: path of the module that is being run.
        group: part of the model that it belongs to.
        is_idle: True for weights that nothing depends on, so that they get no gradient.
    """

    weights: dict[str, Weight] = field(default_factory=dict)
    adapters: dict[str, int] = field(default_factory=dict)
    scope: str = ""
    group: str = "linears"
    is_idle: bool = False

    @contextmanager
    def within(self, scope: str, group: str | None = None) -> Iterator[None]:
        """Weights made in here are named below `scope`, and belong to `group` where one is given."""
        before = self.scope, self.group
        self.scope = f"{self.scope}.{scope}" if self.scope else scope
        self.group = group or self.group
        try:
            yield
        finally:
            self.scope, self.group = before

    @property
    def is_language(self) -> bool:
        """True inside the layers of the language model, which are what is quantised and adapted."""
        return self.group == "linears"

    @property
    def is_copied(self) -> bool:
        """True in a projector that is trained in full beside a frozen base: a float32 copy of it learns."""
        return self.group == "projector" and self.setting.projector == "full" and not self.setting.trains_all

    def weight(self, name: str, count: int, *, group: str = "", size: int | None = None) -> list[tuple[str, int]]:
        """Note a weight of `count` numbers; its name and the bytes of its gradient where it learns, else nothing."""
        path = f"{self.scope}.{name}".lstrip(".")
        learns = self.setting.trains_all and not self.is_idle
        size = count * self.setting.item if size is None else size
        self.weights.setdefault(path, Weight(group or self.group, count, learns, size))
        if self.is_copied:
            self.adapters[path] = count
            return [(path, count * FLOAT32)]
        return [(path, count * self.setting.item)] if learns else []

    def linear(self, x: Value, width: int, name: str, *, has_bias: bool = False) -> Value:
        """y = x W' + b, with an adapter where the target pattern names it.

        Forward: M·out·w. Saved: the input, M·in·w, only where W learns (and with int8). Quantised: W in full, in·out·w,
        while it is multiplied, forward and backward.
        """
        setting, path = self.setting, f"{self.scope}.{name}"
        if self._is_kept(name):
            x = self.cast(x, setting.kept_item)
        is_target = self.is_language and setting.targets is not None and setting.targets.fullmatch(path) is not None
        if not is_target and not (self.group == "projector" and setting.projector == "lora"):
            return self._base(x, width, name, has_bias=has_bias)
        self.adapters |= {f"{path}.lora_A": setting.rank * x.width, f"{path}.lora_B": setting.rank * width}
        if setting.use_dora:
            self.adapters[f"{path}.lora_magnitude"] = width
        if setting.is_fused and setting.dropout_prob == 0 and not setting.use_dora:
            return self._fused(x, width, name, has_bias=has_bias)
        return self._added(x, width, name, has_bias=has_bias)

    def _base(self, x: Value, width: int, name: str, *, has_bias: bool) -> Value:
        """The layer without an adapter."""
        learned = self._learned(x.width * width, width, name, has_bias=has_bias)
        dequantised = self._dequantised(x, width, name)
        is_eight_bit = self.setting.quant == "int8" and self._is_quantised(name)
        if is_eight_bit and self.clinging is not None:
            self.clinging.append(x.storage)  # bitsandbytes keeps it where checkpointing does not reach
        return self.run(
            [x],
            (x.rows, width, x.item),
            saves=[x] if learned or is_eight_bit else [],
            temporary=dequantised,
            temporary_back=dequantised,
            temporary_part=DEQUANTISED,
            weights=learned,
        )

    def _learned(self, count: int, width: int, name: str, *, has_bias: bool) -> list[tuple[str, int]]:
        """Note matrix and bias; what of them learns, with the bytes of its gradient."""
        if self._is_quantised(name):
            size = self._stored(count, width)
        else:
            size = count * (self.setting.kept_item if self._is_kept(name) else self.setting.item)
        learned = self.weight(name + ".weight", count, size=size)
        if has_bias:
            learned += self.weight(name + ".bias", width, group="norms" if self.is_language else "")
        return learned

    def _dequantised(self, x: Value, width: int, name: str) -> int:
        """Bytes of a quantised matrix while it is multiplied: in the dtype of the input, with NF4 also its scales."""
        if not self._is_quantised(name):
            return 0
        count = x.width * width
        if self.setting.quant == "int8" and self.setting.is_cuda:
            return 3 * x.rows * x.width  # the input in 16 bit and in 8
        return count * x.item + (FLOAT32 * count // BLOCK if self.setting.quant == "nf4" else 0)

    def _is_kept(self, name: str) -> bool:
        """True for a layer that is never quantised, T5's `wo`."""
        return self.is_language and name in self.setting.kept

    def _is_quantised(self, name: str) -> bool:
        return self.setting.quant != "none" and self.is_language and not self._is_kept(name)

    def _stored(self, count: int, rows: int) -> int:
        """Bytes of a quantised matrix: NF4 with nested scales and their tables, or int8 with a float32 a row."""
        if self.setting.quant == "int8":
            return count + FLOAT32 * rows
        tables = FLOAT32 * (16 + 256 + 1)  # the 16 values of NF4, the 256 of the scales, their offset
        blocks = -(-count // BLOCK)
        return -(-count // 2) + blocks + FLOAT32 * -(-blocks // NESTED_BLOCK) + tables

    def _adapter_gradients(self, name: str, n_in: int, n_out: int) -> tuple[tuple[str, int], tuple[str, int]]:
        rank, item = self.setting.rank, self.setting.adapter_item
        path = f"{self.scope}.{name}"
        return (f"{path}.lora_A", rank * n_in * item), (f"{path}.lora_B", rank * n_out * item)

    def _added(self, x: Value, width: int, name: str, *, has_bias: bool) -> Value:
        """y = W x + s·B(A(dropout(x))), as peft computes it, one tensor after another.

        Saved: the input in the adapter's dtype, M·in·a; where that is another dtype than the value's, each linear layer
        has its own copy. M·r·a of A's result.
        """
        setting = self.setting
        result = self._base(x, width, name, has_bias=has_bias)
        is_nf4 = setting.quant == "nf4" and self._is_quantised(name)
        if is_nf4:
            result = self.copied(result)  # peft clones the result of a 4-bit layer
        wide = self.cast(x, setting.adapter_item, part=COPIES)
        if setting.dropout_prob:
            wide = self.dropout(wide, setting.dropout_prob)
        # DoRA multiplies A and B out over an identity and takes the norm of their sum with W, in float32
        square = self.allocate(FLOAT32 * x.width * (x.width + 4 * width), DEQUANTISED) if setting.use_dora else None
        down, up = self._adapter_gradients(name, x.width, width)
        narrow = self.run([wide], (x.rows, setting.rank, wide.item), saves=[wide], weights=[down])
        del wide
        addition = self.run([narrow], (x.rows, width, narrow.item), saves=[narrow], weights=[up])
        del narrow
        if setting.use_dora:
            addition = self._rescaled(result, addition, name, has_bias=has_bias)
            del square
        else:
            addition = self.scaled(addition)
        if is_nf4:
            return self.add(result, self.cast(addition, result.item))
        item = result.item
        return self.cast(self.add(result, addition), item)

    def _rescaled(self, base: Value, addition: Value, name: str, *, has_bias: bool) -> Value:
        """(m/n - 1)·base + m/n·addition·s: saves both, since the magnitude m learns."""
        shape, magnitude = (
            (base.rows, base.width, FLOAT32),
            (f"{self.scope}.{name}.lora_magnitude", FLOAT32 * base.width),
        )
        if has_bias:
            base = self.copied(base)
        straight = self.run([base], shape, saves=[base], weights=[magnitude])
        addition = self.scaled(self.run([addition], shape, saves=[addition], weights=[magnitude]))
        return self.add(straight, addition)

    def _fused(self, x: Value, width: int, name: str, *, has_bias: bool) -> Value:
        """The same as one step, written into the base's result.

        Saved: the input, M·in·w, once for all layers that read it; A's result, M·r·w; A and B in the dtype of the
        input where they have another. Backward W is dequantised once more.
        """
        setting, count = self.setting, x.width * width
        rank, item = setting.rank, x.item
        self._learned(count, width, name, has_bias=has_bias)
        dequantised = self._dequantised(x, width, name)
        saved: list[Value | Storage] = [x, self.allocate(x.rows * rank * item)]
        if item != setting.adapter_item:
            saved.append(self.allocate(rank * (x.width + width) * item, COPIES))
        return self.run(
            [x],
            (x.rows, width, item),
            saves=saved,
            temporary=dequantised,
            temporary_back=dequantised + x.rows * rank * item,
            temporary_part=DEQUANTISED,
            weights=self._adapter_gradients(name, x.width, width),
        )
