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

FOREVER = 2**31 - 1
"""A patience that does not end, in microseconds: as much as the kernel's argument holds."""

WARM_CALLS = 3
"""Team calls before calls are made alone to learn what one thread needs; the first ones fault pages in."""

TRIED_ALONE = 3
"""Calls alone to learn that: the first may find its memory in the other cores' caches, or be interrupted."""

AFFORDABLE_ALONE = 0.5
"""Seconds: a kernel that one thread may need longer for is never run alone only to know."""

TIMED_CALLS = 100
"""Calls on one thread whose best time is known; more would tell little and cost each call."""

FORGIVEN = 20e-3
"""Seconds that team calls may lose, all in all, of what others have won over one thread.

Interrupts take 2 to 6 ms of a call, three times a second on a quiet machine: what is won between two of them
is many times that. A team that has a neighbour wins next to nothing before the next call is lost.
"""

MOST_LOST = 0.1
"""Seconds that one call can lose beside the time that one thread needs; it was stopped if it took longer."""

HOLD_FACTORS = (5.0, 20.0, 80.0)
"""Time alone, in units of what was lost more than is forgiven: the next one for each time that the team is
left before it has won again all that can be forgiven, so a neighbour that stays costs a hundredth of the
time.
"""

MANY_CALLS = 10
"""Calls alone whose best tells what one thread needs now, be it more than ever: machines throttle."""


class TeamGuard:
    """Leaves the team for a while when one thread would have been faster.

    A barrier waits for the slowest thread; when another process takes one of our processors it waits for that
    process's time slices: 15 ms measured for a call of 0.3 ms that soon gives up its team, 70 to 500 ms for
    one that does not. So an account is kept of what team calls win over one thread and lose. What counts as
    lost is relative to the best time of this very kernel on one thread (its shapes are static, so its calls
    cost the same), never absolute: big batches are slow without a neighbour. Whatever the neighbours do, the
    team loses no more than FORGIVEN and a call, then a part of the time alone. That is time in this kernel:
    one that is called rarely is not sent into a lost call each time. A kernel so small that its team never
    pays has nothing on its account and stays alone too.

    alone_left: seconds of calls that are still to be made alone
    patience: microseconds to wait for the team in a call: what one thread would need for all of it
    usual, worst: a team call that takes no less and no more teaches nothing
    """

    __slots__ = (
        "_account",
        "_alone_calls",
        "_best_now",
        "_team_calls",
        "_threads",
        "_times_left",
        "alone_best",
        "alone_left",
        "patience",
        "team_best",
        "usual",
        "worst",
    )

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.team_best = self.alone_best = self._best_now = math.inf
        self._team_calls = self._alone_calls = 0
        self._account = 0.0  # seconds won, at most FORGIVEN
        self._times_left = 0  # by which the next hold is chosen
        self.alone_left = 0.0
        self.patience = FOREVER
        self.usual = self.worst = math.inf

    def learn_team(self, took: float) -> None:
        """Take in a team call, in seconds."""
        self.team_best = min(self.team_best, took)
        self._team_calls += 1
        won = max(self._one_thread - took, -MOST_LOST - self._one_thread)
        self._account = min(FORGIVEN, self._account + won)
        if self._account < 0:
            self._leave(-self._account * HOLD_FACTORS[self._times_left])
            self._times_left = min(self._times_left + 1, len(HOLD_FACTORS) - 1)
        elif self._is_to_be_tried_alone:
            self._leave(math.inf)
        elif self._account == FORGIVEN:
            self._times_left = 0
        self._set_band()

    def learn_alone(self, took: float) -> None:
        """Take in a call on one thread, in seconds, while there are to be some."""
        self._alone_calls += 1
        self._best_now = min(self._best_now, took)
        self.alone_left -= took
        if self.alone_left <= 0 or (self.alone_left == math.inf and self._alone_calls >= TRIED_ALONE):
            best_before = math.inf if self._alone_calls >= MANY_CALLS else self.alone_best
            self.alone_best = min(best_before, self._best_now)
            self.alone_left = 0.0
            self._set_band()

    def _leave(self, seconds: float) -> None:
        """Stay alone for so long; infinity: until it is known what one thread needs."""
        self.alone_left, self._alone_calls, self._best_now = seconds, 0, math.inf
        self._account = 0.0

    @property
    def _is_to_be_tried_alone(self) -> bool:
        is_unknown = self.alone_best == math.inf and self._team_calls >= WARM_CALLS
        return is_unknown and self._threads * self.team_best < AFFORDABLE_ALONE

    @property
    def _one_thread(self) -> float:
        """Seconds that one thread needs, or what it needs at most as long as that is not known."""
        return self._threads * self.team_best if self.alone_best == math.inf else self.alone_best

    def _set_band(self) -> None:
        # Any call is news while the kernel is new, and until the team has won what can be forgiven.
        is_settled = self._team_calls >= WARM_CALLS and self._account == FORGIVEN
        self.usual = self.team_best if is_settled else math.inf
        self.worst = self._one_thread
        self.patience = min(FOREVER, round(1e6 * self._one_thread))


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
        if guard.alone_left > 0:
            failed = self._run(block, 1, 0)
            guard.learn_alone(self._clock() - start)
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
        took = self._clock() - start
        if not guard.usual <= took <= guard.worst:
            guard.learn_team(took)
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
