"""Claims are experiments.

Read in this order: `spec` (what is claimed), `registry` (which papers there are), `jobs` (what is run, under which
key), `worker`, `pool` and `runner` (running it), `statistics`, `gate` and `verdicts` (what it says), `document` (the
records of results.json), `entries`, `results` and `published` (writing them), `tuning`.
Planning, job keys, intervals and verdicts need no torch; only the worker that trains does.
"""
