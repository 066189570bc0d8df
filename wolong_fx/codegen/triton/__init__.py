"""The Triton target: a program as one persistent kernel with grid-wide barriers, or as a kernel a stage."""

from wolong_fx.codegen.triton.emitter import (
    BARRIERS,
    Argument,
    Memory,
    StagedSource,
    StageLaunch,
    StageLoop,
    TritonSource,
    emit_program,
    emit_stages,
)
from wolong_fx.codegen.triton.tiles import choose_tile

__all__ = [
    "BARRIERS",
    "Argument",
    "Memory",
    "StageLaunch",
    "StageLoop",
    "StagedSource",
    "TritonSource",
    "choose_tile",
    "emit_program",
    "emit_stages",
]
