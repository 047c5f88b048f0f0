"""Kept visual rows and text in one packed sequence, with positions and labels: `op`, `kernel`, `reference`."""
