"""The study's configuration files: `train`, and the group `preset`."""
