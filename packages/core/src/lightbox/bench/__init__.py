"""The benchmark harness: each module has `run(...)`, which gives rows of ratios against named peers, measured in turns.

Scripts and recorded rows live in `benchmarks/` of the checkout; `ledger` appends them there.
"""
