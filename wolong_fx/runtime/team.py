"""When a kernel runs with its team of threads, and when it is better off on one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from time import perf_counter

import torch

from wolong_fx.runtime.openmp import OpenMP
from wolong_fx.runtime.threads import available_processors

Run = Callable[[object, int, int], int]
"""wolong_run: (argument block, threads, patience) -> 0 or the number of a failed check."""

WARM_CALLS = 3
"""Team calls before one call is made alone to learn what one thread needs; the first ones fault pages in."""

AFFORDABLE_ALONE = 0.5
"""Seconds: a kernel that one thread may need longer for is never run alone only to know."""

TIMED_CALLS = 100
"""Calls on one thread whose best time is known; more would tell little and cost each call."""

HOLD_FACTORS = (2.0, 10.0, 40.0, 160.0)
"""Time alone after a bad team call, in units of what the call took; the next one for each bad call until good
ones have won back what the last bad one took.

The first is short, for an interrupt of 4 ms is no neighbour: 20 times that alone, four times a second, had
cost half of all calls their team. A team that does not win its bad calls back is asked ever less often, so a
neighbour that stays costs a hundredth of the time.
"""


class TeamGuard:
    """Leaves the team for a while when one thread would have been faster.

    A barrier waits for the slowest thread; when another process takes one of our processors it waits for
    that process's time slice: 70 to 500 ms measured for a call of 0.3 ms. The trigger is relative to the
    best times of this very kernel (its shapes are static, so its calls cost the same), never absolute: big
    batches are slow without a neighbour. A kernel so small that its team never pays stays alone too.
    """

    __slots__ = (
        "_distrust",
        "_owed",
        "_team_calls",
        "_threads",
        "alone_best",
        "alone_until",
        "patience",
        "team_best",
        "usual",
        "worst",
    )

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.team_best = self.alone_best = math.inf
        self._team_calls = 0
        self._distrust = 0  # how many bad calls the next hold is chosen by
        self._owed = 0.0  # seconds that good team calls have to win over one thread until that is forgotten
        self.alone_until = -math.inf
        self.patience = 0x7FFFFFFF
        self.usual = self.worst = math.inf

    def learn_team(self, took: float, now: float) -> None:
        """Take in a team call that ended at `now` (seconds); one inside [usual, worst] teaches nothing."""
        if took > self.worst:
            if self.alone_best < self.team_best:  # it was never good
                self._distrust = max(1, self._distrust)
            self.alone_until = now + took * HOLD_FACTORS[min(self._distrust, len(HOLD_FACTORS) - 1)]
            self._owed = took
            self._distrust += 1
            self._set_band()
            return
        self.team_best = min(self.team_best, took)
        self._owed -= self.alone_best - took
        if self._owed <= 0:
            self._distrust = 0
        self._team_calls += 1
        if self._team_calls == WARM_CALLS and self._threads * self.team_best < AFFORDABLE_ALONE:
            self.alone_until = math.inf  # until the next call has told
        self._set_band()

    def learn_alone(self, took: float) -> None:
        """Take in a call on one thread; one no shorter than `alone_best` teaches nothing."""
        self.alone_best = min(self.alone_best, took)
        if self.alone_until == math.inf:
            self.alone_until = -math.inf
        self._set_band()

    def _set_band(self) -> None:
        best = min(self.alone_best, self._threads * self.team_best)
        self.patience = min(0x7FFFFFFF, int(1e6 * best))
        # Any call is news while the kernel is new, and after a bad one: good ones win trust back.
        is_settled = self._team_calls >= WARM_CALLS and not self._distrust
        self.usual = self.team_best if is_settled else math.inf
        if self.alone_best == math.inf:
            self.worst = 4.0 * self._threads * self.team_best  # one thread needs at most threads * team_best
        elif self.alone_best < self.team_best:
            self.worst = self.alone_best
        else:
            self.worst = 2.0 * self.alone_best


class Process:
    """What all kernels of this process share: the right to run a team, and whether there can be teams at all.

    A team needs processors of its own. Of calls that overlap (Python threads; ctypes releases the GIL) only
    as many get a team as there are processors for, the others run on one thread each.
    """

    def __init__(self) -> None:
        self.has_forked = False
        self._tickets: dict[int, list[None]] = {}

    def tickets(self, threads: int) -> list[None]:
        """The permits of teams of this size; pop and append are atomic."""
        return self._tickets.setdefault(threads, [None] * max(1, available_processors() // threads))

    def note_fork(self) -> None:
        """In the child: libgomp's threads are gone, its records of them are not, and a region would hang."""
        self.has_forked = True


process = Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=process.note_fork)


class TeamRunner:
    """Runs a kernel with `threads` threads, or with one when a team would hang, crowd others or be slower."""

    def __init__(
        self, run: Run, threads: int, openmp: OpenMP, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._run, self._threads, self._clock = run, threads, clock
        self._is_in_parallel = openmp.is_in_parallel
        self._tickets = process.tickets(threads)
        self._guard = TeamGuard(threads)

    @property
    def best(self) -> float:
        """Seconds of the best call, on the team or alone."""
        return min(self._guard.team_best, self._guard.alone_best)

    def __call__(self, block: object) -> int:
        guard, start = self._guard, self._clock()
        if start < guard.alone_until:
            failed = self._run(block, 1, 0)
            took = self._clock() - start
            if took < guard.alone_best:
                guard.learn_alone(took)
            return failed
        if torch.get_num_threads() == 1 or process.has_forked or self._is_in_parallel():
            return self._run(block, 1, 0)
        try:
            ticket = self._tickets.pop()
        except IndexError:
            return self._run(block, 1, 0)
        try:
            failed = self._run(block, self._threads, guard.patience)
        finally:
            self._tickets.append(ticket)
        end = self._clock()
        if not guard.usual <= end - start <= guard.worst:
            guard.learn_team(end - start, end)
        return failed


class LoneRunner:
    """Runs a kernel on the calling thread.

    best: seconds of the best of the first calls
    """

    def __init__(self, run: Run, clock: Callable[[], float] = perf_counter) -> None:
        self._run, self._clock = run, clock
        self._timed = 0
        self.best = math.inf

    def __call__(self, block: object) -> int:
        if self._timed == TIMED_CALLS:
            return self._run(block, 1, 0)
        self._timed += 1
        start = self._clock()
        failed = self._run(block, 1, 0)
        self.best = min(self.best, self._clock() - start)
        return failed
