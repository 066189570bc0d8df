"""Watching in which compiled graphs the calls of a model end: with which tensors, returning which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from wolong_fx._torch_compat import StepLayout

BoxedCallable = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class GraphCall:
    """One call of a compiled graph: `run` took `inputs` and returned `outputs`.

    compilation: Dynamo's name of the compilation that the graph comes from
    written: positions of the inputs that it writes; AOTAutograd's wrapper, which otherwise does nothing,
        moves their version counters before the call. None: the wrapper does more.
    returned: of its outputs, those in whose place the wrapper returns an input: positions of both
    launches: kernels a call
    training: the graphs behind it, where gradients flow through it: AOTAutograd's wrapper then writes
        those inputs after the graph ran
    """

    run: BoxedCallable
    compilation: str
    written: tuple[int, ...] | None
    launches: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    returned: Mapping[int, int] = field(default_factory=dict)
    training: TrainingGraphs | None = None


@dataclass
class TrainingGraphs:
    """The forward and the backward that AOTAutograd made of one graph, filled in as they are compiled.

    launches: kernels of both
    written: positions of the inputs that are written after the forward; None: its wrapper does more
    layout: how it calls them; None where it does more than our own call of them would
    gradients: metadata of the gradients that the backward takes, behind all that the forward kept
    given: what the forward was given when somebody last watched
    """

    compilation: str = ""
    launches: int = 0
    written: tuple[int, ...] | None = None
    layout: StepLayout | None = None
    forward: BoxedCallable | None = None
    backward: BoxedCallable | None = None
    gradients: tuple[Any, ...] = ()
    given: tuple[Any, ...] | None = None


@dataclass
class Watch:
    """Notes calls of compiled graphs while somebody watches; otherwise costs them a look at one attribute."""

    calls: list[GraphCall] | None = field(default=None)

    @contextmanager
    def watching(self) -> Iterator[list[GraphCall]]:
        """The calls inside, in a list that grows. Calls of other threads get into it too."""
        calls: list[GraphCall] = []
        self.calls = calls
        try:
            yield calls
        finally:
            self.calls = None

    def over(
        self,
        run: BoxedCallable,
        *,
        compilation: str,
        written: tuple[int, ...] | None,
        returned: Mapping[int, int],
        launches: int,
    ) -> BoxedCallable:
        """`run`, watched."""

        def watched(inputs: list[Any]) -> Sequence[Any]:
            calls = self.calls
            if calls is None:
                return run(inputs)
            given = tuple(inputs)
            outputs = run(inputs)
            calls.append(GraphCall(run, compilation, written, launches, given, tuple(outputs), returned))
            return outputs

        return watched

    def over_forward(self, graphs: TrainingGraphs) -> BoxedCallable:
        """The forward of `graphs`, whose inputs are noted there."""
        run = graphs.forward
        assert run is not None

        def watched(inputs: list[Any]) -> Sequence[Any]:
            graphs.given = None if self.calls is None else tuple(inputs)
            return run(inputs)

        return watched

    def over_training(self, run: Callable[..., Sequence[Any]], graphs: TrainingGraphs) -> Callable[..., Any]:
        """`run`, which AOTAutograd made of `graphs`, watched."""

        def boxed(inputs: list[Any]) -> Sequence[Any]:
            return run(*inputs)

        def watched(*inputs: Any) -> Sequence[Any]:
            calls = self.calls
            if calls is None:
                return run(*inputs)
            outputs = run(*inputs)
            name, written, launches = graphs.compilation, graphs.written, graphs.launches
            calls.append(GraphCall(boxed, name, written, launches, inputs, tuple(outputs), training=graphs))
            return outputs

        return watched
