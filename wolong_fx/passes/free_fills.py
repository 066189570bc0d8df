"""free-fills: a tensor of one number that another lends its shape names the shape itself.

A gradient that is summed over the steps of a loop starts as `full_like(weight, 0)`. To the cut of a training
graph that is something computed from a weight: the forward makes it and keeps it for the backward, 0.25 ms a
step of an LSTM with eight weight matrices. As `full` it needs nobody, stands where it is read, and a sum that
starts from zeros starts from its first term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from wolong_fx.passes.base import NodePass, Numerics
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.edit import Rewrite
from wolong_fx.passes.values import aten

FILLS = frozenset(
    {
        *(aten.full_like.default, aten.zeros_like.default, aten.ones_like.default),
        *(aten.new_full.default, aten.new_zeros.default, aten.new_ones.default),
    }
)


@dataclass(frozen=True)
class FreeFills(NodePass):
    """For the joint graph of a training step, before it is cut into forward and backward."""

    name: ClassVar[str] = "free-fills"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, node: Node) -> Rewrite | None:
        return Canonicalise().rewrite(node) if node.target in FILLS else None
