"""Asks the interpreting process to run a program's kernel."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, cast

import torch
from torch import Tensor

from wolong_fx.codegen.lower.value import TORCH_DTYPES
from wolong_fx.codegen.triton import (
    Argument,
    StagedSource,
    StageLaunch,
    StageLoop,
    TritonSource,
    emit_program,
)
from wolong_fx.codegen.triton import Memory as Where
from wolong_fx.errors import KernelCheckFailed, ProgramFault
from wolong_fx.ir.program import Program
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.testing.grid_simulator.messages import Launch, Memory, Pointer, Reply, Request, receive, send

POISON = 0xFF
"""Every byte of memory that holds nothing: NaN as a float, -1 as an integer."""


@dataclass(frozen=True)
class SimulatedRun:
    """Outputs with their buffers' strides, and counts of what happened in all launches."""

    outputs: list[Tensor]
    counts: dict[str, int]


def simulate(
    program: Program,
    inputs: Sequence[Tensor],
    *,
    blocks: int = 1,
    resident: int | None = None,
    seed: int = 0,
    switching: float = 0.05,
    launches: int = 1,
    source: TritonSource | StagedSource | None = None,
) -> SimulatedRun:
    """Run the kernel of a scheduled and planned program on simulated blocks.

    inputs: one tensor for each INPUT or STATE buffer, of its dtype and shape
    resident: blocks that fit on the device together; all by default
    switching: probability that a load or store lets another block go on; atomics always do
    launches: runs on the same memory, one after another
    source: what to run instead of what the emitter makes of the program; of a kernel for every stage, each is
        launched on as many blocks as it has virtual ones

    Raises KernelCheckFailed (an IndexError) when a check of the kernel fails, and ProgramFault for races,
    deadlocks, reads of what nobody wrote and accesses outside all memory.
    """
    source = source or emit_program(program)
    memories = _memories(program, inputs, source)
    numbers = {m.name: i for i, m in enumerate(memories)}
    pointers = tuple(
        (a.name, Pointer(numbers[_memory_of(a)], _torch_name(a.dtype))) for a in source.arguments
    )
    if isinstance(source, StagedSource):
        once = tuple(_unrolled(source.launches, ()))
    else:
        once = (Launch("wolong", blocks),)
    most = max((launch.blocks for launch in once), default=1)
    request = Request(
        source.text, tuple(memories), pointers, once * launches, resident or most, seed, switching
    )
    reply = run_launches(request)
    if reply.fault:
        raise ProgramFault(program=program.name, fault=reply.fault, where="the grid simulator")
    if reply.failure:
        raise KernelCheckFailed(message=source.checks[reply.failure - 1], kernel=program.name)
    found = dict(zip((m.name for m in memories), reply.memories, strict=True))
    first = len(inputs)
    outputs = [b for b in program.buffers if b.kind is BufferKind.OUTPUT]
    return SimulatedRun(
        [_tensor(found[f"tensor{first + i}"], b) for i, b in enumerate(outputs)], reply.counts
    )


def run_launches(request: Request) -> Reply:
    """What the interpreting process says to a request."""
    return _worker().ask(request)


def _unrolled(launches: Sequence[StageLaunch | StageLoop], trips: tuple[int, ...]) -> Iterator[Launch]:
    """Every launch in order."""
    for item in launches:
        if isinstance(item, StageLaunch):
            yield Launch(item.kernel, item.blocks, trips)
        else:
            for trip in range(item.trips):
                yield from _unrolled(item.body, (*trips, trip))


def _memories(
    program: Program, inputs: Sequence[Tensor], source: TritonSource | StagedSource
) -> list[Memory]:
    """Everything that the kernel may touch."""
    given = [b for b in program.buffers if b.kind.is_given]
    outputs = [b for b in program.buffers if b.kind is BufferKind.OUTPUT]
    memories = [
        Memory(f"tensor{i}", _bytes(tensor, buffer), True)
        for i, (tensor, buffer) in enumerate(zip(inputs, given, strict=True))
    ]
    memories += [
        Memory(f"tensor{i}", bytes([POISON]) * b.span_bytes, False) for i, b in enumerate(outputs, len(given))
    ]
    arena = program.arena.size if program.arena else 0
    memories.append(Memory("arena", bytes([POISON]) * arena, False))
    memories.append(Memory("constants", source.constants, True))
    return memories


def _memory_of(argument: Argument) -> str:
    is_tensor = argument.memory is Where.TENSOR
    return f"tensor{argument.number}" if is_tensor else argument.memory.value


def _torch_name(dtype: DType) -> str:
    """Name of the element type; bools are bytes."""
    return "uint8" if dtype is DType.BOOL else str(TORCH_DTYPES[dtype]).removeprefix("torch.")


def _bytes(tensor: Tensor, buffer: Buffer) -> bytes:
    """A tensor's elements where the buffer's strides want them."""
    room = torch.zeros(buffer.span_bytes // buffer.dtype.bytes, dtype=TORCH_DTYPES[buffer.dtype])
    if buffer.elements:
        once = [n if stride else 1 for n, stride in zip(buffer.shape, buffer.strides, strict=True)]
        first = tensor[tuple(slice(n) for n in once)]  # an expanded tensor's elements, each once
        room.as_strided(once, buffer.strides).copy_(first)
    return bytes(room.view(torch.uint8).numpy().tobytes())


def _tensor(data: bytes, buffer: Buffer) -> Tensor:
    dtype = TORCH_DTYPES[buffer.dtype]
    if not data:
        return torch.empty(buffer.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).as_strided(buffer.shape, buffer.strides)


class _Worker:
    """The interpreting process, started when it is first asked and again after it died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, request: Request) -> Reply:
        with self.lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                send(cast(BinaryIO, process.stdin), request)
                return receive(cast(BinaryIO, process.stdout))
            except (EOFError, BrokenPipeError) as error:
                raise RuntimeError("the grid simulator's process died; its last words are above") from error

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-P", "-m", "wolong_fx.testing.grid_simulator.worker"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@cache
def _worker() -> _Worker:
    return _Worker()
