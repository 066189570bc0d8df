"""Memory of the reference machine: poisoned before use; every element knows which buffer wrote it last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wolong_fx.errors import ProgramFault, StaleKernelInput
from wolong_fx.ir.program import ArenaPlan, Program
from wolong_fx.ir.types import Buffer, BufferKind, DType

POISON = 0xFF
"""Every byte of memory that holds nothing: NaN as a float, -1 as an integer."""

COLOURS = 255
"""Buffers are told apart by one byte; two of one arena share a colour only if 254 others stand between them.
"""

TORCH_DTYPES = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}

_COLOUR_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Storage:
    """A buffer's elements from its first to its last, gaps between strided rows included.

    writer: one word an element, whose bytes are all `mark` once this buffer wrote them; None for what the
        caller filled
    """

    elements: Tensor
    writer: Tensor | None
    mark: int


class Memory:
    """The storages of one run.

    precise: every float lives in float64; each temporary then has memory of its own, since widths no longer
        fit a plan
    """

    def __init__(self, program: Program, inputs: Sequence[Tensor], precise: bool) -> None:
        self.program = program
        self.precise = precise
        self.storages: dict[Buffer, Storage] = {}
        self._bind_inputs(inputs)
        arena = _poisoned_arena(program.arena) if program.arena and not precise else None
        for colour, buffer in enumerate(program.buffers):
            if buffer.kind is BufferKind.CONSTANT:
                self.storages[buffer] = self._read_only(_constant(buffer))
            elif buffer.kind is BufferKind.OUTPUT or (buffer.kind is BufferKind.TEMPORARY and not arena):
                self.storages[buffer] = self._fresh(buffer, colour)
            elif arena and buffer.kind is BufferKind.TEMPORARY:
                self.storages[buffer] = self._in_arena(buffer, colour, *arena)

    def dtype(self, dtype: DType) -> torch.dtype:
        """The torch type that stands for an element type in this run."""
        return torch.float64 if self.precise and dtype.is_float else TORCH_DTYPES[dtype]

    def poison(self, buffer: Buffer) -> None:
        """Forget what a dead buffer still holds, sparing bytes that another buffer took over meanwhile."""
        storage = self.storages[buffer]
        assert storage.writer is not None
        gone = storage.writer == storage.mark
        width = storage.elements.element_size()
        storage.elements.view(_COLOUR_WORDS[width])[gone] = _word(POISON, width)
        storage.writer[gone] = 0

    def outputs(self) -> list[Tensor]:
        """The outputs in calling order; raises ProgramFault if an element of one was never written."""
        return [self._output(b) for b in self.program.buffers if b.kind is BufferKind.OUTPUT]

    def _output(self, buffer: Buffer) -> Tensor:
        storage = self.storages[buffer]
        assert storage.writer is not None
        written = storage.writer.as_strided(buffer.shape, buffer.strides) == storage.mark
        if not written.all():
            left = int((~written).sum())
            raise ProgramFault(
                program=self.program.name,
                fault=f"left {left} elements of an output unwritten",
                where=f"output {buffer.name!r}",
            )
        return storage.elements.as_strided(buffer.shape, buffer.strides)

    def _bind_inputs(self, inputs: Sequence[Tensor]) -> None:
        expected = [b for b in self.program.buffers if b.kind.is_given]
        if len(inputs) != len(expected):
            raise self._stale("inputs", f"{len(expected)} tensors", f"{len(inputs)}")
        for buffer, tensor in zip(expected, inputs, strict=True):
            self._check_input(buffer, tensor)
            self.storages[buffer] = self._read_only(_elements_of(buffer, tensor))

    def _check_input(self, buffer: Buffer, tensor: Tensor) -> None:
        wide = self.precise and tensor.dtype is torch.float64
        dtype = torch.float64 if wide and buffer.dtype.is_float else TORCH_DTYPES[buffer.dtype]
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, buffer.shape):
            found = f"{tensor.dtype}{list(tensor.shape)}"
            raise self._stale(f"input {buffer.name!r}", f"{dtype}{list(buffer.shape)}", found)

    def _stale(self, which: str, expected: str, found: str) -> StaleKernelInput:
        return StaleKernelInput(kernel=self.program.name, which=which, expected=expected, found=found)

    def _read_only(self, elements: Tensor) -> Storage:
        wide = elements.double() if self.precise and elements.is_floating_point() else elements
        return Storage(wide, None, 0)

    def _fresh(self, buffer: Buffer, colour: int) -> Storage:
        dtype = self.dtype(buffer.dtype)
        size = buffer.span_bytes // buffer.dtype.bytes * dtype.itemsize
        memory = torch.full((size,), POISON, dtype=torch.uint8)
        return _storage(memory, torch.zeros_like(memory), dtype, colour)

    def _in_arena(self, buffer: Buffer, colour: int, memory: Tensor, writer: Tensor) -> Storage:
        assert self.program.arena is not None
        start = self.program.arena.offsets[buffer]
        end = start + buffer.span_bytes
        return _storage(memory[start:end], writer[start:end], TORCH_DTYPES[buffer.dtype], colour)


def _poisoned_arena(plan: ArenaPlan) -> tuple[Tensor, Tensor]:
    """The arena's bytes and, for each, the colour of the buffer that wrote it last (0: nobody)."""
    return torch.full((plan.size,), POISON, dtype=torch.uint8), torch.zeros(plan.size, dtype=torch.uint8)


def _storage(memory: Tensor, writer: Tensor, dtype: torch.dtype, colour: int) -> Storage:
    words = _COLOUR_WORDS[dtype.itemsize]
    return Storage(memory.view(dtype), writer.view(words), _word(colour % COLOURS + 1, dtype.itemsize))


def _word(byte: int, size: int) -> int:
    """`byte` repeated `size` times, as the signed word that torch has for it (bytes are unsigned)."""
    return int.from_bytes(bytes([byte]) * size, "little", signed=size > 1)


def _constant(buffer: Buffer) -> Tensor:
    assert buffer.data is not None, buffer
    dtype = TORCH_DTYPES[buffer.dtype]
    if not buffer.data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(buffer.data), dtype=dtype)


def _elements_of(buffer: Buffer, tensor: Tensor) -> Tensor:
    """The tensor's memory as one dimension that the buffer's strides count in; copied if it has other
    strides.
    """
    if not buffer.elements:
        return tensor.new_empty(0)
    pairs = zip(buffer.shape, tensor.stride(), buffer.strides, strict=True)
    if any(mine != wanted for extent, mine, wanted in pairs if extent > 1):
        tensor = torch.empty_strided(buffer.shape, buffer.strides, dtype=tensor.dtype).copy_(tensor)
    span = buffer.span_bytes // buffer.dtype.bytes
    return tensor.detach().as_strided((span,), (1,), tensor.storage_offset())
