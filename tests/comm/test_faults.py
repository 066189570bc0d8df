"""What ranks do to each other: whoever dies, hangs or calls something else is named, soon."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from wolong_fx.testing.ranks import ranks_of

pytestmark = pytest.mark.cpu


def failure_of(call):
    started = time.monotonic()
    with pytest.raises(dist.DistBackendError) as caught:
        call()
    return str(caught.value), time.monotonic() - started


def one_dies(peers, before):
    dist.barrier()
    if peers.rank == 1:
        os.kill(os.getpid(), 9)
    if before:
        time.sleep(0.3)
    return failure_of(lambda: dist.all_reduce(torch.ones(1_000_000)))


@pytest.mark.parametrize("before", [True, False])
def test_a_death_is_told_within_a_second(before):
    with ranks_of(3) as ranks:
        ranks.start(one_dies, before)
        for rank in (0, 2):
            message, seconds = ranks.result(rank)
            assert f"all_reduce #2 on rank {rank} of 3: the process of rank 1 ended" in message
            assert seconds < 1


def one_hangs(peers):
    dist.barrier()
    if peers.rank == 1:
        time.sleep(4)
    return failure_of(lambda: dist.all_reduce(torch.ones(3)))


def test_a_hang_is_told_at_the_timeout_and_the_late_one_hears_of_it():
    with ranks_of(2, timedelta(seconds=2)) as ranks:
        (waited, seconds), (late, _) = ranks.run(one_hangs)
        assert "all_reduce #2 on rank 0 of 2: waited 2 s for rank 1" in waited
        assert 1.9 < seconds < 3.5
        assert "rank 0 gave up" in late


def waits_a_moment(peers):
    total = torch.ones(50_000)
    if peers.rank == 1:
        time.sleep(1)
    handle = dist.all_reduce(total, async_op=True)
    message = ""
    if peers.rank == 0:
        message = failure_of(lambda: handle.wait(timedelta(milliseconds=100)))[0]
    handle.wait()
    return message, total[0].item()


def test_who_waits_only_a_moment_may_wait_again():
    with ranks_of(2) as ranks:
        (message, first), (_, second) = ranks.run(waits_a_moment)
    assert "all_reduce on rank 0 of 2 has not ended within the 100 ms" in message
    assert first == second == 2


def call_different_things(peers):
    if peers.rank == 0:
        return failure_of(lambda: dist.all_reduce(torch.ones(3)))[0]
    return failure_of(lambda: dist.broadcast(torch.ones(4), 0))[0]


def call_different_sizes(peers):
    return failure_of(lambda: dist.all_reduce(torch.ones(3 + peers.rank)))[0]


@pytest.mark.parametrize("function", [call_different_things, call_different_sizes])
def test_calls_that_differ_are_told_with_the_places_of_both(function):
    with ranks_of(2) as ranks:
        for message in ranks.run(function):
            assert "the ranks do not call the same" in message
            assert message.count(f"{Path(__file__).name}:") == 2
            assert "rank 0 called all_reduce of 3 float32 (sum)" in message


def messages_of_two_sizes(peers):
    if peers.rank == 0:
        dist.send(torch.ones(3), 1)
        return ""
    return failure_of(lambda: dist.recv(torch.ones(4), 0))[0]


def test_a_message_of_another_size_is_refused():
    with ranks_of(2) as ranks:
        assert "rank 0 sent a message of another size" in ranks.run(messages_of_two_sizes)[1]


def fork_and_call(peers):
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            dist.all_reduce(torch.ones(3))
        except dist.DistBackendError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 10_000).decode()
    dist.barrier()
    return said


def test_a_fork_of_a_rank_is_refused_and_the_rank_goes_on():
    with ranks_of(2) as ranks:
        assert all("this process was forked" in said for said in ranks.run(fork_and_call))


def refused(peers):
    messages = []
    for call in (
        lambda: dist.all_reduce(torch.ones(3, dtype=torch.int32), dist.ReduceOp.AVG),
        lambda: dist.all_reduce(torch.ones(3, dtype=torch.int32), dist.ReduceOp.BXOR),
        lambda: dist.all_reduce(torch.ones(3).to(torch.float8_e4m3fn)),
    ):
        with pytest.raises(RuntimeError) as caught:
            call()
        messages.append(str(caught.value).splitlines()[0])
    total = torch.ones(3, dtype=torch.complex64) * 1j
    dist.all_reduce(total)
    return messages, total[0].item()


def test_what_cannot_be_reduced_is_refused_before_anybody_waits():
    with ranks_of(2) as ranks:
        for messages, total in ranks.run(refused):
            assert ["averages floats only" in messages[0], "reduces by" in messages[1]] == [True, True]
            assert "cannot reduce" in messages[2]
            assert total == 2j


def test_nothing_is_left_behind_by_ranks_that_are_killed():
    before = {*Path("/dev/shm").iterdir(), *Path("/tmp").glob("*wolong*")}
    with ranks_of(2) as ranks:
        ranks.run(call_different_sizes)
    assert {*Path("/dev/shm").iterdir(), *Path("/tmp").glob("*wolong*")} <= before
    assert "wolong-" not in Path("/proc/net/unix").read_text()
