"""How much of a call is spent inside our kernels, and in allocating their outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

from wolong_fx.runtime import Kernel


@contextmanager
def watched_kernels() -> Iterator[list[Kernel]]:
    """The kernels that are made inside."""
    made: list[Kernel] = []
    original = Kernel.__init__

    def initialise(self: Kernel, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    Kernel.__init__ = initialise  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Kernel.__init__ = original  # type: ignore[method-assign]


class Stopwatch:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time added to `name`."""

        def timed(*args: Any) -> Any:
            start = perf_counter()
            try:
                return call(*args)
            finally:
                self.seconds[name] += perf_counter() - start

        return timed

    def lap(self) -> dict[str, float]:
        """Milliseconds since the last lap: all, in kernels, in allocating their outputs, around them."""
        ms = {name: 1e3 * self.seconds[name] for name in ("call", "kernel", "outputs")}
        self.seconds.clear()
        return ms | {"around": ms["call"] - ms["kernel"] - ms["outputs"]}

    @contextmanager
    def watching(self, kernels: Sequence[Kernel]) -> Iterator[None]:
        """Inside, every kernel's run and its allocations are timed, which costs each call 0.5 us."""
        before = [(kernel._run, kernel.allocate_outputs) for kernel in kernels]
        for kernel, (run, allocate) in zip(kernels, before, strict=True):
            kernel._run = self.around("kernel", run)
            kernel.allocate_outputs = self.around("outputs", allocate)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for kernel, (run, _) in zip(kernels, before, strict=True):
                kernel._run = run
                del kernel.allocate_outputs


def kernel_ms(
    call: Callable[[], object], kernels: Sequence[Kernel], rounds: int, sample_ms: float
) -> float | None:
    """The median of what a call spends inside kernels; None where it launches none of these.

    sample_ms: how long one of the samples takes, at least
    """
    watch = Stopwatch()
    with watch.watching(kernels):
        taken = [_mean_in_kernels(watch.around("call", call), watch, sample_ms) for _ in range(rounds)]
    return median(taken) or None


def _mean_in_kernels(call: Callable[[], object], watch: Stopwatch, sample_ms: float) -> float:
    watch.lap()
    calls = 0
    while not calls or watch.seconds["call"] < sample_ms / 1e3:
        call()
        calls += 1
    return watch.lap()["kernel"] / calls
