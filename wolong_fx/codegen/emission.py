"""What every emitter does alike: constants laid out, and comments that say what a tile function is for."""

from __future__ import annotations

from collections.abc import Sequence

from wolong_fx.codegen.lower.value import TORCH_DTYPES
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.runtime.image import TensorSpec

CONSTANT_ALIGNMENT = 64
"""Bytes."""

_SHOWN = 8


def lay_out_constants(program: Program) -> tuple[bytes, dict[Buffer, int]]:
    """All constants in one piece of memory, each aligned, and where each is."""
    memory, offsets = bytearray(), {}
    for buffer in program.buffers:
        if buffer.kind is BufferKind.CONSTANT:
            memory += bytes(-len(memory) % CONSTANT_ALIGNMENT)
            offsets[buffer] = len(memory)
            memory += buffer.data or b""
    return bytes(memory), offsets


def spec_of(buffer: Buffer) -> TensorSpec:
    """What the tensor of an input or output buffer must be like."""
    return TensorSpec(TORCH_DTYPES[buffer.dtype], buffer.shape, buffer.strides)


def describe_users(users: Sequence[OpInst], mark: str) -> str:
    """Comment lines: which operators share a tile function, and what the first was made from.

    mark: what a comment begins with
    """
    first, more = users[0], len(users) - 1
    domain = " x ".join(f"{d.var.name} {d.extent}" for d in first.dims) or "one point"
    title = first.name + (f" and {more} alike" if more else "")
    lines = [f"{mark} {title}: {domain}, in blocks of {' x '.join(map(str, first.tile)) or '1'}"]
    if first.made_from:
        shown = ", ".join(first.made_from[:_SHOWN]) + (", ..." if len(first.made_from) > _SHOWN else "")
        lines.append(f"{mark} from {shown}")
    return "\n".join(lines) + "\n"
