"""What was compiled for a model: one record a model, one entry a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from wolong_fx._torch_compat import GraphBreak
from wolong_fx.capture.expand_rnn import PACKED, is_break_of_packed_sequence
from wolong_fx.capture.watch import Watch
from wolong_fx.ledger import Copies, GpuKernelReport, Ledger

GRAPH_BREAK = "graph-break"  # the step of the ledger

AOT_AND_COMPILE = "aot-autograd and compile"
"""The step in which AOTAutograd traces and calls us for each graph, which has a ledger of its own."""


@dataclass(frozen=True)
class CompiledGraph:
    """One compiled graph.

    role: "inference", "forward" or "backward"
    frame: Dynamo's number of the Python frame it came from; frames recompile, the last one is in use
    kernels: launches of our kernels in a call
    """

    role: str
    frame: int | None
    kernels: int
    ledger: Ledger


@dataclass
class Record:
    """Grows as the graphs of a model are compiled; `capture` is of what came before there was a graph.

    watch: over the inference graphs of a model whose calls may do without Dynamo
    """

    graphs: list[CompiledGraph] = field(default_factory=list)
    capture: Ledger = field(default_factory=Ledger)
    watch: Watch | None = None

    def note_graph_breaks(self, breaks: Iterable[GraphBreak]) -> None:
        """Enter graph breaks into the ledger of the capture, each with the user's line.

        Dynamo reports one again for each frame around it, in which it then breaks off too.
        """
        for found in {(found.reason, found.innermost): found for found in breaks}.values():
            because = PACKED if is_break_of_packed_sequence(found) else found.reason
            self.capture.note(GRAPH_BREAK, found, "fell-back", because)

    @property
    def has_graph_breaks(self) -> bool:
        return any(d.step == GRAPH_BREAK for d in self.capture.decisions)

    @property
    def ledgers(self) -> list[Ledger]:
        return [self.capture, *(g.ledger for g in self.graphs)]


@dataclass(frozen=True)
class Stats:
    """A snapshot of what Wolong FX did for a model.

    graphs: graphs compiled, counting forward, backward and inference graphs and every recompilation
    kernels_per_call: kernel launches of one call, of the newest graph of each Python frame: of a forward or
        inference call and, where there is one, its backward
    fallbacks: reasons of operators that run outside our kernels, with how often each occurs
    ledgers: decisions about every operator; the first is of the capture, then one a graph
    launches: kernel launches by role ("forward", "backward", "inference"), of the newest graph of each frame
    """

    graphs: int
    kernels_per_call: int
    fallbacks: Counter[str]
    ledgers: list[Ledger]
    launches: dict[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the hungriest graph: temporaries in our arena and at eager's peak, and what is kept."""
        worst = max((ledger.memory for ledger in self.ledgers), key=lambda m: m["arena"], default={})
        return dict(worst)

    @property
    def copies_removed(self) -> dict[str, Copies]:
        """By step, what all graphs together do not copy in a call of each; see `Ledger.copies_removed`."""
        total: dict[str, Copies] = {}
        for ledger in self.ledgers:
            for step, copies in ledger.copies_removed().items():
                total[step] = total.get(step, Copies()) + copies
        return total

    @property
    def gpu_kernels(self) -> list[GpuKernelReport]:
        """Form, grid and resources of every kernel on a GPU, as it is launched now; those of the forward
        before those of the backward."""
        return [report for ledger in self.ledgers for report in ledger.gpu_kernels]

    def __str__(self) -> str:
        lines = [f"{self.graphs} graphs, {self.kernels_per_call} kernel launches a call"]
        if self.memory.get("arena"):
            ours, eagers = (self.memory[name] / 1e6 for name in ("arena", "eager"))
            lines.append(f"temporaries: {ours:.2f} MB in the arena, {eagers:.2f} MB at eager's peak")
        if self.memory.get("kept"):
            lines.append(f"kept between calls: {self.memory['kept'] / 1e6:.2f} MB made of weights")
        if removed := self.copies_removed:
            steps = ", ".join(f"{copies.number} by {step}" for step, copies in removed.items())
            lines.append(f"copies removed: {sum(removed.values(), Copies())} ({steps})")
        lines += [str(launch) for ledger in self.ledgers for launch in ledger.launch_times]
        lines += map(str, self.gpu_kernels)
        lines += [f"{count} x fell back: {reason}" for reason, count in self.fallbacks.most_common()]
        return "\n".join(lines)


def summarise(records: Iterable[Record]) -> Stats:
    """The statistics of several records as one."""
    records = list(records)
    graphs = [g for r in records for g in r.graphs]
    ledgers = [ledger for r in records for ledger in r.ledgers]
    fallbacks = sum((ledger.fallbacks() for ledger in ledgers), Counter())
    return Stats(len(graphs), sum(map(_kernels_in_use, records)), fallbacks, ledgers, _launches(records))


def _launches(records: Iterable[Record]) -> dict[str, int]:
    newest = {(id(record), g.frame, g.role): g for record in records for g in record.graphs}
    launches: Counter[str] = Counter()
    for graph in newest.values():
        launches[graph.role] += graph.kernels
    return dict(launches)


def _kernels_in_use(record: Record) -> int:
    """Of each frame the newest forward (or inference) graph, and the newest backward where it trains."""
    newest = {(g.frame, g.role == "backward"): g for g in record.graphs}
    in_training = {g.frame for (_, backward), g in newest.items() if not backward and g.role == "forward"}
    return sum(g.kernels for (frame, backward), g in newest.items() if not backward or frame in in_training)
