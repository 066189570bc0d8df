"""What would run of a model: its kernels as text, with what they need of a device, none of them built or
launched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from wolong_fx import _torch_compat
from wolong_fx.backend import Backend
from wolong_fx.capture.record import Record
from wolong_fx.codegen.cost_model import Forecast
from wolong_fx.codegen.loops import Element
from wolong_fx.codegen.targets import Emitter, compile_for, find_target
from wolong_fx.codegen.triton.fit import fit_program
from wolong_fx.codegen.triton.target import TritonTarget
from wolong_fx.errors import BadInputText, InputsNotTaken, ModelNotFound, TritonFailed
from wolong_fx.ir.happens_before import Owner
from wolong_fx.ir.program import Item, Loop, OpInst, Program
from wolong_fx.ir.types import Buffer
from wolong_fx.options import Options
from wolong_fx.runtime.gpu import Architecture, build_triton

TARGETS = ("triton", "cpp", "reference")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EmittedKernel:
    """A kernel as text.

    registers, spill_bytes: of a thread; shared_bytes: of a block; None of a kernel that is not for a GPU
    resident_blocks: blocks that the architecture's largest device holds together
    stages, barriers: in the text, those in a loop once
    """

    name: str
    source: str
    registers: int | None
    spill_bytes: int | None
    shared_bytes: int | None
    resident_blocks: int | None
    stages: int
    barriers: int


@dataclass
class Emission:
    """The kernels of a model, in the order in which they were compiled, and why parts of it have none."""

    kernels: list[EmittedKernel] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Traced:
    """The programs of a model in the order in which they were compiled, and why parts of it have none.

    emitter: makes text of them
    """

    programs: list[Program]
    emitter: Emitter
    fallbacks: list[str]


def emit_model(
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    target: str = "triton",
    architecture: Architecture,
    trains: bool = False,
    progress: Progress = lambda text: None,
) -> Emission:
    """The kernels of a model for these inputs; it runs once, eagerly.

    target: one of TARGETS
    trains: those of a training step; else those of a call without gradients
    """
    progress("tracing")
    traced = trace_model(model, inputs, target=target, trains=trains)
    emission = Emission(fallbacks=traced.fallbacks)
    for number, program in enumerate(traced.programs, 1):
        progress(f"kernel {number} of {len(traced.programs)}")
        _add_kernel(emission, program, traced.emitter, architecture)
    return emission


def trace_model(
    model: nn.Module, inputs: Sequence[Tensor], *, target: str = "triton", trains: bool = False
) -> Traced:
    """The programs of a model for these inputs, none of them emitted; else as emit_model.

    Raises InputsNotTaken when the model fails without us too.
    """
    collector = _Collector(_target_of(target))
    record = Record()
    compiled = torch.compile(model, backend=Backend(Options.of(min_ops=1), record), dynamic=False)
    try:
        with compile_for(collector):
            _call(compiled, inputs, trains)
    except Exception:
        _call_eagerly(model, inputs, trains)
        raise
    return Traced(collector.programs, collector.inner, _fallbacks(record))


def _target_of(name: str) -> Emitter:
    if name == "triton":
        return TritonTarget.of_settings()
    return find_target(Options.of(target="cpu" if name == "cpp" else name))


def _call(model: Callable[..., object], inputs: Sequence[Tensor], trains: bool) -> None:
    with torch.set_grad_enabled(trains):
        results = model(*inputs)
        if trains:
            _differentiate(results)


def _call_eagerly(model: nn.Module, inputs: Sequence[Tensor], trains: bool) -> None:
    """Raise InputsNotTaken if the model itself is what fails."""
    try:
        _call(model, inputs, trains)
    except Exception as error:
        shown = ", ".join(f"{x.dtype} {'x'.join(map(str, x.shape))}".removeprefix("torch.") for x in inputs)
        because = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise InputsNotTaken(inputs=shown or "no input", because=because) from error


def _differentiate(results: object) -> None:
    leaves = (y for y in _torch_compat.tree_leaves(results) if isinstance(y, Tensor) and y.requires_grad)
    sum(y.sum() for y in leaves).backward()  # type: ignore[union-attr]


def _fallbacks(record: Record) -> list[str]:
    """Every reason why something has no kernel, once; that nothing was built is not one."""
    decisions = [d for ledger in record.ledgers for d in ledger.decisions if d.action == "fell-back"]
    return list(dict.fromkeys(str(d) for d in decisions if d.step != "pipeline"))


def _add_kernel(emission: Emission, program: Program, target: Emitter, architecture: Architecture) -> None:
    text = target.source_of(program)
    kernel = EmittedKernel(program.name, text, None, None, None, None, *count_stages(program.body))
    if isinstance(target, TritonTarget):
        try:
            source, binary = fit_program(program, target.precision, architecture, build_triton)
        except TritonFailed as error:
            emission.fallbacks.append(f"{program.name}: {error}")
        else:
            kernel = replace(
                kernel,
                source=source.text,
                registers=binary.registers,
                spill_bytes=binary.spill_bytes,
                shared_bytes=binary.shared_bytes,
                resident_blocks=binary.resident_blocks,
            )
    emission.kernels.append(kernel)


def count_stages(body: Sequence[Item]) -> tuple[int, int]:
    """Stages and barriers in the text, those in a loop once."""
    stages = barriers = 0
    for item in body:
        more = count_stages(item.body) if isinstance(item, Loop) else (bool(item.ops), item.barrier)
        stages, barriers = stages + more[0], barriers + more[1]
    return stages, barriers


@dataclass
class _Collector:
    """A target that keeps the programs which it should build."""

    inner: Emitter
    programs: list[Program] = field(default_factory=list)

    def choose_tile(self, op: OpInst) -> tuple[int, ...]:
        return self.inner.choose_tile(op)

    def pack_operands(self, ops: list[Element], static: Collection[Buffer], room: int) -> list[Element]:
        return self.inner.pack_operands(ops, static, room)

    def estimate(self, elements: Sequence[Element]) -> float | None:
        return self.inner.estimate(elements)

    def owner(self, program: Program) -> Owner | None:
        return self.inner.owner(program)

    def forecast(self, program: Program) -> Forecast | None:
        return None

    def source_of(self, program: Program) -> str:
        return self.inner.source_of(program)

    def build(self, program: Program) -> None:
        self.programs.append(program)


def emission_screen(emission: Emission) -> str:
    """Every kernel under a line that says what it takes; then what has none, and why."""
    shown = [f"# {_title(kernel)}\n\n{kernel.source}" for kernel in emission.kernels]
    shown += [f"# without a kernel: {reason}" for reason in emission.fallbacks]
    return "\n".join(shown or ["# the model has no kernel"])


def _title(kernel: EmittedKernel) -> str:
    counts = f"{kernel.name}: {_many(kernel.stages, 'stage')}, {_many(kernel.barriers, 'barrier')}"
    if kernel.registers is None:
        return counts
    takes = f"{_many(kernel.registers, 'register')} a thread, {kernel.spill_bytes} bytes spilled"
    return f"{counts}; {takes}, {kernel.shared_bytes} bytes shared, {kernel.resident_blocks} blocks fit"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# ---- from words to a model and its inputs


def find_model(words: str) -> nn.Module:
    """The model that `package.module:Name` names: a module, or what a class or function of that name makes.

    Raises ModelNotFound.
    """
    module_name, _, name = words.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the working directory, as `python -m` has them
    try:
        found = getattr(importlib.import_module(module_name), name)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise ModelNotFound(words=words, because=f"{type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelNotFound(words=words, because=f"it is a {type(model).__name__}")
    return model


def make_input(words: str) -> Tensor:
    """The input that `40x4x64` or `8x16:int64` describes: small random floats, or zeros.

    Raises BadInputText.
    """
    shape, _, name = words.partition(":")
    dtype = getattr(torch, name or "float32", None)
    try:
        sizes = [int(n) for n in shape.split("x")]
        if not isinstance(dtype, torch.dtype) or min(sizes) < 0:
            raise ValueError
    except ValueError:
        raise BadInputText(text=words, example="40x4x64 or 8x16:int64") from None
    is_float = dtype.is_floating_point
    return torch.randn(sizes, dtype=dtype) if is_float else torch.zeros(sizes, dtype=dtype)
