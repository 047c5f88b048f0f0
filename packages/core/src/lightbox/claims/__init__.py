"""Claims are experiments.

Read in this order: `spec` (what is claimed), `registry` (which papers there are), `sources` and `jobs` (what is run,
under which key), `storage`, `worker`, `pool` and `runner` (running it), `statistics`, `gate` and `verdicts` (what it
says), `entries`, `results` and `published` (what is written), `simulate` (the rules under test), `tuning`.
Planning, job keys, intervals and verdicts need no torch; only the worker that trains does.
"""
