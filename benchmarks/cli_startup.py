"""Time `lightbox --help` against the help of a bare Typer app with as many commands, in turns, and append the ratio.

Run: uv run python benchmarks/cli_startup.py
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lightbox.bench import ledger
from lightbox.cli.app import COMMANDS

RESULTS = Path(__file__).parent / "results.csv"
OURS = "from lightbox.cli import main; main(['--help'])"
BARE = "\n".join(
    ["import typer", "app = typer.Typer()"]
    + [
        f"@app.command('{name}')\ndef command_{i}(): '''{entry.help}'''"
        for i, (name, entry) in enumerate(COMMANDS.items())
    ]
    + ["app(['--help'])"]
)


def wall_s(code: str) -> float:
    """Wall time in seconds of one new Python process that runs `code`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and append one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed pairs after one that warms the disk cache")
    parser.add_argument("--dry-run", action="store_true", help="print the row and do not append it")
    options = parser.parse_args()
    pairs = [(wall_s(OURS), wall_s(BARE)) for _ in range(options.rounds + 1)][1:]
    ours, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    row = {
        "case": "lightbox --help",
        "peer": "bare Typer app with as many commands",
        "value": round(ours, 3),
        "unit": "s",
        "ratio": round(ours / bare, 2),
        "notes": f"lower is better; peer {bare:.3f} s; median of {options.rounds} pairs",
    }
    print(f"{row['case']}: {row['ratio']} x {row['peer']} ({row['value']} s; {row['notes']})")
    if not options.dry_run:
        ledger.append(RESULTS, "cli_startup", [row])


if __name__ == "__main__":
    main()
