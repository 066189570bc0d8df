"""Where kernels leave the number of a check that failed: memory of the host that the device writes to.

The host looks there without waiting. So a failure is told by the next call of the kernel after it happened,
or by `raise_failures()`, which a person calls behind torch.cuda.synchronize(). Words are never given back:
a kernel, or a graph that it was captured into, may still write to one long after its model is gone.
"""

from __future__ import annotations

import ctypes
import threading
from weakref import WeakSet

from torch import Tensor

from wolong_fx.errors import KernelCheckFailed
from wolong_fx.runtime.gpu.device import Device

_PAGE = 256
"""Words that are allocated at once."""

_APART = 4
"""Words from one to the next: kernels take every pointer for one that is aligned to 16 bytes."""

_pages: list[Tensor] = []
_used = _PAGE
_lock = threading.Lock()


class FailureWord:
    """The word of one kernel: 0, or the largest number + 1 of the checks that failed.

    checks: what they say, by number
    """

    def __init__(self, kernel: str, checks: tuple[str, ...], device: Device) -> None:
        self.kernel, self.checks = kernel, checks
        self.address = _next_address(device)
        self._word = ctypes.c_int32.from_address(self.address)
        if checks:
            _alive.add(self)

    @property
    def is_set(self) -> bool:
        return self._word.value != 0

    def raise_failure(self) -> None:
        """Raises KernelCheckFailed if a check failed, and forgets it."""
        failed = self._word.value
        if failed:
            self._word.value = 0
            raise KernelCheckFailed(message=self.checks[failed - 1], kernel=self.kernel)


_alive: WeakSet[FailureWord] = WeakSet()


def raise_failures() -> None:
    """Raise KernelCheckFailed if a check failed in a launch that is over and whose kernel was not called
    since: after torch.cuda.synchronize(), in any launch so far.
    """
    for word in list(_alive):
        word.raise_failure()


def _next_address(device: Device) -> int:
    global _used
    with _lock:
        if _used == _PAGE:
            _pages.append(device.shared_words(_PAGE * _APART))
            _used = 0
        _used += 1
        return _pages[-1].data_ptr() + 4 * _APART * (_used - 1)
