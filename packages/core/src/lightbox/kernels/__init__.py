"""Operators behind visual-token pruning, a folder each: `op` (call this), `kernel` (Triton), `reference` (the oracle).

`attn_colmean`, `few_query_scores` and `temporal_keep` score tokens, `segment_select` and `greedy_select` choose them,
`assign_merge` folds dropped ones into kept ones, `ragged_splice` puts kept rows and text into one sequence. PyTorch on
CPU, Triton on CUDA. `backend` finds Triton, `checks` refuses before a launch, `segments` is what kernels share. Packed
tokens lie in segments `cu[s]:cu[s + 1]`.
"""
