"""The CPU target: programs as header-free C++ with a persistent thread team and barriers.

`pack_operands(ops, isa) -> ops`, `choose_tile(op, isa, threads) -> tile` before and while scheduling;
`BlockOwners(program, isa, threads)`, `emit_program(program, isa, threads) -> KernelSource` after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wolong_fx.codegen.cpp.cuts import BlockOwners
    from wolong_fx.codegen.cpp.emitter import KernelSource, emit_program
    from wolong_fx.codegen.cpp.packing import pack_operands
    from wolong_fx.codegen.cpp.tiles import choose_tile

__all__ = ["BlockOwners", "KernelSource", "choose_tile", "emit_program", "pack_operands"]

_HOMES = {
    "BlockOwners": "cuts",
    "KernelSource": "emitter",
    "choose_tile": "tiles",
    "emit_program": "emitter",
    "pack_operands": "packing",
}


def __getattr__(name: str) -> object:
    """Loaded when first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
