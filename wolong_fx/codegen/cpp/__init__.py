"""The CPU target: programs as header-free C++ with a persistent thread team and barriers.

`emit_program(program, isa, threads) -> KernelSource`; `choose_tile(op, isa, threads) -> tile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wolong_fx.codegen.cpp.emitter import KernelSource, emit_program
    from wolong_fx.codegen.cpp.tiles import choose_tile

__all__ = ["KernelSource", "choose_tile", "emit_program"]

_HOMES = {"KernelSource": "emitter", "emit_program": "emitter", "choose_tile": "tiles"}


def __getattr__(name: str) -> object:
    """Loaded when first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
