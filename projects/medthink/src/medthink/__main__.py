"""`python -m medthink train|eval [overrides]`, the form for `accelerate launch -m medthink train ...`."""

import sys

from rich.console import Console

from medthink import cli

COMMANDS = {"train": cli.train, "eval": cli.evaluate}


def main() -> None:
    """Run the named entry; exit 2 where it is neither."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        Console(stderr=True).print("Usage: python -m medthink train|eval [key=value ...]", markup=False)
        raise SystemExit(2)
    COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
