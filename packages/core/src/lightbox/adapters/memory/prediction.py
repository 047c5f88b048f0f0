"""Peak memory of a training step, by part, from a config.json alone. No torch, no weights.

The step is run on sizes (see `tape`), so what is in memory together is what the model's own code keeps together. For a
decoder with grouped attention that is checkpointed, with M = batch times tokens, width D, feed-forward width F, L
layers, V tokens in the vocabulary and w bytes a number, the parts come to about the formulas in `PARTS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from lightbox.adapters.memory import models
from lightbox.adapters.memory.linear import COPIES, DEQUANTISED, Weight
from lightbox.adapters.memory.parts import INPUTS, KEPT, LOGITS, VISION, Load
from lightbox.adapters.memory.request import Request, load_of, setting_of
from lightbox.adapters.memory.setting import FLOAT32
from lightbox.adapters.memory.step import Step

GIB = 1024**3
CONTEXT_BYTES = 600 * 1024**2
FRAGMENTED_SHARE = 0.05
STATE_BLOCK, SMALL_STATE = 256, 4096
PARTS = {
    "quantised weights": "0.5159 bytes a weight in NF4 with double quantisation, 1 in int8",
    "language weights": "w bytes a weight that is not quantised, norms and biases too",
    "table and head": "w·V·D, twice where the head is not the table",
    "vision weights": "w bytes a weight of tower and projector",
    "adapters": "4 bytes a number; r·(in + out) numbers for each adapted linear layer",
    "gradients": "4 bytes a number of adapters, or w a weight in full training",
    "optimiser": "8 bytes a number with AdamW, about 2 with 8 bits",
    INPUTS: "the batch, attention masks, tables of positions",
    KEPT: "w·M·D·L with checkpointing: the input of each layer",
    "layers": "about w·M·(12·D + 4·F) for one layer with checkpointing, of every layer without",
    COPIES: "4·M·(6·D + F) where adapters in float32 are not fused; w·r·(in + out) where they are",
    DEQUANTISED: "w·in·out of the largest quantised matrix",
    LOGITS: "n·V·(w + 8), n supervised tokens, backward n·V·12",
    VISION: "features of the tower, and its largest layer while it runs",
    "context": "CUDA's own 0.6 GiB, and 5 % of values for gaps between them; nothing on a CPU",
}
"""Parts of a prediction, in the order of tables -> their formula."""
_WEIGHTS = {
    "linears": "language weights",
    "norms": "language weights",
    "embeddings": "table and head",
    "head": "table and head",
    "vision": "vision weights",
    "projector": "vision weights",
}


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


def predict(request: Request) -> MemoryReport:
    """Run one step on sizes and say what is in memory at its peak.

    The model's state is that of the second step and later ones: moments of the optimiser exist. Not counted: rows of
    new tokens, and what an evaluation or a checkpoint adds.

    Raises:
        RequestError: a config without a tower's sizes, or with a part whose layers are not known.
    """
    setting, load = setting_of(request), load_of(request)
    bare = Step(setting=setting)
    with bare.without_graph():
        models.forward(bare, request.config, request.family, Load(1, 4, 1, visual=1, patches=4, image_px=64))
    step = Step(setting=setting)
    trained = _hold(step, bare, request)
    step.backward(models.forward(step, request.config, request.family, load))
    _update(step, bare, request)
    parts = {part: step.meter.at_peak.get(part, 0) for part in PARTS}
    if request.device == "cuda":
        values = sum(size for part, size in parts.items() if "weights" not in part)
        parts["context"] = CONTEXT_BYTES + int(FRAGMENTED_SHARE * values)
    counts: dict[str, int] = {}
    for weight in bare.weights.values():
        counts[weight.group] = counts.get(weight.group, 0) + weight.count
    return MemoryReport({part: size for part, size in parts.items() if size}, counts, trained)


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


def state_bytes(optimizer: str, count: int, item: int) -> int:
    """Bytes of an optimiser's two moments for one tensor of `count` numbers of `item` bytes.

    With 8 bits: two bytes a number, and two float32 for each block of 256; tensors below 4,096 numbers keep float32.
    """
    if optimizer == "adamw":
        return 2 * item * count
    if count < SMALL_STATE:
        return 2 * FLOAT32 * count
    return 2 * count + 2 * FLOAT32 * -(-count // STATE_BLOCK)


def _hold(step: Step, bare: Step, request: Request) -> int:
    """Put weights, adapters and moments into memory; how many numbers learn."""
    is_quantised, trained = request.adapter.quant != "none", 0
    for name, weight in bare.weights.items():
        is_packed = is_quantised and weight.group == "linears" and name.endswith(".weight") and _is_packed(weight)
        step.hold(weight.size, "quantised weights" if is_packed else _WEIGHTS[weight.group])
        if weight.is_trained:
            _hold_state(step, name, weight.count, step.setting.item, request)
            trained += weight.count
    for name, count in bare.adapters.items():
        step.hold(count * FLOAT32, "adapters")
        _hold_state(step, name, count, FLOAT32, request)
        trained += count
    return trained


def _hold_state(step: Step, name: str, count: int, item: int, request: Request) -> None:
    step.hold(state_bytes(request.optimizer, count, item), "optimiser")
    if request.accumulates:
        step.weight_gradients.setdefault(name, step.allocate(count * item, "gradients"))


def _update(step: Step, bare: Step, request: Request) -> None:
    """The optimiser's step: nothing more, but on a CPU with 8 bits, which widens the largest tensor five times."""
    if request.device == "cpu" and request.optimizer != "adamw":
        trained = [weight.count for weight in bare.weights.values() if weight.is_trained]
        step.allocate(5 * FLOAT32 * max([*trained, *bare.adapters.values()]), "optimiser")


def _is_packed(weight: Weight) -> bool:
    return weight.size < 2 * weight.count
