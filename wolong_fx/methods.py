"""The methods of a model's classes, which Dynamo traces without a guard: it never sees them replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from wolong_fx.places import modules_of


class Methods:
    """Those of the modules that a call of `function` runs in, as they are now; for verify="always"."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._seen = self._now()

    def have_changed(self) -> bool:
        """Whether one was added, removed, replaced or given other code since this was last asked."""
        seen, self._seen = self._seen, self._now()
        return seen != self._seen

    def _now(self) -> dict[type, list[tuple[str, FunctionType, CodeType]]]:
        parts = (part for root in modules_of(self._function) for part in root.modules())
        return {kind: list(_methods_of(kind)) for kind in set(map(type, parts))}


def _methods_of(kind: type) -> Iterator[tuple[str, FunctionType, CodeType]]:
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for name, value in vars(base).items():
            if isinstance(value, FunctionType):
                yield name, value, value.__code__
