"""Measure the peak memory of training steps and compare it with the prediction: small models on a CPU, 7B on a card.

Run: uv run python benchmarks/memory.py [--device cuda] [--model NAME]
"""

import argparse
import logging
from pathlib import Path

from lightbox.bench import ledger, memory

RESULTS = Path(__file__).parent / "results.csv"


def main() -> None:
    """Measure and append one row a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", action="append", default=[], help="only this model; may be given several times")
    parser.add_argument("--dry-run", action="store_true", help="print the rows and do not append them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = memory.run(device=options.device, models=options.model)
    for row in rows:
        print(f"{row['case']}: predicted / measured {row['ratio']} ({row['value']} {row['unit']}; {row['notes']})")
    if not options.dry_run:
        ledger.append(RESULTS, "memory", rows)


if __name__ == "__main__":
    main()
