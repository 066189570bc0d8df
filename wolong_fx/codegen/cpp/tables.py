"""The tables that drive a kernel: which tile function runs which virtual blocks on which thread, bound to
what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """Consecutive virtual blocks of one operator, for one thread."""

    function: int
    bindings: int
    first: int
    last: int


@dataclass
class Tables:
    """What the text's static arrays hold, in the order of stages and of threads in each."""

    threads: int
    runs: list[Run] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    bindings: list[int] = field(default_factory=list)
    barriers: list[bool] = field(default_factory=list)
    _bound: dict[tuple[int, ...], int] = field(default_factory=dict)

    def bind(self, pointers: Iterable[tuple[int, int]], numbers: Iterable[int] = ()) -> int:
        """Where these (argument, byte offset) pairs start in the table, the numbers behind them."""
        flat = (*(number for pair in pointers for number in pair), *numbers)
        if flat not in self._bound:
            self._bound[flat] = len(self.bindings)
            self.bindings += flat
        return self._bound[flat]

    def add_stage(self, runs_by_thread: Iterable[Sequence[Run]], barrier: bool) -> None:
        """The runs of each thread in one stage."""
        for runs in runs_by_thread:
            self.runs += runs
            self.starts.append(len(self.runs))
        self.barriers.append(barrier)


def emit_tables(tables: Tables, functions: Sequence[str]) -> str:
    """The static arrays."""
    runs = ", ".join(f"{{{r.function}, {r.bindings}, {r.first}, {r.last}}}" for r in tables.runs)
    return f"""\
// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run {{ i32 function, bindings; i64 first, last; }};
static const TileFunction FUNCTIONS[] = {{{_wrapped(functions)}}};
static const Run RUNS[] = {{{_wrapped(runs.split(", {"), ", {")}}};
static const i32 STARTS[] = {{{_wrapped(map(str, tables.starts))}}};
static const i64 BINDINGS[] = {{{_wrapped(map(str, tables.bindings or [0]))}}};
static const bool BARRIERS[] = {{{_wrapped(str(int(b)) for b in tables.barriers or [False])}}};
"""


def _wrapped(items: Iterable[str], separator: str = ", ") -> str:
    """Items in lines of about a hundred characters."""
    lines, line = [], ""
    for i, item in enumerate(items):
        piece = (separator if i else "") + item
        if len(line) + len(piece) > 100:
            lines.append(line)
            line = "  "
        line += piece
    return "\n".join([*lines, line])
