"""What work costs on this machine: measured once by `wolong calibrate` and kept, else taken to be usual.

Kept as <cache directory>/machine/<key>.json, where the key names the processor, the instruction set and the
number of threads. Whoever compiles reads it, and never measures: the same file gives the same kernels.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wolong_fx.options import Options
from wolong_fx.toolchain.cache import KernelCache
from wolong_fx.toolchain.isa import NEEDS, processor_identity
from wolong_fx.toolchain.notices import warn_once

FORMAT = 1
"""Of the file; part of its name, so that another format is another file."""


@dataclass(frozen=True)
class MachineCosts:
    """Rates of one core where nothing else is said; seconds, bytes, and counts a second.

    cycle: seconds of a clock cycle, as long as instructions that wait for each other take
    fma_rate: multiply-adds of float32, in vectors whose operands are in registers
    special_rate: vectors of an exp, tanh or the like
    l1_rate, l2_rate, l3_rate, dram_rate: bytes read one after another from there
    team_l3_rate, team_dram_rate: the same of all threads together, since these are shared
    block: finding a virtual block and what it is bound to
    barrier: of the whole team, with a line of memory handed from each thread to the next
    handover_rate: bytes that one core reads and another one wrote last
    region: beginning and ending a parallel region whose threads are warm
    l1_bytes, l2_bytes, l3_bytes: sizes, the last one shared by all cores
    """

    cycle: float
    fma_rate: float
    special_rate: float
    l1_rate: float
    l2_rate: float
    l3_rate: float
    dram_rate: float
    team_l3_rate: float
    team_dram_rate: float
    block: float
    barrier: float
    handover_rate: float
    region: float
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l3_bytes: int = 32 << 20

    def as_json(self) -> dict[str, float]:
        """Figures as they are kept: three digits, since the rest is noise."""
        return {
            name: float(f"{value:.3g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


SPECIAL_CYCLES = 12.0
"""Of a vector of an exp, tanh or the like, on a machine that nobody has measured."""

_GHZ = 4.2
_USUAL: Mapping[str, float] = MappingProxyType(
    {
        "cycle": 1e-9 / _GHZ,
        "l3_rate": 115e9,
        "dram_rate": 37e9,
        "block": 20e-9 / _GHZ,
        "barrier": 100e-9,
        "handover_rate": 5e9,
        "region": 0.7e-6,
    }
)
"""Measured on a server core of 4.2 GHz, 2 threads; others are taken to be alike until they are measured."""

_LANES: Mapping[str, int] = MappingProxyType({"avx512": 16, "avx2": 8, "portable": 4})

LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "cycle": (0.1e-9, 5e-9),
        "fma_rate": (1e8, 1e12),
        "special_rate": (1e6, 1e10),
        "l1_rate": (1e9, 2e12),
        "l2_rate": (1e9, 1e12),
        "l3_rate": (5e8, 5e11),
        "dram_rate": (2e8, 2e11),
        "team_l3_rate": (5e8, 2e13),
        "team_dram_rate": (2e8, 2e12),
        "block": (2e-10, 1e-6),
        "barrier": (1e-8, 1e-4),
        "handover_rate": (1e6, 1e12),
        "region": (1e-8, 1e-3),
        "l1_bytes": (1 << 12, 1 << 22),
        "l2_bytes": (1 << 15, 1 << 28),
        "l3_bytes": (1 << 15, 1 << 34),
    }
)
"""What a figure may be on any machine; one outside was measured wrongly, and the usual one is taken."""


def usual_costs(isa: str, threads: int, cache_bytes: Mapping[str, int] | None = None) -> MachineCosts:
    """What a machine is taken to cost before it was measured.

    cache_bytes: sizes by field name, by default what the system says
    """
    lanes = _LANES[isa]
    memory = {
        "l1_rate": 4 * lanes * 2 * _GHZ * 1e9,  # two vectors a cycle
        "l2_rate": 4 * lanes * _GHZ * 1e9,  # one
        "team_l3_rate": threads * _USUAL["l3_rate"],
        "team_dram_rate": min(threads, 2) * _USUAL["dram_rate"] * 0.55
        if threads > 1
        else _USUAL["dram_rate"],
    }
    sizes = find_cache_bytes() if cache_bytes is None else cache_bytes
    special_rate = _GHZ * 1e9 / SPECIAL_CYCLES
    return MachineCosts(
        fma_rate=2 * lanes * _GHZ * 1e9, special_rate=special_rate, **_USUAL, **memory, **_within(sizes)
    )


def find_cache_bytes(system: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Sizes of the data caches as Linux tells them, by field name; without those it does not tell."""
    found = {}
    for index in system.glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and size.endswith("K") and size[:-1].isdecimal():
            found[f"l{level}_bytes"] = int(size[:-1]) << 10
    return {name: size for name, size in found.items() if name in LIMITS}


def machine_costs(options: Options, isa: str, threads: int) -> MachineCosts:
    """The kept measurement, or the usual costs where there is none."""
    usual = usual_costs(isa, threads)
    path = costs_file(options, isa, threads)
    try:
        content = json.loads(path.read_text())
        return checked_costs(dict(content["costs"]), usual)
    except FileNotFoundError:
        return usual
    except (OSError, ValueError, TypeError, KeyError) as error:
        warn_once(
            f"costs {path}",
            f"cannot read the measured costs of this machine in {str(path)!r} ({type(error).__name__}: "
            f"{error}): usual ones are taken; `wolong calibrate` measures anew.",
        )
        return usual


def checked_costs(measured: Mapping[str, object], usual: MachineCosts) -> MachineCosts:
    """`usual` with the figures that were measured and can be true.

    Beside a busy process a team is measured as slow as that lets it be; no team reads slower than one core.
    """
    costs = replace(usual, **_within(measured))
    return replace(
        costs,
        team_l3_rate=max(costs.team_l3_rate, costs.l3_rate),
        team_dram_rate=max(costs.team_dram_rate, costs.dram_rate),
    )


def keep_costs(costs: MachineCosts, options: Options, isa: str, threads: int) -> Path:
    """Write the file that `machine_costs` reads; raises OSError where that is impossible."""
    path = costs_file(options, isa, threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"isa": isa, "threads": threads, "costs": costs.as_json()}, indent=2) + "\n"
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=path.parent) as directory:
        written = Path(directory) / path.name
        with open(written, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
    return path


def costs_file(options: Options, isa: str, threads: int) -> Path:
    """Where costs of this machine are kept, whether there are any or not."""
    assert isa in NEEDS, isa
    key = sha256(repr((FORMAT, processor_identity(), isa, threads)).encode()).hexdigest()[:16]
    return KernelCache.of(options).directory / "machine" / f"{key}.json"


def _within(figures: Mapping[str, object]) -> dict[str, Any]:
    """The figures that a field may have."""
    found = {}
    for name in (field.name for field in fields(MachineCosts)):
        value, (least, most) = figures.get(name), LIMITS[name]
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            found[name] = value
    return found


USUAL_COSTS = usual_costs("avx512", 2, {})
"""Of a machine that nobody has measured, the same wherever this runs."""
