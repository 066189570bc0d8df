"""How much a kernel may keep in registers: as much as the compiler says that a device has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wolong_fx.codegen.triton.emitter import TritonSource, emit_program
from wolong_fx.codegen.triton.image import image_of
from wolong_fx.codegen.triton.keep import KEPT_BYTES
from wolong_fx.ir.program import Program
from wolong_fx.runtime.gpu import Architecture, TritonBinary, TritonImage

ROOMS = (KEPT_BYTES, KEPT_BYTES // 2, KEPT_BYTES // 4, 0)
"""Bytes that a block may keep over a loop, in the order in which they are tried: what is kept is not read
again, so the most that fits is best."""

Build = Callable[[TritonImage], TritonBinary]


def fit_program(
    program: Program, precision: str, architecture: Architecture, build: Build
) -> tuple[TritonSource, TritonBinary]:
    """The kernel that keeps most without spilling and without blocks that are not resident; if there is none,
    the one nearest to it.

    build: the compiler, which no device is needed for; almost always asked once. Raises what it raises.
    """
    found = []
    for source in _sources(program, precision):
        binary = build(image_of(source, architecture))
        missing = min(source.blocks, architecture.multiprocessors) - binary.resident_blocks
        found.append((max(0, missing), binary.spill_bytes, source, binary))
        if missing <= 0 and not binary.spill_bytes:
            break
    _, _, source, binary = min(found, key=lambda each: each[:2])
    return source, binary


def _sources(program: Program, precision: str) -> Iterator[TritonSource]:
    """The program's kernel for every room, each text once."""
    texts = set()
    for room in ROOMS:
        source = emit_program(program, precision, room=room)
        if source.text not in texts:
            texts.add(source.text)
            yield source
