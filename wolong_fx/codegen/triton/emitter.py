"""A scheduled program as one persistent Triton kernel.

G physical blocks walk the program side by side. Of each stage they take the virtual blocks round-robin,
those of all operators laid end to end; where the program has a barrier, all of them meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from wolong_fx.codegen.emission import describe_users, lay_out_constants
from wolong_fx.codegen.signature import Binding, Bindings, Key, signature
from wolong_fx.codegen.triton.calls import Call, fill_own, run_in_turn, run_own, total
from wolong_fx.codegen.triton.keep import KEPT_BYTES, NOTHING, WARPS, Kept, find_kept, warps_for
from wolong_fx.codegen.triton.tile_function import FAILURE, TileFunction, TileFunctionText
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import BufferKind, DType
from wolong_fx.runtime.gpu.launches import StageLaunch, StageLoop

_HEADER = '''\
"""Program {name}: emitted by Wolong FX."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

'''
_BARRIER = "from wolong_fx.codegen.triton.barrier import {barrier} as grid_barrier\n"
_LIBRARY = "from wolong_fx.codegen.triton.library import *"


class Memory(Enum):
    """What a pointer argument of the kernel points to."""

    TENSOR = "tensor"  # an input or output, by its number
    ARENA = "arena"
    CONSTANTS = "constants"


@dataclass(frozen=True)
class Argument:
    """A pointer argument: memory as elements of a type.

    number: of the tensor, inputs before outputs; 0 for the arena and the constants
    """

    name: str
    memory: Memory
    number: int
    dtype: DType


@dataclass(frozen=True)
class TritonSource:
    """What becomes a kernel.

    text: a Python module with the kernel `wolong` in it
    arguments: what it takes, before the barrier's word, the failure word and the number of blocks G
    checks: messages of the checks; the failure word holds the largest number + 1 of those that failed
    constants: bytes of the constants
    blocks: the largest number of virtual blocks of a stage: more physical blocks would have nothing to do;
        where there are loops, of a stage in them: more would only make the barrier of every trip slower
    warps: of a block
    """

    text: str
    arguments: tuple[Argument, ...]
    checks: tuple[str, ...]
    constants: bytes
    blocks: int
    warps: int = WARPS


@dataclass(frozen=True)
class StagedSource:
    """What becomes a kernel for every stage.

    text: a Python module with the kernels
    launches: in order
    Else as TritonSource; kernels take the variables of the loops around instead of a barrier's word.
    """

    text: str
    arguments: tuple[Argument, ...]
    checks: tuple[str, ...]
    constants: bytes
    launches: tuple[StageLaunch | StageLoop, ...]


AROUND_LOOPS = 128
"""Blocks that suffice for what stands before and behind loops: about one a multiprocessor."""

BARRIERS = ("grid_barrier", "grid_barrier_by_one_thread")
"""Forms of the barrier: what every backend of Triton has, and what NVIDIA's GPUs do faster."""


def emit_program(
    program: Program,
    precision: str = "ieee",
    barrier: str = "grid_barrier",
    *,
    room: int = KEPT_BYTES,
) -> TritonSource:
    """Triton for a program whose operators have tiles and whose arena is planned.

    precision: of float32 matrix products, "ieee" or "tf32"
    barrier: one of BARRIERS
    room: bytes that a block may keep in registers over the trips of a loop
    """
    return _ProgramText(program, precision, room).write(barrier)


def emit_stages(program: Program, precision: str = "ieee") -> StagedSource:
    """The same, as a kernel for every stage: what runs where a grid has no room, and what a grid is
    checked by."""
    return _ProgramText(program, precision).write_stages()


@dataclass
class _Emitted:
    """A tile function and the operators that share it."""

    function: TileFunction
    users: dict[OpInst, None] = field(default_factory=dict)


class _ProgramText:
    def __init__(self, program: Program, precision: str, room: int = KEPT_BYTES) -> None:
        self.program, self.precision = program, precision
        self.emitted: dict[tuple[Key, Kept], _Emitted] = {}
        self.known_arguments: dict[str, Argument] = {}
        self.checks: list[str] = []
        self.constants, self.offsets = lay_out_constants(program)
        given = [b for b in program.buffers if b.kind.is_given]
        tensors = given + [b for b in program.buffers if b.kind is BufferKind.OUTPUT]
        self.numbers = {b: i for i, b in enumerate(tensors)}
        self.kept = find_kept(program, room)
        self.keepers: dict[OpInst, int] = {}
        self.stages: dict[Stage, int] = {}
        self.blocks = 1
        self.blocks_in_loops = 0

    def write(self, barrier: str) -> TritonSource:
        body = self._body(self.program.body, {}, "    ")
        kernel = self._kernel("wolong", ("word", "failure"), body)
        text = self._module([_BARRIER.format(barrier=barrier)], [kernel])
        blocks = self.blocks
        if self.blocks_in_loops:
            blocks = max(self.blocks_in_loops, min(self.blocks, AROUND_LOOPS))
        warps = warps_for(self.kept)
        return TritonSource(text, self.arguments, tuple(self.checks), self.constants, blocks, warps)

    def write_stages(self) -> StagedSource:
        bodies: dict[str, tuple[int, list[str]]] = {}
        launches = self._launches(self.program.body, {}, bodies)
        kernels = [
            self._kernel(name, (*(f"t{d}" for d in range(depth)), "failure"), body)
            for name, (depth, body) in bodies.items()
        ]
        text = self._module([], kernels)
        return StagedSource(text, self.arguments, tuple(self.checks), self.constants, launches)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return tuple(sorted(self.known_arguments.values(), key=lambda a: (a.memory.value, a.number)))

    def _module(self, imports: Sequence[str], kernels: Sequence[str]) -> str:
        header = _HEADER.format(name=self.program.name) + "".join(imports) + _LIBRARY
        functions = [describe_users(list(e.users), "#") + e.function.text for e in self.emitted.values()]
        return "\n\n".join([header, *functions, *kernels]) + "\n"

    def _kernel(self, name: str, more: Sequence[str], body: Sequence[str]) -> str:
        parameters = [*(a.name for a in self.arguments), *more, "G: tl.constexpr"]
        head = ["@triton.jit", f"def {name}({', '.join(parameters)}):", "    pid = tl.program_id(0)"]
        return "\n".join([*head, *body])

    def _body(self, items: Sequence[Item], loops: dict[Var, int], pad: str) -> list[str]:
        """Every stage, loops as the program has them."""
        lines = []
        for item in items:
            if isinstance(item, Loop):
                lines += self._loop(item, loops, pad)
            else:
                lines += self._stage_lines(item, run_in_turn(self._calls(item, loops)), pad)
        return lines

    def _stage_lines(self, stage: Stage, run: Sequence[str], pad: str) -> list[str]:
        """What runs a stage, and behind it a barrier of the grid or of the block."""
        number = self._number(stage)
        barrier = "grid_barrier(word, G)" if stage.barrier else "tl.debug_barrier()"
        return [pad + line for line in (f"# stage {number}", *run, barrier)]

    def _loop(self, loop: Loop, loops: dict[Var, int], pad: str) -> list[str]:
        """A loop; where blocks keep something over its trips, for grids in which they can and for smaller
        ones."""
        at, inside = f"t{len(loops)}", {**loops, loop.var: len(loops)}
        head = f"for {at} in range({loop.var.extent}):  # {loop.var.name}"
        owned = {
            s: calls for s in loop.body if isinstance(s, Stage) if _keeps(calls := self._calls(s, inside))
        }
        in_turn = [head, *self._body(loop.body, inside, "    ")]
        if not owned:
            return [pad + line for line in in_turn]
        is_last = f"{at} == {loop.var.extent - 1}"
        own = [head]
        for item in loop.body:
            if isinstance(item, Stage) and item in owned:
                own += self._stage_lines(item, run_own(owned[item], is_last), "    ")
            else:
                own += self._body([item], inside, "    ")
        fills = [line for calls in owned.values() for line in fill_own(calls)]
        return [
            f"{pad}if G >= {max(map(total, owned.values()))}:",
            *(f"{pad}    {line}" for line in (*fills, *own)),
            f"{pad}else:",
            *(f"{pad}    {line}" for line in in_turn),
        ]

    def _launches(
        self, items: Sequence[Item], loops: dict[Var, int], bodies: dict[str, tuple[int, list[str]]]
    ) -> tuple[StageLaunch | StageLoop, ...]:
        """The launches of every stage that has operators; what each runs is put into `bodies`."""
        found: list[StageLaunch | StageLoop] = []
        for item in items:
            if isinstance(item, Loop):
                inside = self._launches(item.body, {**loops, item.var: len(loops)}, bodies)
                found.append(StageLoop(item.var.extent, inside))
                continue
            calls = self._calls(item, loops)
            if calls:
                name = f"stage{self._number(item)}"
                bodies[name] = len(loops), ["    " + line for line in run_in_turn(calls)]
                found.append(StageLaunch(name, total(calls)))
        return tuple(found)

    def _number(self, stage: Stage) -> int:
        return self.stages.setdefault(stage, len(self.stages))

    def _calls(self, stage: Stage, loops: dict[Var, int]) -> list[Call]:
        """The calls of a stage's operators, those without points left out."""
        calls = [self._call(op, loops) for op in stage.ops if op.points]
        if loops:
            self.blocks_in_loops = max(self.blocks_in_loops, total(calls))
        self.blocks = max(self.blocks, total(calls))
        return calls

    def _call(self, op: OpInst, loops: dict[Var, int]) -> Call:
        bindings, kept = Bindings.of(op), self.kept.get(op, NOTHING)
        key = (signature(op, bindings, loops), kept)
        if key not in self.emitted:
            name = f"tile{len(self.emitted)}"
            text = TileFunctionText(name, op, bindings, loops, self._number_check, self.precision, kept)
            self.emitted[key] = _Emitted(text.write())
        known = self.emitted[key]
        known.users[op] = None
        given = {f"p{i}": self._pointer(pointer) for i, pointer in enumerate(bindings.pointers)}
        given |= {f"t{d}": f"t{d}" for d in range(len(loops))} | {FAILURE: FAILURE}
        if known.function.kept:
            number = self.keepers.setdefault(op, len(self.keepers))
            given |= {name: f"{name}_{number}" for name in known.function.kept}
        return Call(known.function, op.virtual_blocks, given)

    def _number_check(self, message: str) -> int:
        if message not in self.checks:
            self.checks.append(message)
        return self.checks.index(message)

    def _pointer(self, binding: Binding) -> str:
        """An argument, and how many elements after."""
        buffer, start = binding.buffer, binding.element
        size = buffer.dtype.bytes
        if buffer.kind is BufferKind.TEMPORARY:
            assert self.program.arena is not None, f"{self.program.name}: memory is not planned"
            argument = Argument(f"arena_{buffer.dtype}", Memory.ARENA, 0, buffer.dtype)
            start += self.program.arena.offsets[buffer] // size
        elif buffer.kind is BufferKind.CONSTANT:
            argument = Argument(f"constants_{buffer.dtype}", Memory.CONSTANTS, 0, buffer.dtype)
            start += self.offsets[buffer] // size
        else:
            number = self.numbers[buffer]
            argument = Argument(f"tensor{number}", Memory.TENSOR, number, buffer.dtype)
        self.known_arguments[argument.name] = argument
        return f"{argument.name} + {start}" if start else argument.name


def _keeps(calls: Sequence[Call]) -> bool:
    return any(call.keeps for call in calls)
