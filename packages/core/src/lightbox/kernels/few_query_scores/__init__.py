"""How much a few queries look at each key, over heads: `op` (`few_query_scores`), `kernel`, `reference`."""
