"""What changed since the frame or slice before: `op` (`temporal_keep`), `kernel`, `reference`."""
