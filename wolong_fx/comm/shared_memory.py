"""Memory that several processes of one user map: a file without a name, passed from process to process."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

from wolong_fx.comm.core_library import CoreLibrary

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class SharedMemory:
    """A mapping of such memory, for as long as the process lives.

    It costs what was touched of it, and goes with the last process that maps it, however that ends.
    size: bytes
    """

    descriptor: int
    size: int
    address: int

    @classmethod
    def create(cls, core: CoreLibrary, size: int) -> SharedMemory:
        """New memory, all zero; nobody can change its size any more, which would kill whoever reads there."""
        descriptor = os.memfd_create("wolong", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return cls.attach(core, descriptor)

    @classmethod
    def attach(cls, core: CoreLibrary, descriptor: int) -> SharedMemory:
        """The memory behind a descriptor, which is kept. Raises MemoryError when it cannot be mapped."""
        size = os.fstat(descriptor).st_size
        address = core.map(descriptor, size)
        if address is None:
            raise MemoryError(f"{size} bytes of shared memory cannot be mapped")
        return cls(descriptor, size, address)
