"""Operations without weights, each with what it allocates and what it saves.

Letters as in the docstrings: M rows (tokens of all sequences), D width, w bytes a number. What is said of torch here
and in the modules beside was read from what its operations make: a linear layer saves its input only where its weight
is trained, a multiplication saves a factor only where the other one needs a gradient, RMS norm computes in float32.
"""

from dataclasses import dataclass, field

from lightbox.adapters.memory.setting import FLOAT32, Setting
from lightbox.adapters.memory.tape import Storage, Tape, Value


@dataclass
class Elementwise(Tape):
    """A tape with the operations that own no weights."""

    setting: Setting = field(default_factory=Setting)

    def copied(self, x: Value, part: str | None = None) -> Value:
        """A copy: M·D·w."""
        return self.run([x], (x.rows, x.width, x.item), part=part, passes_on=True)

    def cast(self, x: Value, item: int, part: str | None = None) -> Value:
        """The same numbers in another dtype; nothing where it has that already."""
        return x if x.item == item else self.run([x], (x.rows, x.width, item), part=part)

    def add(self, x: Value, y: Value) -> Value:
        """x + y: M·D·w, nothing saved, the gradient is handed on to both."""
        return self.run([x, y], (x.rows, x.width, max(x.item, y.item)), passes_on=True)

    def multiply(self, x: Value, y: Value) -> Value:
        """x·y: saves each factor whose partner needs a gradient."""
        saves = [one for one, other in ((x, y), (y, x)) if other.needs_grad]
        return self.run([x, y], (x.rows, x.width, max(x.item, y.item)), saves=saves)

    def scaled(self, x: Value) -> Value:
        """x times something that is there already: M·D·w, nothing saved."""
        return self.run([x], (x.rows, x.width, x.item))

    def activation(self, x: Value, kind: str) -> Value:
        """GELU and SiLU save their input, ReLU its result; quick GELU is x·sigmoid(1.702 x), and saves both factors."""
        shape = (x.rows, x.width, x.item)
        if kind == "quick_gelu":
            inner = self.run([x], shape)
            inner = self.run([inner], shape, saves_result=True)
            return self.multiply(x, inner)
        if kind == "gelu_new":
            return self._gelu_new(x)
        if kind == "relu":
            return self.run([x], shape, saves_result=True)
        return self.run([x], shape, saves=[x])

    def _gelu_new(self, x: Value) -> Value:
        """0.5·x·(1 + tanh(c·(x + 0.044715·x³))), one tensor after another."""
        shape = (x.rows, x.width, x.item)
        cubed = self.scaled(self.run([x], shape, saves=[x]))
        inner = self.scaled(self.add(x, cubed))
        del cubed
        inner = self.run([inner], shape, saves_result=True)
        inner = self.run([inner], shape, passes_on=True)
        return self.multiply(self.scaled(x), inner)

    def dropout(self, x: Value, prob: float) -> Value:
        """A CPU keeps the noise as numbers, M·D·w; a GPU one byte each, M·D."""
        if prob == 0:
            return x
        noise = self.allocate(x.rows * x.width * (1 if self.setting.is_cuda else x.item))
        return self.run([x], (x.rows, x.width, x.item), saves=[noise])

    def rope(self, x: Value, tables: Storage | None, *, in_float32: bool = False) -> Value:
        """x·cos + turned(x)·sin: nothing saved but the tables, which all layers share; four tensors on the way."""
        item = x.item
        x = self.cast(x, FLOAT32) if in_float32 else x
        shape, half = (x.rows, x.width, x.item), x.size // 2
        kept = [] if tables is None else [tables]
        straight = self.run([x], shape, saves=kept)
        turned = self.run([self.run([x], shape, temporary=half, temporary_back=half)], shape, saves=kept)
        result = self.add(straight, turned)
        del straight, turned, x
        return self.cast(result, item)
