"""Times of calls, taken in turns, as medians with percentiles.

On a CPU `timeit` takes them, in one thread (`torch.utils.benchmark` imports setuptools, which not every installation of
torch brings); on CUDA `triton.testing.do_bench`, which waits for the device and writes over the L2 cache before each
call.
"""

import importlib
import math
import statistics
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lightbox.errors import RequestError
from lightbox.kernels import backend

LOW, HIGH = 20, 80
"""Percentiles that stand beside a median."""
MATMUL_SIDE = {"cpu": 512, "cuda": 8192}
"""Side of the square product that a device's rate is measured with."""
BLOCK_S = 2e-3
"""Shorter calls are timed several at a time, for at least so long, so that reading the clock does not count."""
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


@dataclass(frozen=True)
class Times:
    """Seconds of a call.

    Args:
        median, low, high: of all samples; low and high are percentiles `LOW` and `HIGH`.
        count: samples.
    """

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        unit, name = next(((unit, name) for unit, name in _UNITS if self.median >= unit), _UNITS[-1])
        low, median, high = (f"{value / unit:.4g}" for value in (self.low, self.median, self.high))
        return f"{median} {name} (p{LOW} {low}, p{HIGH} {high})"


def times_of(samples: Sequence[float]) -> Times:
    """Median and percentiles of samples, between which values are interpolated.

    Raises:
        RequestError: no samples, or one that is no time.

    Example:
        >>> times_of([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
        Times(median=3.5, low=2.0, high=5.0, count=6)
    """
    if not samples or not all(0 < sample < math.inf for sample in samples):
        raise RequestError(
            f"Times of a call are {list(samples)[:5]}",
            "A call takes longer than nothing, so nothing was measured",
            "Time a call that does something, at least once",
        )
    ordered = sorted(samples)

    def percentile(share: float) -> float:
        place = share / 100 * (len(ordered) - 1)
        below = ordered[math.floor(place)]
        return below + (ordered[math.ceil(place)] - below) * (place % 1)

    return Times(statistics.median(ordered), percentile(LOW), percentile(HIGH), len(ordered))


def in_turns(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, round_s: float = 0.1, device: str = "cpu"
) -> dict[str, list[list[float]]]:
    """Seconds of each call, round by round; who begins alternates, so a slow drift of the machine cancels.

    Args:
        calls: by name, each run once before to warm up.
        rounds: of all calls.
        round_s: seconds that a call is repeated for in a round; at least one call.
        device: cpu or cuda.

    Returns:
        By name: for each round its samples, in seconds.

    Raises:
        RequestError: cuda without Triton.
    """
    sample = _sampler(device)
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    with one_thread():
        for call in calls.values():
            call()
        for number in range(rounds):
            for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
                samples[name].append(sample(calls[name], round_s))
    return samples


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's while a block lasts, so that a time says what the work costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def ratio_of(peer: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """How many times as long the peer takes: the median over rounds, and each round's, of medians in the round."""
    each = [statistics.median(other) / statistics.median(own) for other, own in zip(peer, ours, strict=True)]
    return statistics.median(each), each


def pooled(rounds: Sequence[Sequence[float]]) -> Times:
    """Times of all rounds together."""
    return times_of([sample for own in rounds for sample in own])


def product_on(device: str, dtype: torch.dtype, *, side: int = 0) -> tuple[Callable[[], Any], float]:
    """A call of a square matrix product, and its FLOP: the rate that any other's FLOP are held against.

    Args:
        device: cpu or cuda.
        dtype: of the factors.
        side: of the square; 0 is `MATMUL_SIDE`.
    """
    side = side or MATMUL_SIDE[device]
    factors = torch.ones(2, side, side, dtype=dtype, device=device)
    return lambda: factors[0] @ factors[1], 2.0 * side**3


def copy_of(n_bytes: int, device: str) -> Callable[[], Any]:
    """A call that reads half of so many bytes and writes them: what moving bytes takes, and nothing else."""
    source = torch.zeros(max(1, n_bytes // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _sampler(device: str) -> Callable[[Callable[[], Any], float], list[float]]:
    if device == "cpu":
        return _cpu_samples
    reason = backend.why_no_triton()
    if reason:
        raise RequestError("Times on CUDA", f"do_bench takes them, and {reason}", "Install the Triton of this torch")
    do_bench = importlib.import_module("triton.testing").do_bench

    def sample(call: Callable[[], Any], seconds: float) -> list[float]:
        milliseconds = do_bench(call, warmup=seconds * 200, rep=seconds * 1000, return_mode="all")
        return [value / 1000 for value in milliseconds]

    return sample


def _cpu_samples(call: Callable[[], Any], seconds: float) -> list[float]:
    timer = timeit.Timer(call)
    once = timer.timeit(1)
    number = max(1, math.ceil(BLOCK_S / once))
    blocks = max(1, round(seconds / (number * once)))
    return [taken / number for taken in timer.repeat(blocks, number)]
