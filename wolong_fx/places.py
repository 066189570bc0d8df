"""Where a plain function finds the modules and tensors that it does not get as arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """A global or a cell of a closure, and what stands there.

    container: the dictionary of globals, under `key`, or the cell
    source: what Dynamo's guards call it
    """

    container: dict[str, Any] | CellType
    key: str | None
    value: Any
    source: str


def places_of(function: Callable[..., Any]) -> tuple[Place, ...]:
    """Of the modules and tensors that the code of `function` itself names."""
    if not isinstance(function, FunctionType):
        return ()
    found = (*_globals(function), *_cells(function))
    return tuple(place for place in found if isinstance(place.value, Tensor | nn.Module))


def modules_of(function: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """Those that a call of `function` runs in, as far as can be told: its own and those at its places."""
    own = function.__self__ if isinstance(function, MethodType) else None
    values = (own, *(place.value for place in places_of(function)))
    return tuple(value for value in values if isinstance(value, nn.Module))


def _globals(function: FunctionType) -> Iterator[Place]:
    known, module = function.__globals__, str(function.__module__).replace(".", "_dot_")
    for name in function.__code__.co_names:
        if name in known:
            yield Place(known, name, known[name], f"G['__import_{module}'].{name}")


def _cells(function: FunctionType) -> Iterator[Place]:
    for i, cell in enumerate(function.__closure__ or ()):
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        yield Place(cell, None, value, f"L['function'].__closure__[{i}].cell_contents")
