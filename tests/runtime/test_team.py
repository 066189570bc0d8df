from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from wolong_fx.runtime import team
from wolong_fx.runtime.openmp import OpenMP
from wolong_fx.runtime.team import (
    FOREVER,
    FORGIVEN,
    HOLD_FACTORS,
    MANY_CALLS,
    MOST_LOST,
    TIMED_CALLS,
    TRIED_ALONE,
    WARM_CALLS,
    LoneRunner,
    Process,
    TeamRunner,
)


class Machine:
    """A kernel and a clock: calls take what `costs` says for their number of threads."""

    def __init__(self, team: float, alone: float) -> None:
        self.now, self.costs, self.calls = 100.0, {2: team, 1: alone}, []
        self.is_nested, self.patience = 0, []
        library = SimpleNamespace(omp_in_parallel=lambda: self.is_nested)
        self.runner = TeamRunner(self.kernel, 2, OpenMP(library), lambda: self.now)  # type: ignore[arg-type]

    def kernel(self, block: object, threads: int, patience: int) -> int:
        self.now += self.costs[threads]
        self.calls.append(threads)
        self.patience.append(patience)
        return 0

    def run(self, count: int = 1) -> list[int]:
        self.calls, self.patience = [], []
        for _ in range(count):
            self.runner(None)
        return self.calls

    def run_for(self, seconds: float) -> list[int]:
        self.calls, end = [], self.now + seconds
        while self.now < end:
            self.runner(None)
        return self.calls

    def interrupt(self, seconds: float) -> None:
        """One team call takes so much longer than one thread would."""
        usual, self.costs[2] = self.costs[2], self.costs[1] + seconds
        assert self.run() == [2]
        self.costs[2] = usual

    def seconds_alone(self) -> float:
        """Of the calls until the next one that has its team."""
        start = self.now
        while self.run() == [1]:
            pass
        return self.now - self.costs[2] - start


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Each test with permits of its own, on two processors."""
    monkeypatch.setattr(team, "process", Process())
    monkeypatch.setattr(team, "available_processors", lambda: 2)
    monkeypatch.setattr(team.torch, "get_num_threads", lambda: 2)


TEAM, ALONE = 1e-3, 1.8e-3
TO_EARN = round(FORGIVEN / (ALONE - TEAM)) + 2
"""Calls after which all that can be forgiven is earned."""


@pytest.fixture
def machine() -> Machine:
    """Warm, its account full."""
    machine = Machine(TEAM, ALONE)
    assert machine.run(WARM_CALLS + TRIED_ALONE + 1) == [2] * WARM_CALLS + [1] * TRIED_ALONE + [2]
    assert set(machine.run(TO_EARN)) == {2}
    return machine


def lose_all(machine: Machine, more: float) -> None:
    """From a full account: a call that loses so much more than is forgiven."""
    machine.interrupt(FORGIVEN + more)


def test_a_quiet_machine_always_has_its_team(machine):
    assert set(machine.run(1000)) == {2}


def test_interrupts_leave_a_kernel_its_team(machine):
    for _ in range(40):
        machine.interrupt(4e-3)
        assert set(machine.run_for(0.25)) == {2}


def test_what_good_calls_have_won_is_forgiven_once(machine):
    machine.interrupt(0.7 * FORGIVEN)
    assert machine.run() == [2]
    machine.interrupt(0.7 * FORGIVEN)
    assert machine.run(3) == [1, 1, 1]


def test_nothing_is_forgiven_that_was_not_won_before(machine):
    machine.interrupt(2 * FORGIVEN)
    machine.seconds_alone()
    machine.interrupt(2 * (ALONE - TEAM))
    assert machine.run() == [1]


def test_what_is_lost_is_relative_so_a_long_kernel_keeps_its_team():
    machine = Machine(team=60.0, alone=110.0)
    assert set(machine.run(20)) == {2}


def test_a_call_between_the_best_of_the_team_and_of_one_thread_changes_nothing(machine):
    machine.costs[2] = 0.99 * ALONE
    assert set(machine.run(1000)) == {2}


def test_a_team_that_became_a_little_slower_than_one_thread_is_left(machine):
    machine.costs[2] = 1.1 * ALONE
    machine.run(1000)
    assert machine.run(1000).count(2) < 150


def test_time_alone_is_a_multiple_of_what_was_lost_more_than_is_forgiven_and_then_the_team_is_tried(machine):
    lose_all(machine, 10e-3)
    assert machine.seconds_alone() == pytest.approx(HOLD_FACTORS[0] * 10e-3, abs=ALONE)
    assert set(machine.run(10)) == {2}


def test_a_neighbour_that_stays_is_asked_ever_less_often(machine):
    machine.costs[2] = ALONE + 10e-3
    while machine.run() == [2]:
        pass
    holds = [machine.seconds_alone() for _ in range(6)]  # each ends with a call of the team, which is lost
    factors = [*HOLD_FACTORS, *[HOLD_FACTORS[-1]] * 6][:6]
    assert holds[1:] == pytest.approx([factor * 10e-3 for factor in factors[1:]], abs=ALONE)


def test_a_team_that_has_won_again_what_can_be_forgiven_is_trusted_as_before(machine):
    for _ in range(5):
        lose_all(machine, 10e-3)
        assert machine.seconds_alone() == pytest.approx(HOLD_FACTORS[0] * 10e-3, abs=ALONE)
        assert set(machine.run(TO_EARN)) == {2}


def test_a_team_that_has_won_less_is_not(machine):
    lose_all(machine, 10e-3)
    machine.seconds_alone()
    machine.run(TO_EARN // 2)
    machine.interrupt(FORGIVEN)
    lost = FORGIVEN - (TO_EARN // 2 + 1) * (ALONE - TEAM)
    assert machine.seconds_alone() == pytest.approx(HOLD_FACTORS[1] * lost, abs=ALONE)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("worst", [3e-3, 30e-3, 0.1])
def test_whatever_the_team_takes_the_kernel_is_never_slower_than_a_fifth_more_than_one_thread(seed, worst):
    machine, draw = Machine(TEAM, ALONE), random.Random(seed)
    machine.run(WARM_CALLS + TRIED_ALONE)
    calls, start = 0, machine.now
    while calls < 20_000:
        machine.costs[2] = draw.choice([TEAM, worst])
        for _ in range(draw.choice([1, 3, 30])):
            machine.run()
            calls += 1
        allowed = 1.2 * calls * ALONE + FORGIVEN + worst
        assert machine.now - start <= allowed


def test_a_neighbour_that_stays_costs_a_fiftieth():
    machine = Machine(TEAM, ALONE)
    machine.run(1000)
    machine.costs[2], start = 15e-3, machine.now
    machine.run(5000)
    assert machine.now - start < 1.02 * 5000 * ALONE + FORGIVEN


def test_a_kernel_that_is_called_rarely_is_not_sent_into_a_lost_call_each_time(machine):
    machine.costs[2] = 15e-3
    lost = 0
    for _ in range(500):
        machine.now += 1.0
        lost += machine.run().count(2)
    assert lost < 6


def test_a_process_that_was_stopped_does_not_blame_its_neighbours_for_long(machine):
    machine.interrupt(3600.0)
    assert machine.seconds_alone() <= (MOST_LOST + ALONE) * HOLD_FACTORS[0] + ALONE


def test_a_machine_that_throttles_keeps_its_team(machine):
    machine.costs = {2: 3 * TEAM, 1: 3 * ALONE}
    machine.run(1000)
    assert set(machine.run(1000)) == {2}


def test_a_few_calls_alone_do_not_tell_that_one_thread_needs_more_than_ever(machine):
    machine.costs[1] = 5 * ALONE
    few = HOLD_FACTORS[0] * 1e-3
    assert few < MANY_CALLS * machine.costs[1]
    machine.interrupt(FORGIVEN + 1e-3 - 4 * ALONE)
    machine.seconds_alone()
    assert machine.runner._guard.alone_best == pytest.approx(ALONE)


def test_one_interrupted_call_alone_does_not_tell_what_one_thread_needs():
    machine = Machine(TEAM, ALONE)
    machine.run(WARM_CALLS)
    machine.costs[1] = 50e-3
    machine.run(1)
    machine.costs[1] = ALONE
    machine.run(TRIED_ALONE + 1)
    assert machine.runner._guard.alone_best == pytest.approx(ALONE)


def test_the_team_is_waited_for_as_long_as_one_thread_needs_for_everything(machine):
    machine.run()
    assert machine.patience == [round(1e6 * ALONE)]


def test_before_that_is_known_a_team_is_waited_for_as_long_as_one_thread_may_need():
    machine = Machine(TEAM, ALONE)
    machine.run(2)
    assert machine.patience == [FOREVER, round(2e6 * TEAM)]


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
    machine.run(WARM_CALLS + TRIED_ALONE + 5)
    assert machine.runner.best == pytest.approx(2.0)


def test_a_lone_kernel_looks_at_the_clock_for_its_first_calls_only():
    ticks = iter(range(10**6))
    runner = LoneRunner(lambda block, threads, patience: threads - 1, lambda: float(next(ticks)))
    assert runner.best == float("inf")
    assert [runner(None) for _ in range(3 * TIMED_CALLS)] == [0] * (3 * TIMED_CALLS)
    assert runner.best == 1.0
    assert next(ticks) == 2 * TIMED_CALLS
