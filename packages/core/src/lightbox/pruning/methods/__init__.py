"""Methods by name: one file each, one function `select(batch, counts, options) -> Selection`. `table` lists them."""
