"""Spoiled files: small sets in every form that is read, ways to spoil one file of them, and what the readers then say.

Read `sets` (what is written), the changes (`entries` for any file, `documents` for text, `containers` for zip and
parquet, `pictures`), then `trial` (one file spoiled, read and judged). `benchmarks/fuzz_readers.py` runs thousands.
"""
