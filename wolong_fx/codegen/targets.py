"""The targets a program can be made a kernel for: how each cuts tiles, and how it builds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from wolong_fx.codegen.cost_model import Forecast, forecast
from wolong_fx.codegen.cpp import BlockOwners, KernelSource, choose_tile, emit_program, pack_operands
from wolong_fx.codegen.emission import spec_of
from wolong_fx.codegen.loops import Element
from wolong_fx.codegen.reference import ReferenceKernel
from wolong_fx.codegen.schedule_ops import schedule_ops
from wolong_fx.codegen.triton.gpu_target import GpuTarget
from wolong_fx.codegen.triton.target import TritonTarget
from wolong_fx.errors import NoTarget
from wolong_fx.ir.happens_before import Owner
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.ir.text import print_program
from wolong_fx.ir.types import Buffer, BufferKind
from wolong_fx.options import Options
from wolong_fx.runtime import KernelImage, MachineCosts, load_kernel, machine_costs, team_size
from wolong_fx.runtime.gpu.cuda_device import find_cuda_device
from wolong_fx.runtime.machine_costs import USUAL_COSTS
from wolong_fx.toolchain import choose_isa, isa_flags

CPU = torch.device("cpu")


class Emitter(Protocol):
    """What the back end asks of a machine up to a kernel's text."""

    def choose_tile(self, op: OpInst) -> tuple[int, ...]:
        """Points of each dimension that one virtual block takes."""
        ...

    def pack_operands(self, ops: list[Element], static: Collection[Buffer], room: int) -> list[Element]:
        """The operators reading matrices in the order that this target streams them, copies included.

        static: buffers that stay the same between calls, copies of which are kept
        room: bytes that may be kept
        """
        ...

    def estimate(self, elements: Sequence[Element]) -> float | None:
        """Seconds that elements take, scheduled by themselves, if that can be said."""
        ...

    def owner(self, program: Program) -> Owner | None:
        """Which thread will run which virtual block of a program with tiles, if that is settled."""
        ...

    def forecast(self, program: Program) -> Forecast | None:
        """How long the program will take, and on how many threads, if that can be said."""
        ...

    def source_of(self, program: Program) -> str:
        """The program in the target's language."""
        ...


class Target(Emitter, Protocol):
    """What the back end asks of a machine."""

    def build(self, program: Program) -> Any:
        """The callable kernel; None leaves the program's operators to eager."""
        ...


_chosen: ContextVar[Target | None] = ContextVar("target", default=None)


@contextmanager
def compile_for(target: Target) -> Iterator[None]:
    """Everything compiled inside is for this target, whatever the options say."""
    token = _chosen.set(target)
    try:
        yield
    finally:
        _chosen.reset(token)


def find_target(options: Options, device: torch.device = CPU) -> Target:
    """The target that the options name, or else the device, for the machine we are on.

    device: where the tensors of the program live
    Raises NoTarget where the options name one for other devices, and NoGpu.
    """
    if (chosen := _chosen.get()) is not None:
        return chosen
    target = ("triton" if device.type == "cuda" else "cpu") if options.target == "auto" else options.target
    if (target == "triton") != (device.type == "cuda"):
        raise NoTarget(target=target, device=device)
    if target == "triton":
        return GpuTarget(TritonTarget.of_settings().precision, options, find_cuda_device(device.index or 0))
    if target == "reference":
        return ReferenceTarget()
    isa, threads = choose_isa(options.isa), team_size(options.threads)
    return CppTarget(options, isa, threads, machine_costs(options, isa, threads))


@dataclass(frozen=True)
class CppTarget:
    """Generated C++ on this CPU.

    threads: size of a team; one thread runs what a team is not worth, unless the options ask for one
    """

    options: Options
    isa: str
    threads: int
    costs: MachineCosts

    def choose_tile(self, op: OpInst) -> tuple[int, ...]:
        return choose_tile(op, self.isa, self.threads)

    def pack_operands(self, ops: list[Element], static: Collection[Buffer], room: int) -> list[Element]:
        return pack_operands(ops, self.isa, static, room)

    def estimate(self, elements: Sequence[Element]) -> float:
        program = schedule_ops("estimate", elements, (), self.choose_tile)
        return forecast(program, self.isa, self.threads, self.costs).seconds

    def owner(self, program: Program) -> Owner:
        return BlockOwners(program, self.isa, self.threads)

    def forecast(self, program: Program) -> Forecast:
        return _forecast(program, self.isa, self.threads, self.costs, may_choose=not self.options.threads)

    def source_of(self, program: Program) -> str:
        return self._emit(program).text

    def build(self, program: Program) -> Any:
        assert program.arena is not None
        source = self._emit(program)
        image = KernelImage(
            source=source.text,
            flags=isa_flags(self.isa),
            arena_bytes=program.arena.size,
            constants=source.constants,
            inputs=tuple(spec_of(b) for b in program.buffers if b.kind.is_given),
            outputs=tuple(spec_of(b) for b in program.buffers if b.kind is BufferKind.OUTPUT),
            threads=source.threads,
            checks=source.checks,
            name=program.name,
        )
        return load_kernel(image, self.options)

    def _emit(self, program: Program) -> KernelSource:
        return emit_program(program, self.isa, self.forecast(program).threads, self.costs.l2_bytes)


def find_costs(target: Target) -> MachineCosts:
    """What work costs where a target's kernels run: what is known of this CPU, or usual costs."""
    return target.costs if isinstance(target, CppTarget) else USUAL_COSTS


_forecast = lru_cache(maxsize=2)(forecast)  # asked for the ledger, for the dumped source and for the build


@dataclass(frozen=True)
class ReferenceTarget:
    """The reference machine; its small odd tiles leave ragged edges everywhere."""

    def choose_tile(self, op: OpInst) -> tuple[int, ...]:
        return tuple(d.extent if d.sequential else min(d.extent, 7) for d in op.dims)

    def pack_operands(self, ops: list[Element], static: Collection[Buffer], room: int) -> list[Element]:
        return ops

    def estimate(self, elements: Sequence[Element]) -> None:
        return None

    def owner(self, program: Program) -> None:
        return None

    def forecast(self, program: Program) -> None:
        return None

    def source_of(self, program: Program) -> str:
        return print_program(program)

    def build(self, program: Program) -> Any:
        return ReferenceKernel(program)
