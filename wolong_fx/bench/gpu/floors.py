"""What a step of a recurrence on one grid cannot be faster than: a barrier, and a read of its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from wolong_fx.bench.gpu.device import CpuDevice, Device
from wolong_fx.report.measure import Contest, measure_interleaved

FORMS = ("grid_barrier", "grid_barrier_by_one_thread")
LANES = 1024
WARPS = 4

Rounds = Callable[[int], None]
"""Launches so many rounds."""


def barrier_rounds(form: str, blocks: int, device: Device) -> Rounds:
    """Rounds in which so many blocks meet; in a dry run so many threads of Python."""
    if isinstance(device, CpuDevice):
        return lambda rounds: _meet_as_threads(blocks, rounds)
    from wolong_fx.bench.gpu import probes  # Triton's decorator looks for a driver

    kernel: Any = {FORMS[0]: probes.meet, FORMS[1]: probes.meet_by_one_thread}[form]
    word = torch.zeros(32, dtype=torch.int32, device=device.name).view(
        torch.uint32
    )  # alone in its cache line

    def launch(rounds: int) -> None:
        kernel[(blocks,)](word, rounds, G=blocks, num_warps=WARPS, launch_cooperative_grid=True)

    return launch


def read_rounds(count: int, blocks: int, device: Device) -> Rounds:
    """Rounds in which so many blocks together read `count` float32; in a dry run torch adds them up."""
    data = torch.randn(count, device=device.name)
    if isinstance(device, CpuDevice):
        return lambda rounds: [data.sum() for _ in range(rounds)].clear()
    from wolong_fx.bench.gpu import probes

    kernel: Any = probes.read_all
    sums = torch.empty(blocks, LANES, device=device.name)

    def launch(rounds: int) -> None:
        grid = {"num_warps": WARPS, "launch_cooperative_grid": True}
        kernel[(blocks,)](data, sums, rounds, COUNT=count, LANES=LANES, **grid)

    return launch


def microseconds_a_round(launches: dict[str, Rounds], rounds: int, samples: int, device: Device) -> Contest:
    """Of each, by the difference between a long and a short launch: launching itself costs neither.

    rounds: of the long launch, eight times those of the short one
    """
    short = rounds // 8
    calls = {}
    for name, launch in launches.items():
        calls[f"{name}, long"] = _bound(launch, rounds)
        calls[f"{name}, short"] = _bound(launch, short)
    taken = measure_interleaved(calls, samples, finish=device.finish).samples
    return Contest(
        {
            name: [
                1e3 * (long - brief) / (rounds - short)
                for long, brief in zip(taken[f"{name}, long"], taken[f"{name}, short"], strict=True)
            ]
            for name in launches
        }
    )


def _bound(launch: Rounds, rounds: int) -> Callable[[], None]:
    return lambda: launch(rounds)


def _meet_as_threads(blocks: int, rounds: int) -> None:
    barrier = threading.Barrier(blocks)

    def meet() -> None:
        for _ in range(rounds):
            barrier.wait()

    threads = [threading.Thread(target=meet) for _ in range(blocks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def floor_us(
    weights_bytes: int, barriers: Sequence[dict[str, Any]], reads: Sequence[dict[str, Any]]
) -> float | None:
    """The least microseconds of a step, over all grids that were measured.

    barriers: `blocks` and `us` by form; reads: `blocks`, `bytes` and `us`
    """
    barrier = {one["blocks"]: min(spread["median"] for spread in one["us"].values()) for one in barriers}
    sums = [
        barrier[read["blocks"]] + read["us"]["median"]
        for read in reads
        if read["bytes"] == weights_bytes and read["blocks"] in barrier
    ]
    return min(sums) if sums else None
