"""The tables that drive a kernel: which tile function runs which virtual blocks on which thread, bound to
what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One operator of a stage.

    function: number of its tile function
    bindings: where its bindings start in the table of bindings
    blocks: virtual blocks
    panel: blocks that a cut should keep together
    cycles: estimated work of all blocks
    """

    function: int
    bindings: int
    blocks: int
    panel: int
    cycles: float


@dataclass(frozen=True)
class Run:
    """Consecutive virtual blocks of one operator, for one thread."""

    function: int
    bindings: int
    first: int
    last: int


SMALL_STAGE = 1500.0
"""Cycles of a stage that is left to one thread: handing cache lines around would cost more."""


@dataclass
class Tables:
    """What the text's static arrays hold, in the order of stages and of threads in each."""

    threads: int
    runs: list[Run] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    bindings: list[int] = field(default_factory=list)
    barriers: list[bool] = field(default_factory=list)
    _bound: dict[tuple[int, ...], int] = field(default_factory=dict)

    def bind(self, pointers: Iterable[tuple[int, int]]) -> int:
        """Where these (argument, byte offset) pairs start in the table."""
        flat = tuple(number for pair in pointers for number in pair)
        if flat not in self._bound:
            self._bound[flat] = len(self.bindings)
            self.bindings += flat
        return self._bound[flat]

    def add_stage(self, entries: Sequence[Entry], barrier: bool) -> None:
        """Cut a stage's blocks into one contiguous range of equal cost for each thread."""
        for runs in cut_stage(entries, self.threads):
            self.runs += runs
            self.starts.append(len(self.runs))
        self.barriers.append(barrier)


def cut_stage(entries: Sequence[Entry], threads: int) -> list[list[Run]]:
    """Runs of each thread: static contiguous ranges, so that a thread meets the same memory in every trip
    of a loop.

    Cuts fall between panels where there are at least two a thread, else between blocks. A block that is alone
    is the first thread's, always: no barrier is needed between two such stages.
    """
    total = sum(e.cycles for e in entries)
    found: list[list[Run]] = [[] for _ in range(threads)]
    is_alone = sum(e.blocks for e in entries) == 1
    share = float("inf") if is_alone or total <= SMALL_STAGE else total / threads
    before = 0.0
    for entry in entries:
        unit = _unit(entry, entry.cycles / total * threads if total else 1)
        first = 0
        for thread in range(threads):
            ends = _part(share * (thread + 1) - before, entry.cycles)
            last = entry.blocks if thread == threads - 1 else _cut(entry, ends, unit)
            if last > first:
                found[thread].append(Run(entry.function, entry.bindings, first, last))
                first = last
        before += entry.cycles
    return found


def _unit(entry: Entry, threads: float) -> int:
    panels = entry.blocks // max(1, entry.panel)
    return entry.panel if panels >= 8 * threads or (threads > 1 and panels % round(threads) == 0) else 1


def _part(cycles: float, whole: float) -> float:
    """`cycles` as a part of `whole`, between 0 and 1."""
    if cycles >= whole:
        return 1.0
    return cycles / whole if cycles > 0 else 0.0


def _cut(entry: Entry, part: float, unit: int) -> int:
    return entry.blocks if part >= 1 else min(entry.blocks, round(entry.blocks / unit * part) * unit)


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
