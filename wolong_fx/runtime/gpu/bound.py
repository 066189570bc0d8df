"""Tensors that stay between calls, read by launches on any stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from wolong_fx.runtime.gpu.device import Device


@dataclass
class Bound:
    """Inputs that were made on one stream, with the mark behind which they are ready.

    joined: streams that have waited for it
    """

    addresses: tuple[int, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    ready: Any = None
    joined: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], device: Device) -> Bound:
        """They are ready where the current stream is now. In a capture they are for this call alone."""
        is_kept = tensors and device.find_capture() is None
        ready = device.mark() if is_kept else None
        return cls(tuple(t.data_ptr() for t in tensors), tuple(tensors), ready, {device.stream()})

    def join(self, device: Device, stream: int, capture: int | None) -> None:
        """Before a launch on the current stream: it waits for what another made, whose memory it holds."""
        if stream not in self.joined and capture is None:
            device.wait_for(self.ready)
            device.use_on_stream(self.tensors)
            self.joined.add(stream)


NOTHING = Bound()
