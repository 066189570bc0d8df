"""Names in a tile function, and the numbers of its checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

NumberCheck = Callable[[str], int]
"""The number of a check's message."""


@dataclass
class Names:
    """Fresh names: a letter and a number."""

    used: Counter[str] = field(default_factory=Counter)

    def fresh(self, letter: str) -> str:
        """The next name of this letter."""
        self.used[letter] += 1
        return f"{letter}{self.used[letter] - 1}"
