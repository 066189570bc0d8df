"""A kernel in two parts: what it computes from weights alone is kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from wolong_fx.options import Options
from wolong_fx.runtime.kernel import Helpers
from wolong_fx.runtime.watch import Watch


class Launchable(Protocol):
    """A compiled kernel, or the reference machine in its place."""

    def launch(self, inputs: Sequence[Tensor], bound: Any = ...) -> list[Tensor]: ...

    def bind(self, tensors: Sequence[Tensor]) -> Any: ...

    def keep_together(self, positions: Collection[int]) -> None: ...

    def launch_with(self, helpers: Helpers) -> None: ...


@dataclass(frozen=True)
class Wiring:
    """Positions among the inputs of a call.

    prepare: of the inputs of the prepare part
    run: of those that the run part reads and that differ from call to call
    weights: of the weights that it reads as they are, behind those; the kept values come last
    """

    prepare: tuple[int, ...]
    run: tuple[int, ...]
    weights: tuple[int, ...]


class Kept(NamedTuple):
    """What the prepare part made, and what the weights were then.

    bound: the inputs of the run part that stay, in the form that it takes them
    """

    watch: Watch
    values: list[Tensor]
    bound: Any


class ResidentKernel:
    """Runs `prepare` on the weights when they are not what they were, then `run` on its results and the rest.

    Calls may overlap, from any threads: each uses the values that it found or made, which are never written
    again. Two that find a weight changed at once both prepare, which is wasteful and right. Pickling and
    deepcopy leave the kept values behind.
    """

    def __init__(self, prepare: Launchable, run: Launchable, wiring: Wiring, options: Options) -> None:
        self.prepare, self.run, self.wiring, self.options = prepare, run, wiring, options
        self._select = _selector(wiring.run)
        self._kept: Kept | None = None

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self.launch(list(inputs))

    def launch(self, inputs: list[Tensor]) -> list[Tensor]:
        """Fresh outputs; raises what the two kernels raise."""
        kept = self._kept
        if kept is None or kept.watch.has_moved(inputs):
            kept = self._prepare(inputs)
        return self.run.launch(self._select(inputs), kept.bound)

    def keep_together(self, positions: Collection[int]) -> None:
        """Allocate these outputs as one from now on; see `Kernel`."""
        self.run.keep_together(positions)

    def launch_with(self, helpers: Helpers) -> None:
        """See `Kernel`."""
        self.run.launch_with(helpers)

    def _prepare(self, inputs: list[Tensor]) -> Kept:
        wiring = self.wiring
        watched = tuple(dict.fromkeys((*wiring.prepare, *wiring.weights)))
        # Watched before they are read: a write in between is then a change.
        watch = Watch(inputs, self.options, watched)
        values = self.prepare.launch([inputs[i] for i in wiring.prepare])
        bound = self.run.bind([*(inputs[i] for i in wiring.weights), *values])
        self._kept = kept = Kept(watch, values, bound)
        return kept

    def __reduce__(self) -> tuple[Callable[..., ResidentKernel], tuple[object, ...]]:
        return ResidentKernel, (self.prepare, self.run, self.wiring, self.options)

    def __repr__(self) -> str:
        return f"ResidentKernel({self.run!r}, after {self.prepare!r})"


def _selector(positions: tuple[int, ...]) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """What takes the items at these positions out of a list."""
    if not positions:
        return lambda inputs: ()
    if positions == tuple(range(positions[0], positions[0] + len(positions))):
        return itemgetter(slice(positions[0], positions[-1] + 1))
    return itemgetter(*positions)
