"""A kernel in two parts whose launches may go into CUDA graphs."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor

from wolong_fx.runtime.resident import Launchable, ResidentKernel


class Capturable(Launchable, Protocol):
    """A kernel that a graph may capture."""

    def is_captured(self) -> bool: ...


class CapturedResidentKernel(ResidentKernel):
    """What weights make is made anew in a captured call: a replay must see weights that changed since, and
    nobody is there to look at their versions."""

    def launch(self, inputs: list[Tensor]) -> list[Tensor]:
        """As of any other; in a capture both parts become part of the graph."""
        if not cast(Capturable, self.run).is_captured():
            return super().launch(inputs)
        wiring = self.wiring
        values = self.prepare.launch([inputs[i] for i in wiring.prepare])
        bound = self.run.bind([*(inputs[i] for i in wiring.weights), *values])
        return self.run.launch(self._select(inputs), bound)
