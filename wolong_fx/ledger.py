"""The ledger: what was decided about every operator, by which step, why, and where in the user's model."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from math import inf
from time import perf_counter
from typing import Protocol

ACTIONS = ("removed", "replaced", "folded", "fused", "fell-back", "kept")

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def _folder(package: str) -> str:
    spec = find_spec(package)
    return os.path.dirname(spec.origin) + os.sep if spec and spec.origin else os.sep


# Folders, not substrings: a user's own checkout may well lie under a directory named torch.
_LIBRARIES = (_folder("torch"), _folder("wolong_fx"))


@dataclass(frozen=True)
class Decision:
    """One line of the ledger."""

    step: str
    node: str
    action: str
    because: str
    where: str

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"{self.step}: {self.node} {self.action}{place}: {self.because}"


class Timed(Protocol):
    """A kernel that looks at the clock."""

    @property
    def best_seconds(self) -> float: ...


@dataclass(frozen=True)
class LaunchTime:
    """How long a launch of a kernel should take, and what its launches took at best.

    predicted: seconds
    kernel: gone with the model
    """

    name: str
    threads: int
    predicted: float
    kernel: Callable[[], Timed | None]

    @property
    def measured(self) -> float | None:
        """Seconds; None before the first launch."""
        kernel = self.kernel()
        best = inf if kernel is None else kernel.best_seconds
        return None if best == inf else best

    def __str__(self) -> str:
        team = f"{self.threads} thread{'s' * (self.threads > 1)}"
        took = "not measured" if self.measured is None else f"{1e6 * self.measured:.3g} us at best"
        return f"{self.name} on {team}: {1e6 * self.predicted:.3g} us predicted, {took}"


@dataclass(frozen=True)
class GpuKernelReport:
    """What a call of one kernel on a GPU launches.

    device: its name
    form: "persistent", one launch whose blocks wait for each other, or "staged", a launch for every stage
    launches: of a call, those in loops as often as they run
    grid: blocks of the (largest) launch
    resident_blocks: blocks of that kernel that the device holds together, as its driver says
    wanted_blocks: blocks that would all have work
    registers, spill_bytes: of a thread; shared_bytes: of a block; of the hungriest kernel
    """

    name: str
    device: str
    form: str
    launches: int
    grid: int
    resident_blocks: int
    wanted_blocks: int
    registers: int
    spill_bytes: int
    shared_bytes: int

    def __str__(self) -> str:
        launches = f"{self.launches} launch{'es' * (self.launches > 1)}"
        takes = f"{self.registers} registers, {self.spill_bytes} bytes spilled, {self.shared_bytes} shared"
        return (
            f"{self.name} on {self.device}: {self.form}, {launches} of {self.grid} blocks "
            f"({self.wanted_blocks} wanted, {self.resident_blocks} resident), {takes}"
        )


@dataclass(frozen=True)
class Copies:
    """Pieces of memory that are copied in one call, and the bytes written by that."""

    number: int = 0
    bytes: int = 0

    def __add__(self, other: Copies) -> Copies:
        return Copies(self.number + other.number, self.bytes + other.bytes)

    def __sub__(self, other: Copies) -> Copies:
        return Copies(self.number - other.number, self.bytes - other.bytes)

    def __mul__(self, times: int) -> Copies:
        return Copies(self.number * times, self.bytes * times)

    def upto(self, other: Copies) -> Copies:
        """The smaller number and the smaller size."""
        return Copies(min(self.number, other.number), min(self.bytes, other.bytes))

    def atleast(self, other: Copies) -> Copies:
        """The larger number and the larger size."""
        return Copies(max(self.number, other.number), max(self.bytes, other.bytes))

    def __str__(self) -> str:
        return f"{self.number} of {self.bytes:,} bytes"


TRACED, PASSES, PARTITIONS = "traced", "passes", "partitions"
"""What `Ledger.copies` counts before code generation: of all the graph, twice, and of its kernels' parts."""


