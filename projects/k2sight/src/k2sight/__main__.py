"""`python -m k2sight train|eval [overrides]`, the form for `accelerate launch -m k2sight train ...`."""

from k2sight.cli import ENTRIES

if __name__ == "__main__":
    ENTRIES.main()
