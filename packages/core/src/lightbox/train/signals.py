"""Stopping on request: the first SIGINT or SIGTERM finishes the step and saves, the second stops now."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, records the first stop signal in `received`; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def stop_for(self, number: int) -> None:
        """End the work as a signal asks: `KeyboardInterrupt` for SIGINT, `SystemExit(143)` for SIGTERM; 0 is none.

        The number is given, since several processes stop together for what one of them received.
        """
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number:
            raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.stop_for(number)
        self.received = number
