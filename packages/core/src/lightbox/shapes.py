"""Axis letters, fixed for the whole repository, and the shape-string convention.

| letter | axis | letter | axis |
|---|---|---|---|
| b | batch | d | model width |
| t | text tokens | k | attention heads |
| p | image patches | e | head width |
| n | pairs, candidates | v | vocabulary |
| c | channels, classes | x | experts |
| h w | pixels | | |

Public tensor functions write shapes as jaxtyping strings, for example ``Float[Tensor, "b t d"]``. A single-axis
string starts with a space (``" n"``), or ruff reads it as a name. Shapes are checked in tests only
(``pytest --jaxtyping-packages``).
"""

AXES = {
    "b": "batch",
    "t": "text tokens",
    "p": "image patches",
    "n": "pairs or candidates",
    "c": "channels or classes",
    "h": "pixel rows",
    "w": "pixel columns",
    "d": "model width",
    "k": "attention heads",
    "e": "head width",
    "v": "vocabulary",
    "x": "experts",
}
