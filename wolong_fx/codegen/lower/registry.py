"""The table of lowerings: ATen overload -> function from (lowering, node, operands) to values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Rule = Callable[..., Any]
Doubt = Callable[[torch.fx.Node], "str | None"]

LOWERINGS: dict[Any, Rule] = {}
DOUBTS: dict[Any, Doubt] = {}


def lowers(*targets: Any, unless: Doubt | None = None) -> Callable[[Rule], Rule]:
    """Register a lowering; `unless(node)` may name a reason why this very node is not supported."""

    def register(function: Rule) -> Rule:
        for target in targets:
            assert target not in LOWERINGS, target
            LOWERINGS[target] = function
            if unless is not None:
                DOUBTS[target] = unless
        return function

    return register
