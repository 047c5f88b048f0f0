"""Dropped tokens folded into the kept ones most like them: `op` (`assign_merge`), `kernel`, `reference`."""
