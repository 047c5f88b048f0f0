"""The configuration: what the kit has, with one method and a baseline. No torch."""

from functools import partial

from lightbox.config import register_schema
from lightbox.paper import composition
from lightbox.paper.composition import chosen, estimate, inputs
from lightbox.paper.schema import PaperConfig as Config

__all__ = ["Config", "chosen", "estimate", "inputs", "resolve"]

register_schema("lightbox.testing.boxes", "train", Config)
resolve = partial(composition.resolve, "lightbox.testing.boxes")
