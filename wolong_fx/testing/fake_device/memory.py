"""Memory as torch's caching allocator lends it: a piece that is free is lent again at once, to the stream or
the graph that had it, while the work that still uses it waits in that stream's queue.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from wolong_fx.runtime.image import TensorSpec

UNIT = 512
"""Bytes: torch rounds up to it, and aligns to it."""


@dataclass(eq=False)
class Block:
    """A piece of memory.

    owner: of the pool that it belongs to: a stream, or a graph
    others: streams that use it too, until which it must wait when it is free
    """

    size: int
    owner: Hashable
    others: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._room = ctypes.create_string_buffer(self.size + UNIT)
        self.address = -(-ctypes.addressof(self._room) // UNIT) * UNIT


class Memory:
    """The pools of a device.

    is_done: whether all work of a stream is done
    """

    def __init__(self, is_done: Callable[[int], bool]) -> None:
        self._is_done = is_done
        self._free: defaultdict[tuple[Hashable, int], list[Block]] = defaultdict(list)
        self._parked: list[Block] = []
        self._leased: dict[int, Block] = {}
        self.allocations: list[tuple[Hashable, int]] = []

    def lend(self, spec: TensorSpec, owner: Hashable) -> tuple[Tensor, Block]:
        """A tensor in a piece of the owner's pool, which comes back when no tensor looks at it any more."""
        size = -(-max(1, spec.span_bytes) // UNIT) * UNIT
        self._unpark()
        free = self._free[owner, size]
        block = free.pop() if free else Block(size, owner)
        self.allocations.append((owner, size))
        return self._leased_tensor(block, spec), block

    def _leased_tensor(self, block: Block, spec: TensorSpec) -> Tensor:
        kind: Any = type("Lease", (ctypes.c_char * block.size,), {})  # a class of Python's can be watched
        lease = kind.from_address(block.address)
        self._leased[block.address] = block
        finalize(lease, self._give_back, block).atexit = False
        return torch.frombuffer(lease, dtype=spec.dtype).as_strided(spec.shape, spec.strides)

    def use_on(self, tensor: Tensor, stream: int) -> None:
        """As Tensor.record_stream."""
        block = self._leased.get(tensor.untyped_storage().data_ptr())
        if block is not None and block.owner != stream:
            block.others.add(stream)

    def is_lent(self, address: int) -> bool:
        """Whether an address is the beginning of a piece that is lent out."""
        return address in self._leased

    def owner_of(self, address: int) -> Hashable:
        """Whose pool the piece at an address, lent or not, belongs to."""
        return self._leased[address].owner

    def _give_back(self, block: Block) -> None:
        self._leased.pop(block.address, None)
        (self._parked if block.others else self._free[block.owner, block.size]).append(block)

    def _unpark(self) -> None:
        ready = [b for b in self._parked if all(map(self._is_done, b.others))]
        for block in ready:
            self._parked.remove(block)
            block.others.clear()
            self._free[block.owner, block.size].append(block)
