"""What the simulator's two processes say to each other."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<q")


@dataclass(frozen=True)
class Memory:
    """A piece of memory that the kernel may touch.

    bytes: what it holds at the start
    is_given: whether reading it is right before anything was written
    """

    name: str
    bytes: bytes
    is_given: bool


@dataclass(frozen=True)
class Pointer:
    """A pointer argument: elements of a type in a memory."""

    memory: int
    dtype: str


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel of the module.

    trips: of the loops around, by depth
    """

    kernel: str
    blocks: int
    trips: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """Launch kernels one after another on the same memory, barrier words and all.

    text: a module with the kernels
    pointers: those of the kernels; without one called `word` or `failure` there is memory for it
    resident: blocks that may have started without having ended
    switching: probability that a load or store lets another block go on
    """

    text: str
    memories: tuple[Memory, ...]
    pointers: tuple[tuple[str, Pointer], ...]
    launches: tuple[Launch, ...]
    resident: int
    seed: int
    switching: float


@dataclass(frozen=True)
class Reply:
    """What a run left: the memories' bytes, or a fault.

    failure: what the kernel's failure word holds
    fault: what is wrong, and "" if nothing is
    is_ours: whether the simulator found the fault; else it is an error of the kernel or of Triton
    counts: of loads, stores, atomics, barriers and switches
    """

    memories: tuple[bytes, ...] = ()
    failure: int = 0
    fault: str = ""
    is_ours: bool = False
    counts: dict[str, int] = field(default_factory=dict)


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message; raises EOFError when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    return pickle.loads(stream.read(length))
