"""All-reduce of every size against gloo, and against what the memory of the machine allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from wolong_fx.bench.verdict import judge_at_least
from wolong_fx.report.measure import Contest
from wolong_fx.testing.ranks import Peers, ranks_of

ARENA, OWN, GLOO, LIMIT = "wolong, in the arena", "wolong, own memory", "gloo", "memory limit"

KILOBYTE, MEGABYTE = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Size:
    """What is reduced, and what is asked of it.

    goals: times faster than gloo, by the number of ranks
    share: of the bandwidth that the ranks' processors have together
    """

    bytes: int
    goals: Mapping[int, float]
    share: float = 0.0


SIZES = (
    Size(4, {2: 40, 4: 1}),
    Size(4 * KILOBYTE, {2: 40, 4: 1}),
    Size(64 * KILOBYTE, {2: 40, 4: 1}),
    Size(MEGABYTE, {2: 40, 4: 1}),
    Size(16 * MEGABYTE, {2: 25, 4: 5}),
    Size(64 * MEGABYTE, {2: 10, 4: 5}, share=0.85),
    Size(256 * MEGABYTE, {2: 10, 4: 5}, share=0.85),
)


def measure_all_reduce(
    ranks: int, samples: int, progress: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """A row for each size: milliseconds of each contender, ratios, verdicts. Ranks are pinned."""
    rows = []
    with ranks_of(ranks) as group:
        group.run(_pin)
        for size in SIZES:
            progress(f"all-reduce of {size.bytes} bytes, {ranks} ranks")
            rows.append(_row(size, ranks, group.run(_times, size.bytes, samples)[0]))
    return rows


def _pin(peers: Peers) -> None:
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[peers.rank % len(processors)]})


def _times(peers: Peers, size: int, samples: int) -> dict[str, list[float]]:
    """Milliseconds of a call, in turn, all ranks beginning together."""
    elements = size // 4
    in_arena = _in_arena(elements)
    own, for_gloo, for_limit = (torch.zeros(elements) for _ in range(3))
    # An all-reduce of S bytes reads and writes S bytes a rank, whatever their number is: so does this.
    contenders: dict[str, Callable[[], object]] = {
        ARENA: lambda: dist.all_reduce(in_arena),
        OWN: lambda: dist.all_reduce(own),
        GLOO: lambda: dist.all_reduce(for_gloo, group=peers.gloo),
        LIMIT: lambda: for_limit.mul_(1.0),
    }
    repeats = max(1, min(20, MEGABYTE // size))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for sample in range(samples + 1):
        for name, call in contenders.items():
            dist.barrier()
            start = perf_counter()
            for _ in range(repeats):
                call()
            if sample:  # the first touches memory
                found[name].append((perf_counter() - start) / repeats * 1e3)
    return found


def _in_arena(elements: int) -> torch.Tensor:
    backend: Any = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    return backend.allocate_tensor(elements, dtype=torch.float32, device=torch.device("cpu")).zero_()


def _row(size: Size, ranks: int, times: Mapping[str, list[float]]) -> dict[str, Any]:
    contest = Contest(times)
    over_gloo, share = contest.ratio(GLOO, ARENA), contest.ratio(LIMIT, ARENA)
    verdicts = []
    if ranks in size.goals:
        goal = size.goals[ranks]
        verdicts.append(judge_at_least(f"gloo >= {goal:g}x", over_gloo.median, goal))
    if size.share and ranks == 2:
        verdicts.append(judge_at_least(f"memory limit >= {size.share:.0%}", share.median, size.share))
    return {
        "bytes": size.bytes,
        "ranks": ranks,
        "ms": contest.as_json(),
        "over_gloo": asdict(over_gloo),
        "share_of_limit": asdict(share),
        "verdicts": verdicts,
    }
