"""`python -m lightbox.studies.pruning train [overrides]`: score one policy."""

from lightbox.studies.pruning.cli import ENTRIES

if __name__ == "__main__":
    ENTRIES.main()
