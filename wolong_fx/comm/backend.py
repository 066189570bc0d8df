"""The backend `wolong` of torch.distributed: which transport a group gets, and its making."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

from wolong_fx.comm.arena import Arena
from wolong_fx.comm.build import load_core, load_glue
from wolong_fx.comm.core_library import CoreLibrary
from wolong_fx.comm.host import host_identity
from wolong_fx.comm.rendezvous import Card, Offer, Store, find_obstacle, publish_card, read_cards
from wolong_fx.comm.settings import CommSettings
from wolong_fx.errors import CompilerFailed, CompilerTookTooLong, NoCompiler, TransportNotHere

NAME = "wolong"
MOST_RANKS = 64


def register() -> None:
    """Make `init_process_group("wolong")` known to torch."""
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, create_backend, devices=["cpu"])
    # Lets DDP ask the backend for the memory of its buckets, which torch leaves out by default.
    os.environ.setdefault("DDP_DISABLE_COMM_MEM", "0")


def create_backend(store: Store, rank: int, ranks: int, timeout: timedelta) -> Any:
    """This rank's part of a group, over shared memory where all ranks can; as torch calls it.

    Raises TransportNotHere, on all ranks alike, where WOLONG_COMM_TRANSPORT asks for what cannot be.
    """
    settings = CommSettings.from_environment()
    publish_card(store, rank, _card(settings, ranks, timeout))
    cards = read_cards(store, ranks)
    obstacle = find_obstacle(cards)
    if obstacle and any(card.transport == "shm" for card in cards):
        raise TransportNotHere(transport="shm", because=obstacle)
    _announce(rank, ranks, obstacle)
    if obstacle:
        return _gloo(store, rank, ranks, timeout)
    arena = process_arena()
    group = arena.join(cards, rank, timeout)
    return load_glue().Backend(
        arena.engine, group, arena.memory.address, rank, ranks, timeout.total_seconds()
    )


def _card(settings: CommSettings, ranks: int, timeout: timedelta) -> Card:
    """What this rank offers, or why it offers nothing: in silence it would keep all others waiting."""
    try:
        offer, obstacle = _offer(settings, ranks, timeout), ""
    except (NoCompiler, CompilerFailed, CompilerTookTooLong, OSError, MemoryError) as error:
        offer, obstacle = Offer(), str(error).splitlines()[0]
    return Card(host_identity(), settings.transport, obstacle, offer)


def _offer(settings: CommSettings, ranks: int, timeout: timedelta) -> Offer:
    if settings.transport == "gloo":
        raise OSError("comm.transport=gloo")
    if ranks > MOST_RANKS:
        raise OSError(f"{ranks} ranks are more than {MOST_RANKS}")
    load_glue()
    return process_arena().offer(ranks, timeout)


@cache
def process_arena() -> Arena:
    """This process's arena. Raises MemoryError, OSError, and what building the core raises."""
    return Arena.create(CoreLibrary(load_core()), CommSettings.from_environment().arena_bytes)


def _gloo(store: Any, rank: int, ranks: int, timeout: timedelta) -> Any:
    # Keys of its own: ours are in the store already.
    beside = dist.PrefixStore("gloo", store)  # pyright: ignore[reportPrivateImportUsage]
    return dist.ProcessGroupGloo(beside, rank, ranks, timeout)


def _announce(rank: int, ranks: int, obstacle: str | None) -> None:
    if rank == 0:
        chosen = f"gloo, because {obstacle}" if obstacle else f"shared memory ({ranks} ranks on one host)"
        print(f"wolong: collectives over {chosen}", file=sys.stderr, flush=True)
