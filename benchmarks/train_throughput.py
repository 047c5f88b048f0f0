"""Compare the step driver with a plain Hugging Face Trainer, and measure length bucketing and cached features.

Run: uv run python benchmarks/train_throughput.py
"""

import argparse
import logging
from pathlib import Path

from lightbox.bench import ledger, train

RESULTS = Path(__file__).parent / "results.csv"


def main() -> None:
    """Measure and append three rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="passes over 512 items in each timed training")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of trainings for each ratio")
    parser.add_argument("--dry-run", action="store_true", help="print the rows and do not append them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = train.run(epochs=options.epochs, repeats=options.repeats)
    for row in rows:
        print(f"{row['case']}: {row['ratio']} x {row['peer']} ({row['value']} {row['unit']}; {row['notes']})")
    if not options.dry_run:
        ledger.append(RESULTS, "train_throughput", rows)


if __name__ == "__main__":
    main()
