"""`python -m medplib train|eval [overrides]`, the form for `accelerate launch -m medplib train ...`."""

from medplib.cli import ENTRIES

if __name__ == "__main__":
    ENTRIES.main()
