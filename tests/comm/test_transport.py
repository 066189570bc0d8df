"""Which transport a group gets: shared memory where all ranks can, else gloo, and never in silence."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from wolong_fx.comm import backend
from wolong_fx.comm.rendezvous import (
    Card,
    DescriptorServer,
    Offer,
    fetch_descriptor,
    find_obstacle,
    publish_card,
    read_cards,
)
from wolong_fx.comm.settings import CommSettings
from wolong_fx.errors import BadOptionValue, NoCompiler, TransportNotHere
from wolong_fx.testing.ranks import ranks_of

pytestmark = pytest.mark.cpu

MOMENT = timedelta(seconds=5)


def card(host="here", transport="auto", obstacle=""):
    return Card(host, transport, obstacle, Offer())


def test_ranks_of_one_host_share_memory():
    assert find_obstacle([card(), card()]) is None


def test_ranks_of_two_hosts_do_not():
    assert find_obstacle([card(), card("there")]) == "the ranks are on 2 hosts"


def test_a_rank_that_cannot_is_named():
    found = find_obstacle([card(), card(obstacle="no C++ compiler")])
    assert found == "rank 1 cannot share memory: no C++ compiler"


def test_ranks_that_are_started_again_do_not_meet_the_dead(monkeypatch):
    store = dist.HashStore()
    for start in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        publish_card(store, 0, card(obstacle=f"start {start}"))
    assert read_cards(store, 1) == [card(obstacle="start 1")]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert read_cards(store, 1) == [card(obstacle="start 0")]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TRANSPORT", "rdma", "one of 'auto', 'shm', 'gloo'"),
        ("ARENA_MB", "lots", "a whole number of megabytes"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, value, expected, monkeypatch):
    monkeypatch.setenv(f"WOLONG_COMM_{name}", value)
    with pytest.raises(BadOptionValue, match=f"in WOLONG_COMM_{name}: expected {expected}"):
        CommSettings.from_environment()


def without_a_compiler(peers, insists):
    """What a group says and does whose ranks cannot build the glue."""

    def fails(*arguments):
        raise NoCompiler(looked_for="g++", path="/nowhere")

    os.environ["WOLONG_COMM_TRANSPORT"] = "shm" if insists else "auto"
    kept, backend.load_glue, said = backend.load_glue, fails, io.StringIO()
    try:
        with redirect_stderr(said):
            group = dist.new_group(backend="wolong")
    except TransportNotHere as error:
        return str(error), None
    finally:
        backend.load_glue = kept
    value = torch.ones(1) * peers.rank
    dist.all_reduce(value, group=group)
    return said.getvalue(), value.item()


def test_without_a_compiler_gloo_serves_and_says_so():
    with ranks_of(2) as ranks:
        (said, first), (nothing, second) = ranks.run(without_a_compiler, False)
    because = "rank 0 cannot share memory: no C++ compiler"
    assert said.startswith(f"wolong: collectives over gloo, because {because}")
    assert (nothing, first, second) == ("", 1, 1)


def test_who_insists_on_shared_memory_gets_an_error_on_every_rank():
    with ranks_of(2) as ranks:
        for message, _ in ranks.run(without_a_compiler, True):
            assert "comm.transport='shm': rank 0 cannot share memory: no C++ compiler" in message


@pytest.fixture
def descriptor(tmp_path):
    with open(tmp_path / "file", "w+") as file:
        file.write("memory")
        file.flush()
        yield file.fileno()


def test_memory_is_handed_to_who_knows_the_secret(descriptor):
    server = DescriptorServer(descriptor, 1, MOMENT)
    found, process = fetch_descriptor(Offer("", 0, server.name, server.secret), MOMENT)
    assert os.pread(found, 6, 0) == b"memory"
    os.close(found)
    os.close(process)


def test_memory_is_not_handed_to_others(descriptor):
    server = DescriptorServer(descriptor, 1, MOMENT)
    with pytest.raises(ConnectionError):
        fetch_descriptor(Offer("", 0, server.name, "0" * len(server.secret)), MOMENT)
    found, process = fetch_descriptor(Offer("", 0, server.name, server.secret), MOMENT)
    os.close(found)
    os.close(process)
