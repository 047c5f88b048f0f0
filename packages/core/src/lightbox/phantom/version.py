"""Version of the generator: it enters every job key, so a change of a single pixel must change it."""

VERSION = "chest-1"
