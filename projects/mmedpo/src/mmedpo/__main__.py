"""`python -m mmedpo train|eval [overrides]`, the form for `accelerate launch -m mmedpo train ...`."""

from mmedpo.cli import ENTRIES

if __name__ == "__main__":
    ENTRIES.main()
