"""A bound on the search: what it may cost is linear in the graph, whatever the graph."""

from __future__ import annotations

from dataclasses import dataclass


class OutOfBudgetError(Exception):
    """The search has looked at as many pairs of nodes as it may; caught where the search starts."""


@dataclass
class Budget:
    """Units of work left; one unit is one pair of nodes, or of operands, compared."""

    left: int

    def spend(self, units: int) -> None:
        """Raises OutOfBudgetError when nothing is left."""
        self.left -= units
        if self.left < 0:
            raise OutOfBudgetError
