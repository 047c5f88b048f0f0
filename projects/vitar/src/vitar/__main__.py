"""`python -m vitar train|eval [overrides]`, the form for `accelerate launch -m vitar train ...`."""

from vitar.cli import ENTRIES

if __name__ == "__main__":
    ENTRIES.main()
