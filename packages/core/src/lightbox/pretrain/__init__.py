"""The tiny foundation models: `t5` (text), `tower` (vision), `llava` (both), each rebuilt by one function.

`build` is what `lightbox pretrain` calls. `card` writes and checks the model card and file digests.
"""

from lightbox.pretrain.build import NAMES, build

__all__ = ["NAMES", "build"]
