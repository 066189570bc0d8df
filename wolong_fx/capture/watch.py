"""Watching in which compiled graphs the calls of a model end: with which tensors, returning which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BoxedCallable = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class GraphCall:
    """One call of a compiled graph: `run` took `inputs` and returned `outputs`.

    compilation: Dynamo's name of the compilation that the graph comes from
    written: positions of the inputs that it writes; AOTAutograd's wrapper, which otherwise does nothing,
        moves their version counters before the call. None: the wrapper does more.
    launches: kernels a call
    """

    run: BoxedCallable
    compilation: str
    written: tuple[int, ...] | None
    launches: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


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
        self, run: BoxedCallable, *, compilation: str, written: tuple[int, ...] | None, launches: int
    ) -> BoxedCallable:
        """`run`, watched."""

        def watched(inputs: list[Any]) -> Sequence[Any]:
            calls = self.calls
            if calls is None:
                return run(inputs)
            given = tuple(inputs)
            outputs = run(inputs)
            calls.append(GraphCall(run, compilation, written, launches, given, tuple(outputs)))
            return outputs

        return watched
