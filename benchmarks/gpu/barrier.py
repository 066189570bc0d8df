"""What a grid barrier costs against grid size, in both forms; and a read of an LSTM's weights from L2.

    python benchmarks/gpu/barrier.py
    python benchmarks/gpu/barrier.py --only weights --quick

Microseconds a round, from the difference between launches of many rounds and of few.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wolong_fx.bench.gpu.device import Device
from wolong_fx.bench.gpu.floors import (
    FORMS,
    Rounds,
    barrier_rounds,
    microseconds_a_round,
    read_rounds,
)
from wolong_fx.bench.gpu.question import Question, ask
from wolong_fx.bench.gpu.row import Setting
from wolong_fx.report.measure import Contest

ROUNDS, DRY_ROUNDS = 4000, 16
HIDDEN, DRY_HIDDEN = (128, 256, 512), (8, 16)
BYTES = {"float32": 4, "bfloat16": 2}
GATES = 4
FEWEST_READERS = 16
"""Blocks: fewer take so long to read all weights that no recurrence would run on them."""


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """One of the rows."""
    setting.line.doing("compiling")
    taken = list({"barrier": _barriers, "weights": _reads}[name](setting))
    return {"rounds": _rounds(setting), "grids": taken}


def _barriers(setting: Setting) -> Iterator[dict[str, Any]]:
    """By grid size, microseconds of both forms."""
    device = setting.device
    grids = grid_sizes(device, setting.dry)
    launches = {g: {form: barrier_rounds(form, g, device) for form in FORMS} for g in grids}
    _get_ready(setting, [launch for of_grid in launches.values() for launch in of_grid.values()])
    for blocks in grids:
        contest = _measure(launches[blocks], setting)
        yield {"blocks": blocks, "us": {form: asdict(contest.spread(form)) for form in FORMS}}


def _reads(setting: Setting) -> Iterator[dict[str, Any]]:
    """By size of the weights and of the grid, microseconds of a read of all of them, and GB a second."""
    sizes = sorted({weights_bytes(h, d) for h in (DRY_HIDDEN if setting.dry else HIDDEN) for d in BYTES})
    grids = [g for g in grid_sizes(setting.device, setting.dry) if setting.dry or g >= FEWEST_READERS]
    launches = {
        size: {str(g): read_rounds(size // BYTES["float32"], g, setting.device) for g in grids}
        for size in sizes
    }
    _get_ready(setting, [launch for of_size in launches.values() for launch in of_size.values()])
    for size in sizes:
        contest = _measure(launches[size], setting)
        for blocks in grids:
            us = asdict(contest.spread(str(blocks)))
            yield {"blocks": blocks, "bytes": size, "us": us, "gb_s": size / us["median"] / 1e3}


def _get_ready(setting: Setting, launches: Sequence[Rounds]) -> None:
    for launch in launches:
        launch(1)
    setting.device.finish()
    setting.line.wait_for_turn()


def _measure(launches: dict[str, Rounds], setting: Setting) -> Contest:
    return microseconds_a_round(launches, _rounds(setting), setting.effort.rounds, setting.device)


def _rounds(setting: Setting) -> int:
    return DRY_ROUNDS if setting.dry else ROUNDS


def weights_bytes(hidden: int, dtype: str) -> int:
    """Of the recurrent matrices of an LSTM, which every step reads."""
    return GATES * hidden * hidden * BYTES[dtype]


def grid_sizes(device: Device, dry: bool) -> list[int]:
    """Powers of two below the number of multiprocessors, then one block on each, and two."""
    whole = int(str(device.describe()["multiprocessors"]))
    small = [1 << n for n in range(whole.bit_length()) if 1 << n < whole]
    return [*small, whole] if dry else [*small, whole, 2 * whole]


def lines(row: Mapping[str, Any]) -> list[str]:
    """Of a row, a grid a line."""
    shown = ["", f"{row['row']}: microseconds a round, median and quartiles"]
    for grid in row["grids"]:
        by_name = grid["us"] if row["row"] == "barrier" else {f"{grid['bytes'] / 1e6:.2f} MB": grid["us"]}
        for name, us in by_name.items():
            spread = f"{us['median']:8.3f} us ({us['low']:.3f} to {us['high']:.3f})"
            speed = f"  {grid['gb_s']:7.0f} GB/s" if "gb_s" in grid else ""
            shown.append(f"  {grid['blocks']:4} blocks  {name:<28} {spread}{speed}")
    return shown


QUESTION = Question(
    "barrier",
    "grid barriers, and reads of weights from L2, against grid size",
    lambda dry: ("barrier", "weights"),
    measure,
    lines,
)

if __name__ == "__main__":
    sys.exit(ask(QUESTION, __file__))
