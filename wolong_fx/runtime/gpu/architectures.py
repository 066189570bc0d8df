"""What a multiprocessor of each architecture holds, and how many blocks of a kernel fit on it together.

Figures and rules: CUDA C++ Programming Guide, "Compute Capabilities", and the occupancy calculator's
arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTER_UNIT = 256
"""Registers of a warp are handed out in units of so many."""

REGISTER_FILES = 4
"""Parts of a multiprocessor that have registers of their own; a warp's all come from one."""

SHARED_UNIT = 128
SHARED_RESERVED = 1024
"""Bytes of shared memory that the system takes for every block."""


@dataclass(frozen=True)
class Architecture:
    """A compute capability, and the largest device that has it.

    shared_bytes, largest_shared: of a multiprocessor, and of one block
    """

    name: str
    capability: int
    device: str
    multiprocessors: int
    registers: int
    shared_bytes: int
    largest_shared: int
    threads: int
    blocks: int


ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        Architecture("sm_80", 80, "A100", 108, 65536, 167936, 166912, 2048, 32),
        Architecture("sm_90", 90, "H100, H200", 132, 65536, 233472, 232448, 2048, 32),
        Architecture("sm_100", 100, "B200", 148, 65536, 233472, 232448, 2048, 32),
    )
}


def resident_blocks(architecture: Architecture, *, registers: int, shared_bytes: int, warps: int) -> int:
    """Blocks of a kernel that fit on one multiprocessor together; 0 if not even one does.

    registers: of a thread; shared_bytes: of a block; warps: of a block
    """
    if shared_bytes > architecture.largest_shared:
        return 0
    by_threads = min(architecture.blocks, architecture.threads // (WARP * warps))
    of_warp = _up(max(1, registers) * WARP, REGISTER_UNIT)
    warps_of_file = architecture.registers // REGISTER_FILES // of_warp
    by_registers = warps_of_file * REGISTER_FILES // warps
    by_shared = architecture.shared_bytes // _up(shared_bytes + SHARED_RESERVED, SHARED_UNIT)
    return min(by_threads, by_registers, by_shared)


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
