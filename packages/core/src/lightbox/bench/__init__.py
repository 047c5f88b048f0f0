"""The benchmark harness: each module has `run(...)`, which gives rows of ratios against named peers, measured in turns.

Scripts and recorded rows live in `benchmarks/` of the checkout; `ledger` appends them there. `memory_trace` runs a real
model's step without memory, on `random_models`; `live_bytes` counts what is in memory at a step's peak, traced or real.
`timing` takes times in turns, with percentiles, for `kernels` (operators against their peers) and `pruning` (end to
end).
"""
