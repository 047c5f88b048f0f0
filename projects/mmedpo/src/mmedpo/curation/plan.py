"""How pairs are made, and what came of it. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lightbox.errors import LightboxError, RequestError
from mmedpo import noise
from mmedpo.config import PAIRS
from mmedpo.curation.contradict import Picker
from mmedpo.curation.judges import Panel
from mmedpo.curation.masks import Localiser


@dataclass(frozen=True)
class Target:
    """The model whose wrong answers are rejected.

    Args:
        name: goes into the preference file.
        settings: all that decides its answers beside question, image and seed.
        open_model: loads it; the result gives answers to (image file, question, seed).
    """

    name: str
    settings: Mapping[str, Any]
    open_model: Callable[[], Callable[[Path, str, int], list[str]]]

    @cached_property
    def answer(self) -> Callable[[Path, str, int], list[str]]:
        """The model, loaded when the first answer is missing."""
        return self.open_model()


@dataclass(frozen=True)
class Plan:
    """How pairs are made.

    Args:
        out: folder of everything that is written.
        source: name of the data set.
        target: whose answers are rejected.
        picker: which of them.
        localiser: where images are noised.
        panel: who scores pairs of texts; None gives each 1.
        kinds: text, image or union.
        step: of the noise, 0 to 999.
        seed: of samples and noise.

    Raises:
        RequestError: a value out of its range.
    """

    out: Path
    source: str
    target: Target
    picker: Picker
    localiser: Localiser
    panel: Panel | None = None
    kinds: str = "union"
    step: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        noise.signal_share(self.step)
        if self.kinds not in PAIRS or self.seed < 0:
            why = f"Kinds are {', '.join(PAIRS)}, and a seed is 0 or more"
            raise RequestError(f"Pairs of kind '{self.kinds}' with seed {self.seed}", why, "Correct them")


@dataclass
class Summary:
    """What came of a run: pairs by kind, what was left out and why, what failed, what waits for the next run."""

    pairs: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: dict[str, LightboxError] = field(default_factory=dict)
    not_tried: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing failed and nothing waits."""
        return not self.failures and not self.not_tried
