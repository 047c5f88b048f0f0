"""A pool that runs jobs in this process, for tests of everything around them."""

from lightbox.claims.pool import Pool
from lightbox.claims.worker import Order, Outcome, run_order


class InlinePool(Pool):
    """Runs each order at once, in this process; for tests that are not about processes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._outcomes: list[Outcome] = []

    @property
    def busy(self) -> int:
        """Number of outcomes not yet collected."""
        return len(self._outcomes)

    def give(self, order: Order) -> None:
        """Run the order now."""
        self._outcomes.append(run_order(order))

    def collect(self, timeout_s: float) -> list[Outcome]:
        """What was run since the last call."""
        ready, self._outcomes = self._outcomes, []
        return ready
