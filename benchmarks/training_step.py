"""Compare one QLoRA training step with peft's stock helpers: speed and peak of live tensor bytes.

Run: uv run python benchmarks/training_step.py
"""

import argparse
import logging
from pathlib import Path

from lightbox.bench import ledger, step

RESULTS = Path(__file__).parent / "results.csv"


def main() -> None:
    """Measure and append two rows a dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="pairs of measurements")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dry-run", action="store_true", help="print the rows and do not append them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = step.run(repeats=options.repeats, device=options.device)
    for row in rows:
        print(f"{row['case']}: {row['ratio']} x {row['peer']} ({row['value']} {row['unit']}; {row['notes']})")
    if not options.dry_run:
        ledger.append(RESULTS, "training_step", rows)


if __name__ == "__main__":
    main()
