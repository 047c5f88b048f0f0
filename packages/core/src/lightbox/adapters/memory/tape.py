"""A training step on sizes alone: what is allocated, saved for the backward pass and freed, in the order of torch.

A value is freed when the last name of it goes, as a tensor is, so the functions that describe a model keep their names
alive as long as the model's own code does. An operation that needs a gradient leaves a node with what it saved; the
backward pass takes the nodes from the last to the first, gives each its gradient and drops what it saved. The highest
sum on the way is the peak, known by part.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


class Meter:
    """Live bytes now and at their highest, by part."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.parts: dict[str, int] = {}
        self.at_peak: dict[str, int] = {}

    def change(self, part: str, size: int) -> None:
        """Add `size` bytes to `part`; less than 0 for a free."""
        self.now += size
        self.parts[part] = self.parts.get(part, 0) + size
        if self.now > self.peak:
            self.peak = self.now
            self.at_peak = dict(self.parts)


class Storage:
    """Memory of one value; Python's reference count frees it, at once."""

    __slots__ = ("meter", "part", "size")

    def __init__(self, meter: Meter, part: str, size: int) -> None:
        self.meter, self.part, self.size = meter, part, size
        meter.change(part, size)

    def __del__(self) -> None:
        self.meter.change(self.part, -self.size)

    def move(self, part: str) -> None:
        """Count the memory to another part from now on."""
        self.meter.parts[self.part] -= self.size
        self.meter.parts[part] = self.meter.parts.get(part, 0) + self.size
        self.part = part


class Value:
    """One tensor: `rows` times `width` numbers of `item` bytes; `key` is what its gradient is known by."""

    __slots__ = ("item", "key", "needs_grad", "rows", "storage", "width")

    def __init__(self, storage: Storage, rows: int, width: int, item: int, *, needs_grad: bool, key: int) -> None:
        self.storage, self.rows, self.width, self.item = storage, rows, width, item
        self.needs_grad, self.key = needs_grad, key

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows * self.width * self.item


@dataclass
class Node:
    """What an operation leaves for the backward pass.

    Args:
        out: key of its result.
        inputs: key and bytes of each input that needs a gradient.
        saved: what it keeps until then.
        part: what its gradients count to.
        temporary: bytes beside the gradients while it runs.
        temporary_part: what those count to.
        weights: name and bytes of each trained weight that gets a gradient.
        passes_on: True where the gradient of the result is that of every input, without a copy.
        again: a checkpointed layer, to be run again with its nodes on the tape.
    """

    out: int
    inputs: Sequence[tuple[int, int]]
    saved: list[Storage]
    part: str
    temporary: int = 0
    temporary_part: str = ""
    weights: Sequence[tuple[str, int]] = ()
    passes_on: bool = False
    again: Callable[[], Value] | None = None


