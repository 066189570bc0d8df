"""This process's arena: the one memory that all its groups share with their peers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch

from wolong_fx.comm.core_library import NOWHERE, CoreLibrary
from wolong_fx.comm.rendezvous import Card, DescriptorServer, Offer, fetch_descriptor
from wolong_fx.comm.shared_memory import SharedMemory

SPINS = 20_000
"""Looks at memory before a waiting rank sleeps: about 50 us, a few times what a barrier takes."""

SPINS_WITHOUT_A_CORE = 50
"""The same where ranks outnumber processors: whoever is waited for needs the processor."""


@dataclass(frozen=True)
class Usage:
    """Bytes of the arena: handed out now, the most there ever were, and in all.

    copied: bytes of operands that were outside, or small enough to travel with the ranks' meeting
    """

    used: int
    peak: int
    size: int
    copied: int


@dataclass
class Arena:
    """The memory of this process, its engine, and the peers whose memory is mapped here.

    peers: memory and pidfd by the name of the memory
    """

    core: CoreLibrary
    memory: SharedMemory
    engine: int
    name: str = field(default_factory=lambda: secrets.token_hex(16))
    peers: dict[str, tuple[SharedMemory, int]] = field(default_factory=dict)

    @classmethod
    def create(cls, core: CoreLibrary, size: int) -> Arena:
        """An arena of `size` bytes. Raises MemoryError and OSError."""
        memory = SharedMemory.create(core, size)
        arena = cls(core, memory, core.open(memory.address, size, SPINS))
        arena.peers[arena.name] = memory, -1
        return arena

    def usage(self) -> Usage:
        core, engine = self.core, self.engine
        return Usage(core.used(engine), core.peak(engine), self.memory.size, core.copied(engine))

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a dense tensor lies in the arena, from where collectives take it without a copy."""
        return self.core.has(self.engine, tensor.data_ptr(), tensor.nbytes)

    def offer(self, ranks: int, timeout: timedelta) -> Offer:
        """A part of the arena for a group of so many ranks, and a server of the memory for the others."""
        share = self.core.prepare_share(self.engine, ranks)
        if share == NOWHERE:
            raise MemoryError(f"the arena of {self.memory.size} bytes has no room for a group")
        server = DescriptorServer(self.memory.descriptor, ranks - 1, timeout)
        return Offer(self.name, share, server.name, server.secret)

    def join(self, cards: Sequence[Card], rank: int, timeout: timedelta) -> int:
        """The group of the ranks that hold these cards, over this memory and theirs."""
        if len(cards) > len(os.sched_getaffinity(0)):
            self.core.set_spins(self.engine, SPINS_WITHOUT_A_CORE)
        found = [self._attach(card.offer, timeout) for card in cards]
        return self.core.join(
            self.engine,
            rank,
            [memory.address for memory, _ in found],
            [memory.size for memory, _ in found],
            [process for _, process in found],
            [card.offer.share for card in cards],
        )

    def _attach(self, offer: Offer, timeout: timedelta) -> tuple[SharedMemory, int]:
        """The memory that is offered; fetched even where it is known: its server waits for that."""
        if offer.memory == self.name:
            return self.peers[self.name]
        descriptor, process = fetch_descriptor(offer, timeout)
        if offer.memory in self.peers:
            os.close(descriptor)
            os.close(process)
        else:
            self.peers[offer.memory] = SharedMemory.attach(self.core, descriptor), process
        return self.peers[offer.memory]
