"""A kernel in two parts: what it computes from weights alone is kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from wolong_fx.options import Options
from wolong_fx.runtime.watch import Watch


class Launchable(Protocol):
    """A compiled kernel, or the reference machine in its place."""

    def launch(self, inputs: Sequence[Tensor]) -> list[Tensor]: ...

    def keep_together(self, positions: Collection[int]) -> None: ...


@dataclass(frozen=True)
class Wiring:
    """Which of the inputs of a call go where.

    weights: positions of the inputs of the prepare part
    others: positions of those that the run part reads, in its order; the kept values come behind them
    """

    weights: tuple[int, ...]
    others: tuple[int, ...]


class Kept(NamedTuple):
    """What the prepare part made, and what the weights were then."""

    watch: Watch
    values: list[Tensor]


class ResidentKernel:
    """Runs `prepare` on the weights when they are not what they were, then `run` on its results and the rest.

    Calls may overlap, from any threads: each uses the values that it found or made, which are never written
    again. Two that find a weight changed at once both prepare, which is wasteful and right. Pickling and
    deepcopy leave the kept values behind.
    """

    def __init__(self, prepare: Launchable, run: Launchable, wiring: Wiring, options: Options) -> None:
        self.prepare, self.run, self.wiring, self.options = prepare, run, wiring, options
        self._kept: Kept | None = None

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self.launch(inputs)

    def launch(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Fresh outputs; raises what the two kernels raise."""
        weights, kept = [inputs[i] for i in self.wiring.weights], self._kept
        if kept is None or kept.watch.has_moved(weights):
            kept = self._prepare(weights)
        return self.run.launch([*[inputs[i] for i in self.wiring.others], *kept.values])

    def keep_together(self, positions: Collection[int]) -> None:
        """Allocate these outputs as one from now on; see `Kernel`."""
        self.run.keep_together(positions)

    def _prepare(self, weights: list[Tensor]) -> Kept:
        # Watched before they are read: a write in between is then a change.
        watch = Watch(weights, self.options)
        self._kept = kept = Kept(watch, self.prepare.launch(weights))
        return kept

    def __reduce__(self) -> tuple[Callable[..., ResidentKernel], tuple[object, ...]]:
        return ResidentKernel, (self.prepare, self.run, self.wiring, self.options)

    def __repr__(self) -> str:
        return f"ResidentKernel({self.run!r}, after {self.prepare!r})"
