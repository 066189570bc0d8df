"""From emitted sources to what is built of them: by the compiler's process alone, or for a device."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from wolong_fx.codegen.emission import spec_of
from wolong_fx.codegen.triton.emitter import Argument, Memory, TritonSource, emit_program, emit_stages
from wolong_fx.ir.program import Program
from wolong_fx.ir.types import BufferKind, DType
from wolong_fx.runtime.gpu import Architecture, TritonImage
from wolong_fx.runtime.gpu.gpu_image import (
    ARENA,
    CONSTANTS,
    FIRST_TENSOR,
    GpuImage,
    GridText,
    Pointer,
    StagedText,
)

_NAMES = {DType.F64: "fp64", DType.F32: "fp32", DType.F16: "fp16", DType.BOOL: "u8"}

_PLACES = {Memory.ARENA: ARENA, Memory.CONSTANTS: CONSTANTS, Memory.TENSOR: FIRST_TENSOR}


def image_of(source: TritonSource, architecture: Architecture) -> TritonImage:
    """A source for one architecture, on as many blocks as its largest stage has virtual blocks, or as the
    device has multiprocessors if those are fewer.
    """
    pointers = tuple((p.name, p.type) for p in _pointers(source.arguments))
    blocks = min(source.blocks, architecture.multiprocessors)
    return TritonImage(source.text, pointers, architecture, blocks, source.warps)


def gpu_image_of(program: Program, precision: str, source: TritonSource | None = None) -> GpuImage:
    """A program for the runtime; its stages are emitted when they are asked for.

    precision: of float32 matrix products, "ieee" or "tf32"
    source: the program's kernel, if it is there already
    """
    source = source or emit_program(program, precision)
    given = [b for b in program.buffers if b.kind.is_given]
    meets = any(stage.barrier for stage in program.stages())
    return GpuImage(
        name=program.name,
        grid=GridText(source.text, _pointers(source.arguments), source.blocks, meets),
        stages=partial(_staged, program, precision),
        arena_bytes=program.arena.size if program.arena else 0,
        constants=source.constants,
        inputs=tuple(map(spec_of, given)),
        outputs=tuple(spec_of(b) for b in program.buffers if b.kind is BufferKind.OUTPUT),
        written=tuple(i for i, b in enumerate(given) if b.kind is BufferKind.STATE),
        checks=source.checks,
        warps=source.warps,
    )


def _staged(program: Program, precision: str) -> StagedText:
    source = emit_stages(program, precision)
    return StagedText(source.text, _pointers(source.arguments), source.launches)


def _pointers(arguments: Iterable[Argument]) -> tuple[Pointer, ...]:
    return tuple(
        Pointer(a.name, f"*{_NAMES.get(a.dtype, str(a.dtype))}", _PLACES[a.memory] + a.number)
        for a in arguments
    )
