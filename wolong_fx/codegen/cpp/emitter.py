"""A scheduled program as one header-free C++ translation unit of the kernel ABI (runtime/image.py)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from wolong_fx.codegen.cpp.cuts import Cutter
from wolong_fx.codegen.cpp.machine import MACHINES, Machine
from wolong_fx.codegen.cpp.prelude import emit_scalars, emit_vectors
from wolong_fx.codegen.cpp.share_functions import Sharing, share_functions
from wolong_fx.codegen.cpp.tables import Run, Tables, emit_tables
from wolong_fx.codegen.cpp.team import BACKWARDS, ENTRY_POINTS, TEAM, emit_layout, team_of
from wolong_fx.codegen.cpp.tile_function import TileFunction, TileFunctionText
from wolong_fx.codegen.cpp.tiles import Planner
from wolong_fx.codegen.cpp.traffic import outgrows
from wolong_fx.codegen.cpp.vector_math import emit_libm_declarations
from wolong_fx.codegen.emission import describe_users, lay_out_constants
from wolong_fx.codegen.signature import Binding, Bindings, Key, signature
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Item, Loop, OpInst, Program, Stage
from wolong_fx.ir.types import BufferKind

_ARENA, _CONSTANTS, _FIRST_TENSOR = 0, 1, 2


@dataclass(frozen=True)
class KernelSource:
    """What becomes a kernel.

    text: one translation unit
    checks: messages of the bounds checks, by number: wolong_run returns a failed one's number + 1
    constants: bytes for args[1]
    threads: team size that the ranges were cut for
    functions: tile functions in the text, fewer than operators where these repeat
    """

    text: str
    checks: tuple[str, ...]
    constants: bytes
    threads: int
    functions: int


def emit_program(program: Program, isa: str, threads: int, core_cache_bytes: float = inf) -> KernelSource:
    """C++ for a program whose operators have tiles and whose arena is planned.

    isa: "avx512", "avx2" or "portable"
    threads: size of the team; the kernel also runs on one thread
    core_cache_bytes: what a core keeps to itself. Of a loop of which a thread touches more than that, every
        other trip runs its blocks backwards: of memory that is walked the same way each time, a cache too
        small for all of it keeps nothing. 20 steps of an LSTM of 384 units took 223 us instead of 266; 80
        steps of one of 256 units, whose team's caches hold what one thread's does not, 0.66 ms on one thread
        instead of 0.84.
    """
    return _ProgramText(program, MACHINES[isa], team_of(threads), core_cache_bytes).write()


@dataclass(frozen=True)
class _Call:
    """What a stage calls for an operator."""

    sharing: Sharing
    bindings: Bindings


class _ProgramText:
    def __init__(self, program: Program, machine: Machine, threads: int, core_cache_bytes: float) -> None:
        self.program, self.machine, self.core_cache_bytes = program, machine, core_cache_bytes
        self.tables = Tables(threads)
        self.cutter = Cutter(machine, threads)
        self.checks: list[str] = []
        self.used: dict[int, set[str]] = {}
        self.functions: list[TileFunction] = []
        self.users: dict[int, list[OpInst]] = defaultdict(list)
        self.calls: dict[OpInst, _Call] = {}
        self.constants, self.offsets = lay_out_constants(program)
        given = [b for b in program.buffers if b.kind.is_given]
        tensors = given + [b for b in program.buffers if b.kind is BufferKind.OUTPUT]
        self.slots = {b: i for i, b in enumerate(tensors, _FIRST_TENSOR)}
        self.body: list[str] = []
        self.depth = 0
        self.stages = 0

    def write(self) -> KernelSource:
        self._write_functions()
        self._items(self.program.body, {})
        names = [f"lanes{f.lanes}::{f.name}" for f in self.functions]
        vectors = "\n".join(self._namespace(lanes) for lanes in sorted(self.used))
        parts = [
            f"// Program {self.program.name}, for {self.machine.name}: emitted by Wolong FX.",
            f"#define {self.machine.macro}",
            emit_scalars(),
            _libm_declarations(vectors),
            emit_layout(self.tables.threads, self.depth),
            vectors,
            emit_tables(self.tables, names or ["nullptr"]),
            TEAM,
            BACKWARDS if any("run_stages_backwards" in line for line in self.body) else "",
            "static void run_program(Worker* w) {\n" + "\n".join(["  (void)w;", *self.body]) + "\n}\n",
            ENTRY_POINTS,
        ]
        text = "\n".join(p for p in parts if p)
        return KernelSource(text, tuple(self.checks), self.constants, self.tables.threads, len(names))

    def _namespace(self, lanes: int) -> str:
        """The vector types of one lane count, and the tile functions that use them."""
        texts = [
            describe_users(self.users[number], "//") + function.text + "\n"
            for number, function in enumerate(self.functions)
            if function.lanes == lanes
        ]
        prelude = emit_vectors(self.machine, lanes, self.used[lanes])
        title = f"// ---- tile functions of {lanes} lanes\n"
        return f"namespace lanes{lanes} {{\n{prelude}\n{title}\n" + "\n".join(texts) + "}\n"

    # The tile functions

    def _write_functions(self) -> None:
        """Those of all operators: one for equal ones, and one for those that differ in sizes alone."""
        written: dict[Key, TileFunction] = {}
        keys = {op: self._write(op, loops, written) for op, loops in _ops_in_loops(self.program.body, {})}
        self.functions, shared = share_functions(list(written.values()))
        sharing = dict(zip(written, shared, strict=True))
        for op, (key, bindings) in keys.items():
            self.calls[op] = _Call(sharing[key], bindings)
            self.users[sharing[key].function].append(op)

    def _write(
        self, op: OpInst, loops: dict[Var, int], written: dict[Key, TileFunction]
    ) -> tuple[Key, Bindings]:
        bindings = Bindings.of(op)
        key = signature(op, bindings, loops)
        if key not in written:
            planner = Planner(op, self.machine)
            use, name = self.used.setdefault(planner.lanes, set()).add, f"tile{len(written)}"
            text = TileFunctionText(name, planner, bindings, loops, self._number_check, use)
            written[key] = text.write()
        return key, bindings

    # The body

    def _items(self, items: Sequence[Item], loops: dict[Var, int], is_backwards: str = "") -> None:
        """Calls that run stages, in loops as the program has them; neighbouring stages share a call.

        is_backwards: the condition under which blocks run last to first, if they ever do
        """
        pad, first = "  " * (len(loops) + 1), self.stages
        for item in items:
            if isinstance(item, Stage):
                self._stage(item)
                continue
            self._run_stages(pad, first, is_backwards)
            self._loop(item, loops, pad)
            first = self.stages
        self._run_stages(pad, first, is_backwards)

    def _run_stages(self, pad: str, first: int, is_backwards: str) -> None:
        if self.stages > first:
            call = f"(w, {first}, {self.stages});"
            if is_backwards:
                self.body.append(f"{pad}if ({is_backwards}) run_stages_backwards{call}")
            self.body.append(f"{pad}{'else ' if is_backwards else ''}run_stages{call}")

    def _loop(self, loop: Loop, loops: dict[Var, int], pad: str) -> None:
        at = f"w->loop[{len(loops)}]"
        self.depth = max(self.depth, len(loops) + 1)
        self.body.append(f"{pad}for ({at} = 0; {at} < {loop.var.extent}; {at}++) {{  // {loop.var.name}")
        is_backwards = self._turning(loop, at)
        self._items(loop.body, {**loops, loop.var: len(loops)}, is_backwards)
        self.body.append(f"{pad}}}")

    def _turning(self, loop: Loop, at: str) -> str:
        """When the trip with number `at` runs its blocks last to first: an expression, or "" for never."""
        if loop.var.extent == 1 or not outgrows(loop, 1, self.core_cache_bytes):
            return ""
        if outgrows(loop, self.tables.threads, self.core_cache_bytes):
            return f"{at} % 2"
        return f"w->team == 1 && {at} % 2"  # the caches of a team hold what one thread's does not

    def _stage(self, stage: Stage) -> None:
        bound = [self._bind(op) if op.points else (0, 0) for op in stage.ops]
        by_thread = self.cutter.parts(stage)
        runs = [[Run(*bound[part.op], part.first, part.last) for part in parts] for parts in by_thread]
        self.tables.add_stage(runs, stage.barrier)
        self.stages += 1

    def _bind(self, op: OpInst) -> tuple[int, int]:
        """The number of an operator's tile function, and where its bindings start."""
        call = self.calls[op]
        pointers = map(self._argument, call.bindings.pointers)
        return call.sharing.function, self.tables.bind(pointers, call.sharing.arguments)

    def _number_check(self, message: str) -> int:
        if message not in self.checks:
            self.checks.append(message)
        return self.checks.index(message)

    def _argument(self, binding: Binding) -> tuple[int, int]:
        """The argument a pointer starts from, and how many bytes after."""
        buffer, start = binding.buffer, binding.element * binding.buffer.dtype.bytes
        if buffer.kind is BufferKind.TEMPORARY:
            assert self.program.arena is not None, f"{self.program.name}: memory is not planned"
            return _ARENA, self.program.arena.offsets[buffer] + start
        if buffer.kind is BufferKind.CONSTANT:
            return _CONSTANTS, self.offsets[buffer] + start
        return self.slots[buffer], start


def _ops_in_loops(items: Sequence[Item], loops: dict[Var, int]) -> Iterator[tuple[OpInst, dict[Var, int]]]:
    """Operators that have points, and the numbers of the variables of the loops around them."""
    for item in items:
        if isinstance(item, Loop):
            yield from _ops_in_loops(item.body, {**loops, item.var: len(loops)})
        else:
            yield from ((op, loops) for op in item.ops if op.points)


def _libm_declarations(text: str) -> str:
    """Declarations of the libm functions that a text calls; kernels include no headers."""
    lines = emit_libm_declarations()
    called = set(re.findall(r"(\w+)\(", text))
    wanted = [line for line in lines if line.split("(")[0].split()[-1] in called]
    return 'extern "C" {\n' + "\n".join(wanted) + "\n}\n" if wanted else ""