@dataclass
class Ledger:
    """Decisions, seconds by step, operator counts (before, after) by step and kernels of a compiled graph.

    copies: by step what is still copied in a call after it; see `copies_removed`
    gpu_reports: of each kernel on a GPU, what it says of itself now, or None when it is gone
    """

    decisions: list[Decision] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    op_counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    launch_times: list[LaunchTime] = field(default_factory=list)
    gpu_reports: list[Callable[[], GpuKernelReport | None]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=lambda: {"arena": 0, "eager": 0, "kept": 0})
    copies: dict[str, Copies] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=list, repr=False, compare=False)

    def note(self, step: str, node: object, action: str, because: str) -> None:
        """Record a decision; `node` is an fx.Node (its meta gives the user's line) or a name."""
        assert action in ACTIONS, action
        self.decisions.append(Decision(step, str(node), action, because, user_line(node)))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds spent inside, less those of steps timed within it, to `timings[step]`."""
        self._inner.append(0.0)
        start = perf_counter()
        try:
            yield
        finally:
            took = perf_counter() - start
            self.timings[step] = self.timings.get(step, 0.0) + took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    @property
    def gpu_kernels(self) -> list[GpuKernelReport]:
        """The kernels on GPUs as they are launched now, in the order in which they were compiled."""
        return [report for ask in self.gpu_reports if (report := ask()) is not None]

    def add_memory(self, *, arena: int, eager: int, kept: int = 0) -> None:
        """Record the bytes one partition's temporaries take, and what eager's would at their peak.

        kept: bytes computed from weights that stay between calls; those of all partitions are there at once
        """
        self.memory["kept"] += kept
        for name, size in (("arena", arena), ("eager", eager)):
            self.memory[name] = max(self.memory[name], size)

    def count_copies(self, step: str, copies: Copies) -> None:
        """Record what is still copied in a call after a step; the parts of a graph add up.

        step: TRACED for the graph as it came and PASSES after the passes; what became of the parts that are
            kernels, PARTITIONS before code generation and then the names of its steps, in order
        """
        self.copies[step] = self.copies.get(step, Copies()) + copies

    @contextmanager
    def copies_of_part(self) -> Iterator[None]:
        """Forget the copies counted inside if that fails: torch then runs the part."""
        before = dict(self.copies)
        try:
            yield
        except BaseException:
            self.copies = before
            raise

    def copies_removed(self) -> dict[str, Copies]:
        """By step, the copies of a call that torch would make and we do not, with the bytes it would write.

        A copy reads memory only to write it elsewhere; its bytes are those written. Torch: running the graph
        that we were given, operator by operator. We: our kernels, and torch where it runs the rest. Copies
        that torch would not make, such as the first states of loops, are subtracted; the packing of operands
        of matrix products is not counted on either side. A step is credited with what no later one brings
        back.
        """
        levels = self._levels()
        limit = [given := levels.pop(TRACED, Copies())]
        highest = Copies()
        for left in reversed(levels.values()):
            highest = highest.atleast(left)
            limit.insert(1, highest.upto(given))
        gone = [before - after for before, after in pairwise(limit)]
        return {step: copies for step, copies in zip(levels, gone, strict=True) if copies != Copies()}

    def _levels(self) -> dict[str, Copies]:
        """What is copied in all of the graph after each step; empty of one that runs as it came."""
        if TRACED not in self.copies:
            return {}
        whole = self.copies[PASSES]
        elsewhere = whole - self.copies.get(PARTITIONS, Copies())
        parts = {s: elsewhere + c for s, c in self.copies.items() if s not in (TRACED, PASSES, PARTITIONS)}
        return {TRACED: self.copies[TRACED], PASSES: whole, **parts}

    def count(self, action: str) -> int:
        return sum(d.action == action for d in self.decisions)

    def fallbacks(self) -> Counter[str]:
        """Reasons of the operators that run outside our kernels, with how often each occurs."""
        return Counter(d.because for d in self.decisions if d.action == "fell-back")


def user_line(node: object) -> str:
    """`file:line` of the user's model that a node came from: the innermost frame outside torch, or ""."""
    trace = (getattr(node, "meta", None) or {}).get("stack_trace") or ""
    frames = [m.group("file", "line") for m in _FRAME.finditer(trace)]
    for packages in (_LIBRARIES, _LIBRARIES[:1], ()):
        theirs = [frame for frame in frames if not frame[0].startswith(packages)]
        if theirs:
            return ":".join(theirs[-1])
    return ""
