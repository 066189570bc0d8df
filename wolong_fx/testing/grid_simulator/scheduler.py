"""Blocks as threads, one of which runs at a time; a seeded generator draws whose turn it is."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from wolong_fx.testing.grid_simulator.shadow import Fault

SPINS = 400
"""Atomics of each block in a row that change nothing: then nobody will ever arrive."""


class Stopped(BaseException):
    """Ends the thread of a block after another one has failed."""


class Scheduler:
    """Runs a function once for every block.

    resident: blocks that may have started without having ended
    on_switch: called with the block that goes on
    """

    def __init__(self, blocks: int, resident: int, seed: int, on_switch: Callable[[int], None]) -> None:
        self.blocks, self.resident, self.on_switch = blocks, resident, on_switch
        self.rng = random.Random(seed)
        self.turns = [threading.Semaphore(0) for _ in range(blocks)]
        self.everything_ended = threading.Semaphore(0)
        self.started: set[int] = set()
        self.ended: set[int] = set()
        self.current = 0
        self.idle = 0
        self.switches = 0
        self.error: BaseException | None = None

    def run(self, body: Callable[[], None]) -> None:
        """Run `body` in every block, and raise what the first one to fail raised."""
        threads = [
            threading.Thread(target=self._block, args=(b, body), daemon=True) for b in range(self.blocks)
        ]
        for thread in threads:
            thread.start()
        self._pass_on()
        self.everything_ended.acquire()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def switch(self) -> None:
        """Let a block drawn at random, maybe this one, go on."""
        me = self.current
        self._stop_if_failed()
        self._pass_on()
        self.turns[me].acquire()
        self.current = me
        self.on_switch(me)
        self._stop_if_failed()

    def maybe_switch(self, probability: float) -> None:
        """Switch, by chance."""
        if probability and self.rng.random() < probability:
            self.switch()

    def note_progress(self, is_progress: bool) -> None:
        """Called at every atomic; raises Fault when all that happens is waiting."""
        self.idle = 0 if is_progress else self.idle + 1
        if self.idle > SPINS * self.blocks:
            waiting, unstarted = len(self.started - self.ended), self.blocks - len(self.started)
            raise Fault(f"deadlock: {waiting} blocks wait for ever, {unstarted} never started")

    def _block(self, block: int, body: Callable[[], None]) -> None:
        self.turns[block].acquire()
        try:
            self._stop_if_failed()
            self.on_switch(block)
            body()
        except Stopped:
            pass
        except BaseException as error:
            self.error = self.error or error
        self.ended.add(block)
        self.idle = 0
        self._pass_on()

    def _stop_if_failed(self) -> None:
        if self.error is not None:
            raise Stopped

    def _pass_on(self) -> None:
        """Wake a block that may run; when there is none, all have ended."""
        running = sorted(self.started - self.ended)
        waiting = [b for b in range(self.blocks) if b not in self.started]
        room = len(waiting) if self.error is not None else max(0, self.resident - len(running))
        candidates = running + waiting[:room]
        if not candidates:
            self.everything_ended.release()
            return
        self.current = self.rng.choice(candidates)
        self.started.add(self.current)
        self.switches += 1
        self.turns[self.current].release()
