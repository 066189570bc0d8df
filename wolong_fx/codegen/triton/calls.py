"""Calls of tile functions: which operator a virtual block of a stage belongs to, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wolong_fx.codegen.triton.kept_text import LEAVES
from wolong_fx.codegen.triton.tile_function import TileFunction


@dataclass(frozen=True)
class Call:
    """An operator's tile function and what the kernel gives it.

    blocks: virtual blocks
    given: what its parameters are named in the kernel
    """

    function: TileFunction
    blocks: int
    given: dict[str, str]

    @property
    def keeps(self) -> bool:
        return self.function.fill is not None

    def fill(self, block: str) -> str:
        """The statement that fills what a block keeps."""
        assert self.function.fill is not None
        names = [self.given[name] for name in self.function.kept]
        return f"{', '.join(names)} = {self._call(self.function.fill_name, self.function.fill, block, {})}"

    def step(self, block: str, leaves: str) -> str:
        """The statement that runs a block.

        leaves: whether this trip is the last
        """
        call = self._call(self.function.name, self.function.parameters, block, {LEAVES: leaves})
        states = [self.given[name] for name in self.function.states]
        return f"{', '.join(states)} = {call}" if states else call

    def alone(self, block: str) -> list[str]:
        """Statements that run a block for which nothing is kept."""
        return [*([self.fill(block)] if self.keeps else []), self.step(block, "True")]

    def _call(self, name: str, parameters: Sequence[str], block: str, more: dict[str, str]) -> str:
        given = self.given | more
        return f"{name}({', '.join([block, *(given[p] for p in parameters)])})"


def run_in_turn(calls: Sequence[Call]) -> list[str]:
    """Statements that run a stage's virtual blocks round-robin, those of its operators end to end."""
    if not calls:
        return []
    bodies = [call.alone(_block("v", first)) for first, call in _placed(calls)]
    lines = _dispatch("v", calls, bodies)
    return [f"for v in range(pid, {total(calls)}, G):", *("    " + line for line in lines)]


def run_own(calls: Sequence[Call], is_last: str) -> list[str]:
    """Statements that run the virtual block that has the number of the physical one, if there is one."""
    bodies = [[call.step(_block("pid", first), is_last)] for first, call in _placed(calls)]
    return [f"if pid < {total(calls)}:", *("    " + line for line in _dispatch("pid", calls, bodies))]


def fill_own(calls: Sequence[Call]) -> list[str]:
    """Statements that fill what every physical block keeps of a stage."""
    lines = []
    for first, call in _placed(calls):
        own = f"tl.maximum({_block('pid', first)}, 0)" if first else "pid"
        lines += [call.fill(f"tl.minimum({own}, {call.blocks - 1})")] if call.keeps else []
    return lines


def total(calls: Sequence[Call]) -> int:
    """Virtual blocks of a stage."""
    return sum(call.blocks for call in calls)


def _placed(calls: Sequence[Call]) -> list[tuple[int, Call]]:
    """Every call with the number of its first virtual block in the stage."""
    return [(total(calls[:i]), call) for i, call in enumerate(calls)]


def _block(number: str, first: int) -> str:
    return f"{number} - {first}" if first else number


def _dispatch(number: str, calls: Sequence[Call], bodies: Sequence[list[str]], first: int = 0) -> list[str]:
    """The statements of that operator which a virtual block of the stage belongs to.

    first: the number of the first of these blocks in the stage

    Halved again and again: a chain of `elif` is as deep for Triton as it is long, and its compiler gives up
    at a few hundred.
    """
    if len(calls) == 1:
        return bodies[0]
    half = len(calls) // 2
    bound = first + total(calls[:half])
    return [
        f"if {number} < {bound}:",
        *("    " + line for line in _dispatch(number, calls[:half], bodies[:half], first)),
        "else:",
        *("    " + line for line in _dispatch(number, calls[half:], bodies[half:], bound)),
    ]
