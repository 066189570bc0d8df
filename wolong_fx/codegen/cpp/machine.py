"""What the emitter has to know of an instruction set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """An instruction set as the emitter sees it.

    vector_bytes: width of a vector register; a tile function computes on vector_bytes / 4 (or / 8) lanes
    registers: vector registers, which bound the accumulators of a micro-kernel
    macro: preprocessor name that is set for the vector prelude
    """

    name: str
    vector_bytes: int
    registers: int
    macro: str

    def lanes(self, element_bytes: int) -> int:
        return self.vector_bytes // element_bytes

    @property
    def accumulators(self) -> int:
        """Accumulators a micro-kernel may have, with registers left for its operands."""
        return 24 if self.registers == 32 else 12

    @property
    def width(self) -> int:
        """Vectors of the right operand that a micro-kernel reads in each step."""
        return 4 if self.registers == 32 else 2


MACHINES: Mapping[str, Machine] = {
    "avx512": Machine("avx512", 64, 32, "WOLONG_AVX512"),
    "avx2": Machine("avx2", 32, 16, "WOLONG_AVX2"),
    "portable": Machine("portable", 16, 16, "WOLONG_PORTABLE"),
}
