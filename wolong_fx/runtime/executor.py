"""Runs a graph that was cut into kernels and the operators between them.

The steps become one straight-line Python function: values live in its local variables and are deleted
after their last use, so a step costs its call and nothing for finding its arguments.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wolong_fx.runtime.kernel import Helpers, Kernel

_numbers = itertools.count()


@dataclass(frozen=True)
class Slot:
    """Stands for a value that exists only at run time: a graph input or the result of a step."""

    index: int


@dataclass(frozen=True)
class KernelStep:
    """Launch `kernel` on slots `ins`; its outputs go to slots `outs`."""

    kernel: Kernel
    ins: tuple[int, ...]
    outs: tuple[int, ...]


@dataclass(frozen=True)
class CallStep:
    """Call `fn`. `args` and `kwargs` may hold Slots at any depth of tuples, lists and dicts.

    One slot in `outs` takes the result as it is; several take its items; none drops it.
    """

    fn: Callable[..., object]
    args: tuple[object, ...] = ()
    outs: tuple[int, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


Step = KernelStep | CallStep


class Shortcut(NamedTuple):
    """`run([inputs[i] for i in order])` is what an executor returns for `inputs`."""

    run: Callable[[list[Any]], Sequence[Any]]
    order: tuple[int, ...]


class Executor:
    """A boxed callable: takes one list of inputs, empties it, returns the list of outputs.

    steps: in an order that respects their data
    inputs: the slot of each graph input
    outputs: Slots, or values that are the same at every call (None, numbers)
    `source` is the function that runs; `launches` is the number of kernels a call launches, and
    `fallbacks` of operators it leaves to torch.
    """

    _boxed_call = True  # how AOTAutograd tells such a callable

    def __init__(self, steps: Sequence[Step], inputs: Sequence[int], outputs: Sequence[object]) -> None:
        self.steps, self.inputs, self.outputs = tuple(steps), tuple(inputs), tuple(outputs)
        self.launches = sum(isinstance(step, KernelStep) for step in self.steps)
        self.fallbacks = len(self.steps) - self.launches
        writer = _Writer(self.steps, self.inputs, self.outputs)
        self.source = writer.source()
        self._call = _compiled(self.source, writer.names)

    def __call__(self, inputs: list[Any]) -> list[Any]:
        return self._call(inputs)

    @property
    def shortcut(self) -> Shortcut:
        """The same for a caller who can give inputs in any order, and who keeps them alive anyway."""
        step = self.steps[0] if len(self.steps) == 1 else None
        if isinstance(step, KernelStep) and tuple(map(Slot, step.outs)) == self.outputs:
            return Shortcut(step.kernel.launch, tuple(map(self.inputs.index, step.ins)))
        return Shortcut(self._call, tuple(range(len(self.inputs))))

    def launch_with(self, helpers: Helpers) -> None:
        """For each kernel; see `Kernel`."""
        for step in self.steps:
            if isinstance(step, KernelStep):
                step.kernel.launch_with(helpers)

    def __reduce__(self) -> tuple[type[Executor], tuple[object, ...]]:
        return Executor, (self.steps, self.inputs, self.outputs)


class _Writer:
    """Python text of a list of steps; `names` binds what the text cannot spell."""

    def __init__(self, steps: tuple[Step, ...], inputs: tuple[int, ...], outputs: tuple[object, ...]) -> None:
        self._steps, self._inputs, self._outputs = steps, inputs, outputs
        self.names: dict[str, object] = {}

    def source(self) -> str:
        if self._is_one_kernel():
            launch = self._name("launch", self._steps[0].kernel.launch)  # type: ignore[union-attr]
            return (
                f"def call(inputs):\n    outputs = {launch}(inputs)\n    inputs.clear()\n    return outputs\n"
            )
        lines = ["def call(inputs):"]
        if self._inputs:
            lines.append(f"    {_targets(self._inputs)} = inputs")
        lines.append("    inputs.clear()")
        for step, dead in zip(self._steps, self._dying(), strict=True):
            lines.append(f"    {self._statement(step)}")
            if dead:
                lines.append(f"    del {', '.join(f's{slot}' for slot in dead)}")
        lines.append(f"    return {self._text(list(self._outputs))}")
        return "\n".join(lines) + "\n"

    def _is_one_kernel(self) -> bool:
        """Whether a kernel takes the inputs as they come and its outputs are the graph's."""
        if len(self._steps) != 1 or not isinstance(self._steps[0], KernelStep):
            return False
        step = self._steps[0]
        return step.ins == self._inputs and tuple(map(Slot, step.outs)) == self._outputs

    def _dying(self) -> list[list[int]]:
        """For each step the slots that nothing after it reads."""
        last: dict[int, int] = {slot: 0 for slot in self._inputs if self._steps}
        for at, step in enumerate(self._steps):
            last.update(dict.fromkeys([*_reads(step), *step.outs], at))
        for slot in slots_in(self._outputs):
            last.pop(slot, None)
        dying: list[list[int]] = [[] for _ in self._steps]
        for slot, at in last.items():
            dying[at].append(slot)
        return dying

    def _statement(self, step: Step) -> str:
        if isinstance(step, KernelStep):
            call = f"{self._name('launch', step.kernel.launch)}({_targets(step.ins)})"
            return f"{_targets(step.outs)} = {call}" if step.outs else call
        arguments = [self._text(value) for value in step.args]
        if step.kwargs:  # not key=value: aten has an argument named "from"
            arguments.append(f"**{self._text(dict(step.kwargs))}")
        call = f"{self._name(getattr(step.fn, '__name__', 'fn'), step.fn)}({', '.join(arguments)})"
        if len(step.outs) == 1:
            return f"s{step.outs[0]} = {call}"
        return f"{_targets(step.outs)} = {call}" if step.outs else call

    def _text(self, value: object) -> str:
        if isinstance(value, Slot):
            return f"s{value.index}"
        if isinstance(value, list):
            return f"[{', '.join(map(self._text, value))}]"
        if isinstance(value, tuple):
            return f"({''.join(self._text(item) + ', ' for item in value)})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self._text(item)}" for key, item in value.items()) + "}"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        return self._name("constant", value)

    def _name(self, hint: str, value: object) -> str:
        readable = "".join(c if c.isalnum() else "_" for c in hint)
        name = f"{readable}_{len(self.names)}"
        self.names[name] = value
        return name


def _targets(slots: tuple[int, ...]) -> str:
    return "[" + ", ".join(f"s{slot}" for slot in slots) + "]"


def _reads(step: Step) -> Iterator[int]:
    if isinstance(step, KernelStep):
        yield from step.ins
    else:
        yield from slots_in((step.args, tuple(step.kwargs.values())))


def slots_in(value: object) -> Iterator[int]:
    """Slots anywhere in a template."""
    if isinstance(value, Slot):
        yield value.index
    elif isinstance(value, tuple | list):
        for item in value:
            yield from slots_in(item)
    elif isinstance(value, dict):
        yield from slots_in(tuple(value.values()))


def _compiled(source: str, names: dict[str, object]) -> Callable[[list[Any]], list[Any]]:
    """The function in `source`; its lines are known to tracebacks and debuggers."""
    file = f"<wolong executor {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope = dict(names)
    exec(compile(source, file, "exec"), scope)
    return scope["call"]  # type: ignore[return-value]
