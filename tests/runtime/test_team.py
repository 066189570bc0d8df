from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from wolong_fx.runtime import team
from wolong_fx.runtime.openmp import OpenMP
from wolong_fx.runtime.team import (
    HOLD_FACTORS,
    TIMED_CALLS,
    WARM_CALLS,
    LoneRunner,
    Process,
    TeamRunner,
)


class Machine:
    """A kernel and a clock: calls take what `costs` says for their number of threads."""

    def __init__(self, team: float, alone: float) -> None:
        self.now, self.costs, self.calls = 100.0, {2: team, 1: alone}, []
        self.is_nested = 0
        library = SimpleNamespace(omp_in_parallel=lambda: self.is_nested)
        self.runner = TeamRunner(self.kernel, 2, OpenMP(library), lambda: self.now)  # type: ignore[arg-type]

    def kernel(self, block: object, threads: int, patience: int) -> int:
        self.now += self.costs[threads]
        self.calls.append(threads)
        return 0

    def run(self, count: int = 1) -> list[int]:
        self.calls = []
        for _ in range(count):
            self.runner(None)
        return self.calls

    def run_for(self, seconds: float) -> list[int]:
        self.calls, end = [], self.now + seconds
        while self.now < end:
            self.runner(None)
        return self.calls


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Each test with permits of its own, on two processors."""
    monkeypatch.setattr(team, "process", Process())
    monkeypatch.setattr(team, "available_processors", lambda: 2)
    monkeypatch.setattr(team.torch, "get_num_threads", lambda: 2)


@pytest.fixture
def machine() -> Machine:
    """Warm: its team needs 1 ms, one thread 1.8 ms."""
    machine = Machine(team=1e-3, alone=1.8e-3)
    assert machine.run(WARM_CALLS + 2) == [2] * WARM_CALLS + [1, 2]
    return machine


def test_a_quiet_machine_always_has_its_team(machine):
    assert set(machine.run(1000)) == {2}


def test_a_call_that_one_thread_would_have_won_twice_over_sends_the_kernel_alone(machine):
    machine.costs[2] = 70e-3
    assert machine.run(3) == [2, 1, 1]


def test_the_trigger_is_relative_so_a_long_kernel_keeps_its_team():
    machine = Machine(team=60.0, alone=110.0)
    assert set(machine.run(20)) == {2}


def test_jitter_below_what_one_thread_needs_changes_nothing(machine):
    machine.costs[2] = 3.5e-3
    assert set(machine.run(50)) == {2}


def test_time_alone_is_a_multiple_of_what_the_bad_call_took_and_then_the_team_is_tried(machine):
    machine.costs[2] = 70e-3
    machine.run()
    machine.costs[2] = 1e-3
    alone = machine.run_for(HOLD_FACTORS[0] * 70e-3 - 1e-3)
    assert set(alone) == {1}
    assert machine.run(3)[-2:] == [2, 2]


def test_a_neighbour_that_stays_is_asked_ever_less_often(machine):
    machine.costs[2] = 70e-3
    calls = machine.run_for(60.0)
    tries = [at for at, threads in enumerate(calls) if threads == 2]
    waits = [later - sooner for sooner, later in pairwise(tries)]
    assert waits == sorted(waits)
    assert waits[-1] > 7 * waits[0]
    assert len(tries) * 70e-3 < 60.0 / 50


def bad_call(machine: Machine) -> float:
    """A team call that waits for a neighbour, then time alone: how long, in units of the call."""
    machine.costs[2] = 70e-3
    assert machine.run() == [2]
    machine.costs[2], start = 1e-3, machine.now
    while machine.run() == [1]:
        pass
    return (machine.now - start) / 70e-3


CALLS_TO_WIN_BACK = 70e-3 / (1.8e-3 - 1e-3)


def test_a_team_that_has_won_its_bad_call_back_is_trusted_as_before(machine):
    for _ in range(5):
        assert bad_call(machine) == pytest.approx(HOLD_FACTORS[0], rel=0.05)
        assert set(machine.run(round(CALLS_TO_WIN_BACK) + 2)) == {2}


def test_fewer_good_calls_among_bad_ones_do_not_win_trust_back(machine):
    holds = []
    for _ in HOLD_FACTORS:
        holds.append(bad_call(machine))
        assert set(machine.run(round(CALLS_TO_WIN_BACK / 2))) == {2}
    assert holds == pytest.approx(HOLD_FACTORS, rel=0.05)


def test_rare_interrupts_leave_a_kernel_its_team_even_after_a_neighbour_that_stayed(machine):
    for _ in HOLD_FACTORS:
        bad_call(machine)
    alone = total = 0.0
    for _ in range(20):
        machine.costs[2], start = 4e-3, machine.now
        machine.run()
        machine.costs[2] = 1e-3
        alone += 1.8e-3 * machine.run_for(0.25).count(1)
        total += machine.now - start
    assert alone < 0.2 * total


def test_a_kernel_whose_team_never_pays_stays_alone_almost_always():
    machine = Machine(team=10e-6, alone=4e-6)
    calls = machine.run(20_000)
    assert calls.count(2) < 200


def test_a_neighbour_there_from_the_start_is_noticed_once_one_thread_was_tried():
    machine = Machine(team=70e-3, alone=1.8e-3)
    calls = machine.run(100)
    assert calls.count(2) <= WARM_CALLS + 1


def test_nobody_is_sent_alone_to_find_out_what_a_long_kernel_would_need():
    machine = Machine(team=1.0, alone=64.0)
    assert set(machine.run(20)) == {2}


# ---- when there can be no team


def test_inside_a_parallel_region_there_is_one_thread(machine):
    machine.is_nested = 1
    assert machine.run() == [1]
    machine.is_nested = 0
    assert machine.run() == [2]


def test_a_user_who_allows_torch_one_thread_gets_one(machine, monkeypatch):
    monkeypatch.setattr(team.torch, "get_num_threads", lambda: 1)
    assert machine.run() == [1]


def test_after_a_fork_there_is_one_thread(machine):
    team.process.note_fork()
    assert machine.run() == [1]


def test_calls_that_overlap_share_the_processors(machine):
    overlapping = []

    def kernel(block: object, threads: int, patience: int) -> int:
        if threads == 2:
            machine.runner._run = lambda block, threads, patience: overlapping.append(threads) or 0
            machine.runner(None)
        return 0

    machine.runner._run = kernel
    machine.runner(None)
    machine.runner(None)
    assert overlapping == [1, 2]


def test_more_processors_permit_more_teams(monkeypatch):
    monkeypatch.setattr(team, "available_processors", lambda: 9)
    process = Process()
    assert [len(process.tickets(size)) for size in (2, 4, 16)] == [4, 2, 1]
    assert process.tickets(2) is process.tickets(2)


def test_a_kernel_that_raises_gives_its_permit_back(machine):
    def interrupted(block: object, threads: int, patience: int) -> int:
        raise KeyboardInterrupt

    machine.runner._run, kernel = interrupted, machine.runner._run
    with pytest.raises(KeyboardInterrupt):
        machine.runner(None)
    machine.runner._run = kernel
    assert machine.run() == [2]


def test_the_best_time_of_a_team_or_of_one_thread_is_known():
    machine = Machine(team=2.0, alone=3.0)
    assert machine.runner.best == float("inf")
    machine.run(WARM_CALLS + 5)
    assert machine.runner.best == pytest.approx(2.0)


def test_a_lone_kernel_looks_at_the_clock_for_its_first_calls_only():
    ticks = iter(range(10**6))
    runner = LoneRunner(lambda block, threads, patience: threads - 1, lambda: float(next(ticks)))
    assert runner.best == float("inf")
    assert [runner(None) for _ in range(3 * TIMED_CALLS)] == [0] * (3 * TIMED_CALLS)
    assert runner.best == 1.0
    assert next(ticks) == 2 * TIMED_CALLS
