"""Kernels of hand-built programs: scheduled, emitted as C++, built and loaded, without anything of the front
end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

from wolong_fx.codegen.cpp import KernelSource, choose_tile, emit_program
from wolong_fx.codegen.lower.value import TORCH_DTYPES
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import BufferKind
from wolong_fx.options import Options
from wolong_fx.runtime import Kernel, KernelImage, TensorSpec, load_kernel
from wolong_fx.toolchain import isa_flags


def map_ops(program: Program, change: Callable[[OpInst], OpInst]) -> Program:
    """The program with every operator changed."""

    def changed(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(
            replace(item, ops=tuple(change(op) for op in item.ops))
            if isinstance(item, Stage)
            else Loop(item.var, changed(item.body))
            for item in items
        )

    return replace(program, body=changed(program.body))


def with_chosen_tiles(program: Program, isa: str, threads: int) -> Program:
    """The program with the tiles that the C++ target chooses."""
    return map_ops(program, lambda op: replace(op, tile=choose_tile(op, isa, threads)))


def image_of(program: Program, source: KernelSource, isa: str) -> KernelImage:
    """The image of a program whose arena is planned."""
    assert program.arena is not None
    specs = {
        kind: tuple(
            TensorSpec(TORCH_DTYPES[b.dtype], b.shape, b.strides) for b in program.buffers if b.kind is kind
        )
        for kind in (BufferKind.INPUT, BufferKind.OUTPUT)
    }
    return KernelImage(
        source=source.text,
        flags=isa_flags(isa),
        arena_bytes=program.arena.size,
        constants=source.constants,
        inputs=specs[BufferKind.INPUT],
        outputs=specs[BufferKind.OUTPUT],
        threads=source.threads,
        checks=source.checks,
        name=program.name,
    )


def build_kernel(
    program: Program, isa: str, threads: int, options: Options, core_cache_bytes: float = inf
) -> Kernel:
    """A loaded kernel of a program with tiles and a planned arena."""
    source = emit_program(program, isa, threads, core_cache_bytes)
    return load_kernel(image_of(program, source, isa), options)
