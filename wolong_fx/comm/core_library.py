"""Memory and groups of the core, by its C interface (`core/interface.h`); collectives go through the glue."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

NOWHERE = 2**64 - 1


class CoreLibrary:
    """Functions of a loaded core. Engines and groups are addresses."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._c = library
        pointer, size = ctypes.c_void_p, ctypes.c_uint64
        for name, result, arguments in (
            ("map", pointer, [ctypes.c_int, size]),
            ("open", pointer, [pointer, size, size]),
            ("set_spins", None, [pointer, size]),
            ("allocate", size, [pointer, size]),
            ("release", None, [pointer, size]),
            ("used", size, [pointer]),
            ("peak", size, [pointer]),
            ("copied", size, [pointer]),
            ("has", ctypes.c_bool, [pointer, pointer, size]),
            ("prepare_share", size, [pointer, ctypes.c_uint32]),
            ("join", pointer, [pointer, ctypes.c_uint32, ctypes.c_uint32, *[pointer] * 4]),
        ):
            function = getattr(self._c, f"wolong_{name}")
            function.restype, function.argtypes = result, arguments

    def map(self, descriptor: int, size: int) -> int | None:
        """Where a file is mapped from now on; None when the system refuses."""
        return self._c.wolong_map(descriptor, size)

    def open(self, address: int, size: int, spins: int) -> int:
        return self._c.wolong_open(address, size, spins)

    def set_spins(self, engine: int, spins: int) -> None:
        """Looks at memory before a rank that waits sleeps."""
        self._c.wolong_set_spins(engine, spins)

    def allocate(self, engine: int, size: int) -> int:
        """The offset of `size` bytes that are free; NOWHERE if there is no room."""
        return self._c.wolong_allocate(engine, size)

    def release(self, engine: int, offset: int) -> None:
        self._c.wolong_release(engine, offset)

    def used(self, engine: int) -> int:
        return self._c.wolong_used(engine)

    def peak(self, engine: int) -> int:
        return self._c.wolong_peak(engine)

    def copied(self, engine: int) -> int:
        return self._c.wolong_copied(engine)

    def has(self, engine: int, address: int, size: int) -> bool:
        return self._c.wolong_has(engine, address, size)

    def prepare_share(self, engine: int, ranks: int) -> int:
        return self._c.wolong_prepare_share(engine, ranks)

    def join(
        self,
        engine: int,
        rank: int,
        bases: Sequence[int],
        sizes: Sequence[int],
        processes: Sequence[int],
        offsets: Sequence[int],
    ) -> int:
        """A group of as many ranks as there are bases, by rank: see interface.h."""
        ranks = len(bases)
        return self._c.wolong_join(
            engine,
            rank,
            ranks,
            (ctypes.c_void_p * ranks)(*bases),
            (ctypes.c_uint64 * ranks)(*sizes),
            (ctypes.c_int32 * ranks)(*processes),
            (ctypes.c_uint64 * ranks)(*offsets),
        )
