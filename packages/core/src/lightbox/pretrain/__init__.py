"""The tiny foundation models: `t5` (text), then `tower` (vision, aligned with the text), each rebuilt by one function.

`build` is what `lightbox pretrain` calls. `card` writes and checks the model card and file digests.
"""

from lightbox.pretrain.build import NAMES, build

__all__ = ["NAMES", "build"]
