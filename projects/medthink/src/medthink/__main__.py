"""`python -m medthink train|eval [overrides]`, the form for `accelerate launch -m medthink train ...`."""

from medthink.cli import ENTRIES

if __name__ == "__main__":
    ENTRIES.main()
