"""The tiny foundation models: `t5` (text), `tower` (vision), `llava` (both), `florence2` (boxes), a function each.

`llava-576` reads nine times as many patches as `llava` and writes boxes too; it is for studies of pruning.

`build` is what `lightbox pretrain` calls. `card` writes and checks the model card and file digests.
"""

from lightbox.pretrain.build import NAMES, build

__all__ = ["NAMES", "build"]
