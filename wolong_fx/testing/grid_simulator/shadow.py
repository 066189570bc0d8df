"""Who wrote and read every byte, and whether that was ordered before what happens now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Fault(Exception):
    """A kernel did what it may not do."""


@dataclass(eq=False)
class Region:
    """A piece of memory, by granules of a few bytes.

    writer, written_at: block that wrote last, and its own clock then
    read_at: of every block, its own clock when it read last
    is_written: whether anything is there
    """

    name: str
    start: int
    bytes: int
    writer: Array
    written_at: Array
    read_at: Array
    is_written: Array


class Clocks:
    """Vector clocks of the blocks.

    A block's threads are seen as two: the one that does atomics, and all of them. What an atomic acquires
    reaches all threads at the next debug_barrier; what it releases is what all had done by the last one.
    """

    def __init__(self, blocks: int) -> None:
        self.now = np.zeros((blocks, blocks), np.int64)
        np.fill_diagonal(self.now, 1)
        self.publishable = np.zeros_like(self.now)
        self.acquired = np.zeros_like(self.now)
        self.released: dict[int, Array] = {}

    def block_barrier(self, block: int) -> None:
        """All threads of a block have met."""
        self.now[block] = np.maximum(self.now[block], self.acquired[block])
        self.acquired[block] = 0
        self.publishable[block] = self.now[block]
        self.now[block, block] += 1

    def acquire(self, block: int, word: int) -> None:
        """One thread has read a word with acquire semantics."""
        released = self.released.get(word)
        if released is not None:
            self.acquired[block] = np.maximum(self.acquired[block], released)

    def release(self, block: int, word: int) -> None:
        """One thread has changed a word with release semantics."""
        mine, before = self.publishable[block], self.released.get(word)
        self.released[word] = mine.copy() if before is None else np.maximum(before, mine)


class Shadow:
    """Shadow memory of everything that a kernel may touch."""

    def __init__(self, blocks: int, granule: int) -> None:
        self.blocks, self.granule = blocks, granule
        self.clocks = Clocks(blocks)
        self.regions: list[Region] = []
        self.starts = np.zeros(0, np.uint64)

    def add(self, name: str, start: int, size: int, is_given: bool) -> None:
        """Allow accesses to memory; with `is_given`, reads before anything was written too."""
        granules = -(-size // self.granule)
        region = Region(
            name,
            start,
            size,
            np.zeros(granules, np.int32),
            np.zeros(granules, np.int64),
            np.zeros((self.blocks, granules), np.int64),
            np.full(granules, is_given),
        )
        self.regions = sorted([*self.regions, region], key=lambda r: r.start)
        self.starts = np.array([r.start for r in self.regions], np.uint64)

    def check_inside(self, block: int, addresses: Array, size: int) -> None:
        """Raise for addresses outside all memory."""
        for _ in self._granules(block, addresses, size):
            pass

    def read(self, block: int, addresses: Array, size: int) -> None:
        """Note that a block reads; raises Fault if anything there is not its to read."""
        now = self.clocks.now[block]
        for region, at in self._granules(block, addresses, size):
            if not region.is_written[at].all():
                first = at[~region.is_written[at]][0]
                raise Fault(f"{self._where(block, region, first)}: reads what nobody wrote")
            self._check_written_before(block, region, at, "reads")
            is_fresh = (region.writer[at] == block) & (region.written_at[at] == now[block])
            if is_fresh.any():
                where = self._where(block, region, at[is_fresh][0])
                raise Fault(f"{where}: reads what another thread may have written, no debug_barrier between")
            region.read_at[block][at] = now[block]

    def write(self, block: int, addresses: Array, size: int) -> None:
        """Note that a block writes; raises Fault if a write or read by another is not ordered before."""
        now = self.clocks.now[block]
        for region, at in self._granules(block, addresses, size):
            self._check_written_before(block, region, at, "writes")
            for other in range(self.blocks):
                unordered = region.read_at[other][at] > now[other]
                if other != block and unordered.any():
                    where = self._where(block, region, at[unordered][0])
                    raise Fault(f"{where}: writes while block {other} may still read")
            region.writer[at], region.written_at[at] = block, now[block]
            region.is_written[at] = True

    def end_launch(self) -> None:
        """Launches follow each other: what one did is ordered before what the next one does."""
        everything = self.clocks.now.max(axis=0)
        self.clocks.now[:] = everything
        self.clocks.now[np.diag_indices(self.blocks)] += 1

    def _check_written_before(self, block: int, region: Region, at: Array, does: str) -> None:
        writers = region.writer[at]
        unordered = (writers != block) & (region.written_at[at] > self.clocks.now[block][writers])
        if unordered.any():
            where = self._where(block, region, at[unordered][0])
            raise Fault(f"{where}: {does} what block {writers[unordered][0]} writes, no barrier between")

    def _granules(self, block: int, addresses: Array, size: int) -> Iterator[tuple[Region, Array]]:
        """The regions that addresses of elements of `size` bytes lie in, and which granules of each."""
        owner = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        for number in np.unique(owner):
            mine = addresses[owner == number]
            region = self.regions[max(number, 0)]
            offset = mine.astype(np.int64) - region.start
            if number < 0 or (offset + size > region.bytes).any():
                raise Fault(
                    f"block {block} leaves its memory, near {region.name!r} + {int(offset.max())} bytes"
                )
            steps = np.arange(0, size, self.granule)
            yield region, ((offset[:, None] + steps).ravel() // self.granule)

    def _where(self, block: int, region: Region, granule: int) -> str:
        return f"block {block}, {region.name!r} + {int(granule) * self.granule} bytes"
