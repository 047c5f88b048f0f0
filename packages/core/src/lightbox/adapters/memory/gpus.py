"""GPUs of consumers, and measurements that were recorded of the same step. No torch."""

import csv
from pathlib import Path

from lightbox.adapters.memory.prediction import GIB

GPUS_GB = (12, 16, 24)
RESERVED_GIB = 1.0
"""What desktop, driver and other programs hold of a GPU; CUDA's own context is part of a prediction."""
BENCHMARK = "memory"
PREDICTED = "predicted, not measured"


def usable_bytes(gpu_gb: float) -> float:
    """Bytes of a GPU that a training may take: what is printed on its box, less the reserve."""
    return (gpu_gb - RESERVED_GIB) * GIB


def recorded(table: Path, case: str) -> dict[str, str] | None:
    """The newest measurement of a step by its name (see `named.describe`), None where there is none.

    Args:
        table: `benchmarks/results.csv` of a checkout.
        case: the name.
    """
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["benchmark"] == BENCHMARK and row["case"] == case]
    return rows[-1] if rows else None


def said_of(row: dict[str, str] | None) -> str:
    """How a prediction's status is shown: what was measured, where and when, or that nothing was."""
    if row is None:
        return PREDICTED
    measured, error = float(row["value"]) / 1024, 100 * (float(row["ratio"]) - 1)
    return f"measured {measured:.2f} GiB of tensors, prediction {error:+.1f} % ({row['machine']}; {row['date']})"
