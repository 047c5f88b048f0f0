"""Diverse tokens, picked one after another (max-min distance, DPP): `op` (`greedy_select`), `kernel`, `reference`."""
