"""MedThink's configuration files: `train`, `eval`, and the groups `preset`, `experiment`, `tuned`."""
