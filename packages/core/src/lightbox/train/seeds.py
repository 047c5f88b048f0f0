"""Every source of chance, seeded, captured and restored: python, numpy and torch on each device.

The same bits again are promised on one machine with one thread and float32 on the CPU; a GPU gives close numbers.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lightbox.errors import RequestError

NUMPY_SEEDS = 2**32


def seed_everything(seed: int, threads: int = 1, *, device: str = "cpu") -> None:
    """Seed python, numpy and torch, set torch's threads and ask for deterministic algorithms.

    Args:
        seed: in [0, 2**32); 0 is a seed like others.
        threads: CPU threads of torch, >= 1; two give other bits than one.
        device: device type. On the CPU an operation without a deterministic form raises; elsewhere it warns, since
            attention and interpolation on a GPU lack one.

    Raises:
        RequestError: where the seed is not an integer in range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < NUMPY_SEEDS:
        raise RequestError(f"run.seed is {seed!r}", "A seed is an integer in [0, 2**32)", "Set run.seed, 0 or more")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # the flag above would also fill each fresh tensor with NaN, at 5 us a tensor and for no gain in repeatability
    torch.utils.deterministic.fill_uninitialized_memory = False


def rng_state() -> dict[str, Any]:
    """Capture the state of every generator as values that JSON can hold."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": [version, list(words), gauss],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": _to_hex(torch.get_rng_state()),
        "cuda": [_to_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `rng_state` captured; CUDA states are used where the same number of devices is present."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.asarray(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(_from_hex(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_from_hex(text) for text in state["cuda"]])


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Run a block, such as an evaluation, without moving any generator."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)


def _to_hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
