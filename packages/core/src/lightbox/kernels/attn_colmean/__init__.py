"""How much attention each token gets, averaged over queries and heads: `op` (`attn_colmean`), `kernel`, `reference`."""
