"""The best k of each segment, in order: `op` (`segment_select`, `allocate_budget`), `kernel`, `reference`."""
