"""Measures what work costs on this machine (calibrate.cpp), in well under two seconds, and keeps it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch  # noqa: F401  # its OpenMP runtime is the one whose regions are measured

from wolong_fx.options import Options
from wolong_fx.runtime.kernel import kernel_host
from wolong_fx.runtime.machine_costs import MachineCosts, checked_costs, keep_costs, usual_costs
from wolong_fx.runtime.openmp import find_openmp
from wolong_fx.runtime.threads import team_size
from wolong_fx.toolchain.cache import KernelCache, cache_key
from wolong_fx.toolchain.compiler import build_library
from wolong_fx.toolchain.isa import choose_isa, isa_flags

SOURCE = Path(__file__).with_suffix(".cpp")

FIGURES = (
    *("cycle", "fma_rate", "special_rate", "l1_rate", "l2_rate", "l3_rate", "dram_rate"),
    *("team_l3_rate", "team_dram_rate", "block", "barrier", "handover_rate", "region"),
)
"""What calibrate.cpp measures, in its order; what it does not measure stays 0, which no figure may be."""

_MOST_READ = 128 << 20
"""Bytes read at most to measure memory behind the caches: time and small machines' memory are soon gone."""


def calibrate(options: Options) -> tuple[MachineCosts, Path]:
    """Measure this machine, keep the costs, and return them with the file that they are kept in.

    Raises NoCompiler and CompilerFailed when the program cannot be built, OSError when nothing can be kept.
    """
    isa, threads = choose_isa(options.isa), team_size(options.threads)
    usual = usual_costs(isa, threads)
    costs = checked_costs(_measure(options, isa, threads, usual), usual)
    return costs, keep_costs(costs, options, isa, threads)


def _measure(options: Options, isa: str, threads: int, usual: MachineCosts) -> dict[str, float]:
    library = _load(options, isa)
    found = (ctypes.c_double * len(FIGURES))()
    openmp = find_openmp()
    team = threads if openmp is not None and openmp.grants_team(threads) else 1
    sizes = (ctypes.c_long * 4)(*_sizes(usual))
    if library.wolong_calibrate(ctypes.byref(kernel_host()), team, sizes, found):
        return {}
    return dict(zip(FIGURES, found, strict=True))


def _sizes(costs: MachineCosts) -> tuple[int, int, int, int]:
    """Of the first two caches; then bytes that the third one holds, and bytes that it does not."""
    behind = min(_MOST_READ, max(4 * costs.l2_bytes, 2 * costs.l3_bytes))
    return costs.l1_bytes, costs.l2_bytes, min(4 * costs.l2_bytes, costs.l3_bytes // 2), behind


def _load(options: Options, isa: str) -> ctypes.CDLL:
    source, flags = SOURCE.read_text(), isa_flags(isa)

    def build(directory: Path) -> Path:
        return build_library(source, flags, directory)

    return KernelCache.of(options).fetch(cache_key(source, flags), build, ctypes.CDLL)
