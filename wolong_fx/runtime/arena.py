"""Zeroed, aligned memory that kernels keep between calls."""

from __future__ import annotations

import ctypes
import mmap

ALIGNMENT = 64
_HUGE_PAGE = 2 << 20
_HUGE_FROM = 2 * _HUGE_PAGE


class Arena:
    """`size` bytes of zeroed memory, aligned to 64 bytes (2 MB when large), freed with this object.

    Private to the process: after a fork, parent and child write to copies of their own. Python's mmap would
    share it.
    """

    def __init__(self, size: int) -> None:
        is_large = size >= _HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE")
        spare = _HUGE_PAGE if is_large else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(size, 1) + spare, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = -(-start // _HUGE_PAGE) * _HUGE_PAGE if is_large else start
        if is_large:
            # Fewer page-table walks: weights and temporaries are streamed once a call.
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    @classmethod
    def holding(cls, content: bytes) -> Arena:
        """An arena that starts with these bytes."""
        arena = cls(len(content))
        ctypes.memmove(arena.address, content, len(content))
        return arena
