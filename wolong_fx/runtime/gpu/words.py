"""The barrier words of a kernel: one for each stream, each alone on a cache line, zero before its first use.

Launches on one stream run one after another and leave the word as the next one needs it (barrier.py), so they
share one. Launches on two streams may overlap and must not.

A launch that is captured into a graph gets a word of its own, and a node that zeroes it before every replay.
Its memory comes from the capture's pool, so it lives as long as the graph. While the capture lasts we hold
it, so that no two captured launches have the same; afterwards the pool may lend it to the next graph that
shares the pool, which is why replays zero it: such graphs never run at the same time, but what one leaves
there would be garbage to the other.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

import torch
from torch import Tensor

from wolong_fx.runtime.gpu.device import Device
from wolong_fx.runtime.image import TensorSpec

LINE_BYTES = 128
PER_THREAD_STREAM = 2
"""CU_STREAM_PER_THREAD: one handle, another stream in each thread."""

_LINE = TensorSpec(torch.int32, (LINE_BYTES // 4,), (1,))


class Words:
    """Finds the word for a launch on the current stream of `device`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._allocate = device.allocator(_LINE)
        self._of_stream: dict[Hashable, Tensor] = {}
        self._addresses: dict[Hashable, int] = {}
        self._captured: dict[int, list[Tensor]] = {}

    def find(self, stream: int) -> int | None:
        """Address of the word of a stream; None before its first launch, and after a failed one.

        Called when nothing is captured: what captures took belongs to their graphs alone from now on.
        """
        if self._captured:
            self._captured.clear()
        return self._addresses.get(stream if stream != PER_THREAD_STREAM else _of_thread())

    def add(self, stream: int) -> int:
        """Address of a new word for the current stream, which is `stream`."""
        key = stream if stream != PER_THREAD_STREAM else _of_thread()
        # Two threads may both come here; the one that is too late takes what is there.
        word = self._of_stream.setdefault(key, self._zeroed())
        self._addresses[key] = word.data_ptr()
        return word.data_ptr()

    def capture(self, capture: int) -> int:
        """Address of a word for one launch of this capture."""
        word = self._zeroed()
        self._captured.setdefault(capture, []).append(word)
        return word.data_ptr()

    def drop(self, stream: int) -> None:
        """A launch on this stream failed: what its word holds is unknown."""
        key = stream if stream != PER_THREAD_STREAM else _of_thread()
        self._addresses.pop(key, None)
        self._of_stream.pop(key, None)

    def drop_all(self) -> None:
        """A launch failed, on whatever stream."""
        self._addresses.clear()
        self._of_stream.clear()

    def _zeroed(self) -> Tensor:
        word = self._allocate()
        self._device.zero(word)
        return word


def _of_thread() -> Hashable:
    return PER_THREAD_STREAM, threading.get_ident()
