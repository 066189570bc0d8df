"""The Triton target: a program as one persistent kernel with grid-wide barriers."""

from wolong_fx.codegen.triton.emitter import BARRIERS, Argument, Memory, TritonSource, emit_program
from wolong_fx.codegen.triton.tiles import choose_tile

__all__ = ["BARRIERS", "Argument", "Memory", "TritonSource", "choose_tile", "emit_program"]
