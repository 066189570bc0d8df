"""Streams and graphs: work that is put off until somebody waits for it.

Work on one stream runs in order. Which stream goes on is drawn by chance; one that waits for a mark cannot
before the stream that set it is there.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

Work = Callable[[], object]


class Violation(Exception):
    """The runtime did what CUDA forbids."""


@dataclass(eq=False)
class Mark:
    """A place in a stream's queue."""

    is_reached: bool = False

    def reach(self) -> None:
        self.is_reached = True


@dataclass(eq=False)
class Graph:
    """What a capture recorded. `replay` puts it on a stream as one piece of work."""

    number: int
    works: list[Work] = field(default_factory=list)

    def run(self) -> None:
        for work in self.works:
            work()


@dataclass
class Queues:
    """The streams of a device.

    is_lazy: whether work waits for `drain`; else it is done when it is put there
    """

    is_lazy: bool
    rng: random.Random
    streams: defaultdict[int, deque[Work | Mark]] = field(default_factory=lambda: defaultdict(deque))

    def put(self, stream: int, work: Work | Mark) -> None:
        """Add work, or a mark to wait for."""
        self.streams[stream].append(work)
        if not self.is_lazy:
            self.drain()

    def drain(self) -> None:
        """Do all work, in an order that is drawn."""
        while waiting := [s for s, queue in self.streams.items() if queue]:
            ready = [s for s in waiting if self._can_go_on(s)]
            if not ready:
                raise Violation("streams wait for each other")
            work = self.streams[self.rng.choice(ready)].popleft()
            if not isinstance(work, Mark):
                work()

    def _can_go_on(self, stream: int) -> bool:
        first = self.streams[stream][0]
        return not isinstance(first, Mark) or first.is_reached
