"""MedPLIB's configuration files: `train`, and the groups `preset` and `tuned`."""
