"""Which vector instructions this processor has, and the compiler flags that ask for them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from wolong_fx.errors import IsaNotHere

NEEDS: Mapping[str, frozenset[str]] = {
    "avx512": frozenset("avx512f avx512dq avx512bw avx512vl avx2 fma f16c bmi2".split()),
    "avx2": frozenset("avx2 fma f16c bmi2".split()),
    "portable": frozenset(),
}
"""Processor flags, as /proc/cpuinfo spells them, that code for an instruction set may use; best first."""


def isa_flags(isa: str) -> tuple[str, ...]:
    """Compiler flags for code of this instruction set.

    Named one by one, never -march=native or -mtune=native: a home directory, and the cache in it, is shared
    by machines with different processors, and the same source and flags must mean the same code on each.
    """
    return tuple(f"-m{flag}" for flag in sorted(NEEDS[isa]))


def choose_isa(requested: str) -> str:
    """The instruction set to emit for; "auto" is the best this processor has. Raises IsaNotHere."""
    here = processor_flags()
    best = next(isa for isa, needs in NEEDS.items() if needs <= here)
    if requested == "auto":
        return best
    if not NEEDS[requested] <= here:
        raise IsaNotHere(isa=requested, missing=sorted(NEEDS[requested] - here), best=best)
    return requested


@cache
def processor_flags() -> frozenset[str]:
    """Features of the processor that the system supports, which means that it saves their registers."""
    return frozenset(_processor_field("flags").split())


@cache
def processor_identity() -> str:
    """Names this kind of processor; code compiled with -march=native belongs to one kind."""
    return f"{platform.machine()} {_processor_field('model name')} {' '.join(sorted(processor_flags()))}"


def _processor_field(name: str) -> str:
    """That line of the first processor in /proc/cpuinfo; "" where there is no such file or line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), "")
