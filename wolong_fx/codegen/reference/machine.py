"""Runs programs: physical blocks that walk the program side by side, interleaved at random, and meet at
barriers.

The order that a kernel may not rely on is drawn at random here: which physical block owns a virtual block, in
what order it takes those of one stage, and whose turn it is. What a kernel may rely on is kept: a physical
block owns the same virtual blocks in every trip of a loop, runs stages in program order, and leaves a barrier
after all have arrived; one of them owns all virtual blocks that are alone in their stage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from wolong_fx.codegen.reference.memory import Memory
from wolong_fx.codegen.reference.operator_run import OperatorRun, Positions
from wolong_fx.errors import ProgramFault
from wolong_fx.ir.happens_before import find_lone_operator
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import Buffer, BufferKind

Owner = Callable[[OpInst, int], int]
"""Physical block that runs a virtual block of an operator."""


def run_program(
    program: Program,
    inputs: Sequence[Tensor],
    *,
    seed: int | None = None,
    threads: int = 4,
    owner: Owner | None = None,
    precise: bool = False,
) -> list[Tensor]:
    """Run a program and return its outputs, with the strides of their buffers.

    inputs: one tensor for each INPUT buffer, of its dtype and shape (strides may differ)
    seed: of the random order; None draws a new one
    threads: physical blocks; 1 runs everything in program order but for the order within a stage
    owner: which physical block runs which virtual block; drawn at random when None
    precise: compute and store every float in float64 (inputs may then be float64): the oracle of rounding
        errors

    Raises KernelCheckFailed (an IndexError) when a gathered index is out of range, StaleKernelInput for
    inputs of another kind, and ProgramFault when the program itself is wrong: it reads what nobody wrote or
    what another buffer overwrote, leaves its buffers' bounds, leaves outputs unwritten, or its physical
    blocks miss each other at a barrier.
    """
    memory = Memory(program, inputs, precise)
    _Machine(program, memory, threads, random.Random(seed), owner).run()
    return memory.outputs()


@dataclass(frozen=True)
class _Arrival:
    """A physical block stands at the barrier behind this stage, which lies in the outermost item `item`."""

    stage: Stage
    item: int


@dataclass
class _Machine:
    program: Program
    memory: Memory
    threads: int
    rng: random.Random
    owner: Owner | None
    runs: dict[OpInst, OperatorRun] = field(default_factory=dict)
    shares: dict[OpInst, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dead_after = _last_items(self.program)
        self.alone = frozenset(filter(None, map(find_lone_operator, self.program.stages())))
        self.owner_of_alone = self.rng.randrange(self.threads)

    def run(self) -> None:
        """Let a random physical block take a step until all have left the program."""
        walks = [self._walk(thread) for thread in range(self.threads)]
        running = list(range(self.threads))
        arrived: dict[int, _Arrival] = {}
        while running:
            thread = self.rng.choice(running)
            event = next(walks[thread], StopIteration)
            if event is None:
                continue
            running.remove(thread)
            if isinstance(event, _Arrival):
                arrived[thread] = event
            if len(arrived) == self.threads:
                self._release(list(arrived.values()))
                running, arrived = list(arrived), {}
        if arrived:
            raise self._missed(f"{self.threads - len(arrived)} of {self.threads} physical blocks left")

    def _release(self, arrivals: list[_Arrival]) -> None:
        if any(a != arrivals[0] for a in arrivals):
            raise self._missed("physical blocks stand at different barriers")
        for buffer, item in list(self.dead_after.items()):
            if item < arrivals[0].item or (item == arrivals[0].item and self._is_last(arrivals[0])):
                self.memory.poison(buffer)
                del self.dead_after[buffer]

    def _is_last(self, arrival: _Arrival) -> bool:
        """Whether the arrival's stage is a whole outermost item, so that the item's buffers are done with."""
        return arrival.stage is self.program.body[arrival.item]

    def _missed(self, fault: str) -> ProgramFault:
        return ProgramFault(program=self.program.name, fault=fault, where="a barrier")

    def _walk(self, thread: int) -> Iterator[_Arrival | None]:
        """The steps of one physical block: None after each virtual block, an _Arrival at each barrier."""
        for position, item in enumerate(self.program.body):
            yield from self._walk_item(item, {}, thread, position)

    def _walk_item(
        self, item: Item, loops: Positions, thread: int, position: int
    ) -> Iterator[_Arrival | None]:
        if isinstance(item, Loop):
            for trip in range(item.var.extent):
                for inner in item.body:
                    yield from self._walk_item(inner, {**loops, item.var: trip}, thread, position)
            return
        work = [(op, block) for op in item.ops for block in self._share(op)[thread]]
        self.rng.shuffle(work)
        for op, block in work:
            self.runs[op].run_block(block, loops)
            yield None
        if item.barrier:
            yield _Arrival(item, position)

    def _share(self, op: OpInst) -> list[list[int]]:
        """Virtual blocks of each physical block, the same in every trip."""
        if op not in self.shares:
            self.runs[op] = OperatorRun(self.program, op, self.memory)
            shares: list[list[int]] = [[] for _ in range(self.threads)]
            for block in range(self.runs[op].virtual_blocks):
                shares[self._owner(op, block)].append(block)
            self.shares[op] = shares
        return self.shares[op]

    def _owner(self, op: OpInst, block: int) -> int:
        if self.owner:
            return self.owner(op, block)
        return self.owner_of_alone if op in self.alone else self.rng.randrange(self.threads)


def _last_items(program: Program) -> dict[Buffer, int]:
    """Position of the outermost item in which each temporary is used for the last time."""
    last: dict[Buffer, int] = {}
    for position, item in enumerate(program.body):
        for op in _ops(item):
            for buffer in (*op.reads(), *op.writes()):
                last[buffer] = position
    return {b: p for b, p in last.items() if b.kind is BufferKind.TEMPORARY}


def _ops(item: Item) -> Iterator[OpInst]:
    if isinstance(item, Stage):
        yield from item.ops
    else:
        for inner in item.body:
            yield from _ops(inner)
