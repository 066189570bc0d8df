"""Ctrl-C and a queue's SIGTERM: finish the step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted in `signum`; a second one acts as usual.

    A step is never cut in two: half-updated parameters would be no state to continue from.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in _CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
