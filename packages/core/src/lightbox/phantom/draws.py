"""Integer draws: one Philox stream a case, keyed by the case seed, read as raw 64-bit words.

Raw words of a bit generator are stable across platforms and numpy versions (numpy promises this for bit generators, not
for distributions), and a case's draws do not depend on which other cases are drawn with it.
"""

from collections.abc import Sequence

import numpy as np


class Draws:
    """Raw words for a batch of cases, handed out in order.

    Args:
        case_seeds: one non-negative integer a case.
        n_words: words reserved for the scene.
        n_noise: bytes reserved for pixel noise.
    """

    def __init__(self, case_seeds: Sequence[int], n_words: int, n_noise: int = 0) -> None:
        total = n_words + (n_noise + 7) // 8
        raw = np.empty((len(case_seeds), total), dtype=np.uint64)
        # a generator a case: it is the price of cases that do not depend on their batch
        for row, seed in enumerate(case_seeds):
            raw[row] = np.random.Philox(key=int(seed)).random_raw(total)
        self.words = raw[:, :n_words] >> np.uint64(11)  # 53 bits: exact as int64 and as float64 alike
        # little-endian by name, so that bytes come in one order on every machine
        self.noise = np.ascontiguousarray(raw[:, n_words:]).astype("<u8").view(np.uint8)[:, :n_noise]
        self.cursor = 0

    def take(self, n: int) -> np.ndarray:
        """The next `n` words of every case, int64 (b, n), each in [0, 2**53)."""
        start, self.cursor = self.cursor, self.cursor + n
        assert self.cursor <= self.words.shape[1], "reserve more words for the scene"
        return self.words[:, start : self.cursor].astype(np.int64)

    def below(self, high: int | np.ndarray, n: int = 1) -> np.ndarray:
        """Uniform integers in [0, high), int64 (b, n); (b,) where n is 1."""
        values = self.take(n) % high  # the bias of a remainder is below 1e-13 for these small ranges
        return values[:, 0] if n == 1 else values

    def between(self, low: int, high: int, n: int = 1) -> np.ndarray:
        """Uniform integers in [low, high], both included."""
        return low + self.below(high - low + 1, n)
