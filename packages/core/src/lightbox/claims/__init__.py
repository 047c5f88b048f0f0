"""Claims are experiments: `spec` (what is claimed), `jobs` (what is run), `runner`, `statistics`, `verdicts`, `results`.

Planning, job keys, intervals and verdicts need no torch; only the worker that trains does.
"""