@dataclass
class Tape:
    """The step so far.

    Args:
        meter: what is in memory.
        part: what new values count to.
        records: False where no graph is kept.
        nodes: of the graph, in the order in which they came.
        gradients: under way in the backward pass, by key of the value.
        weight_gradients: by name of the weight.
        held: what lives as long as the step.
        clinging: in the first run of a checkpointed layer, where operations put what they keep all the same.
        keys: how many were given out.
    """

    meter: Meter = field(default_factory=Meter)
    part: str = "layers"
    records: bool = True
    nodes: list[Node] = field(default_factory=list)
    gradients: dict[int, Storage] = field(default_factory=dict)
    weight_gradients: dict[str, Storage] = field(default_factory=dict)
    held: list[Storage] = field(default_factory=list)
    clinging: list[Storage] | None = None
    keys: int = 0

    def new_key(self) -> int:
        """A key that no value has yet."""
        self.keys += 1
        return self.keys

    def allocate(self, size: int, part: str | None = None) -> Storage:
        """Memory of `size` bytes in `part`, None for the current one."""
        return Storage(self.meter, part or self.part, size)

    def hold(self, size: int, part: str) -> None:
        """Memory that lives as long as the step: weights, states, the batch."""
        self.held.append(self.allocate(size, part))

    def given(self, rows: int, width: int, item: int, part: str) -> Value:
        """An input of the model; the batch that it is part of lives as long as the step."""
        self.hold(rows * width * item, part)
        return Value(self.held[-1], rows, width, item, needs_grad=False, key=self.new_key())

    def run(
        self,
        inputs: Sequence[Value],
        shape: tuple[int, int, int],
        *,
        saves: Sequence[Value | Storage] = (),
        saves_result: bool = False,
        temporary: int = 0,
        temporary_back: int = 0,
        temporary_part: str | None = None,
        weights: Sequence[tuple[str, int]] = (),
        passes_on: bool = False,
        in_place: bool = False,
        part: str | None = None,
    ) -> Value:
        """One operation.

        Args:
            inputs: what it reads and may need a gradient of.
            shape: rows, width and bytes a number of its result.
            saves: values that the backward pass needs.
            saves_result: True where it needs the result too.
            temporary: bytes beside the result while it runs forward.
            temporary_back: bytes beside the gradients while it runs backward.
            temporary_part: part that temporary bytes count to, None for the current one.
            weights: name and bytes of each weight that it trains.
            passes_on: see `Node`.
            in_place: True where the result is the first input's memory, or a view of it.
            part: part of the result, None for the current one.
        """
        rows, width, item = shape
        needs_grad = self.records and (bool(weights) or any(value.needs_grad for value in inputs))
        scratch = self.allocate(temporary, temporary_part) if temporary else None
        storage = inputs[0].storage if in_place else self.allocate(rows * width * item, part)
        del scratch
        result = Value(storage, rows, width, item, needs_grad=needs_grad, key=self.new_key())
        if needs_grad:
            saved = [kept.storage if isinstance(kept, Value) else kept for kept in saves]
            node = Node(
                out=result.key,
                inputs=[(value.key, value.size) for value in inputs if value.needs_grad],
                saved=[*saved, storage] if saves_result else saved,
                part=self.part,
                temporary=temporary_back,
                temporary_part=temporary_part or self.part,
                weights=weights,
                passes_on=passes_on,
            )
            self.nodes.append(node)
        return result

    def checkpointed(self, layer: Callable[[], Value], reads: Sequence[Value]) -> Value:
        """Run a layer without keeping anything but what it reads, and run it again in the backward pass."""
        if not self.records:
            return layer()
        self.clinging = kept = [value.storage for value in reads]
        with self.without_graph():
            result = layer()
        self.clinging = None
        result.needs_grad = True
        inputs = [(value.key, value.size) for value in reads if value.needs_grad]
        self.nodes.append(Node(result.key, inputs, kept, self.part, again=layer))
        return result

    @contextmanager
    def without_graph(self) -> Iterator[None]:
        """No gradients in here: nothing is saved."""
        before, self.records = self.records, False
        try:
            yield
        finally:
            self.records = before

    @contextmanager
    def counted_as(self, part: str) -> Iterator[None]:
        """Values made in here count to `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def backward(self, loss: Value) -> None:
        """The whole backward pass; gradients of weights stay."""
        self.gradients[loss.key] = self.allocate(loss.size)
        self._unwind(0)

    def _unwind(self, depth: int) -> None:
        while len(self.nodes) > depth:
            node = self.nodes.pop()
            gradient = self.gradients.pop(node.out, None)
            if gradient is None:
                continue
            if node.again is not None:
                depth_now = len(self.nodes)
                result = node.again()
                self.gradients[result.key] = gradient
                del gradient, result
                self._unwind(depth_now)
                continue
            self._step_back(node, gradient)

    def _step_back(self, node: Node, gradient: Storage) -> None:
        scratch = self.allocate(node.temporary, node.temporary_part) if node.temporary else None
        weight_gradients = [self._weight_gradient(name, size) for name, size in node.weights]
        arriving = [(key, gradient if node.passes_on else self.allocate(size, node.part)) for key, size in node.inputs]
        del scratch, gradient, weight_gradients
        node.saved.clear()
        while arriving:
            key, storage = arriving.pop(0)
            before = self.gradients.pop(key, None)
            # a third tensor takes the sum: most gradients are views of a matrix product, which torch does not add into
            self.gradients[key] = storage if before is None else self.allocate(before.size, node.part)

    def _weight_gradient(self, name: str, size: int) -> Storage:
        """The gradient of a weight; where it has one already, the new one is added to it and goes."""
        storage = self.allocate(size, "gradients")
        return self.weight_gradients.setdefault(name, storage)
