"""Wolong FX: PyTorch models made of many small operators, compiled into one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wolong_fx.api import Stats, deoptimize, optimize, stats
    from wolong_fx.options import Options

__all__ = ["Options", "Stats", "deoptimize", "optimize", "stats"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Public names load at first use (PEP 562): importing the package must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("wolong_fx.options" if name == "Options" else "wolong_fx.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
