"""How many threads a kernel's team may have: by the processors this process may use, and the user's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_SYSTEM = Path("/")


def team_size(requested: int = 0) -> int:
    """Threads of a team: as many as asked for (0 = any number), at most the processors and torch's threads.

    A team larger than its processors waits at every barrier for a thread that the system has put aside:
    326 us a barrier with 4 threads on 2 processors, instead of 0.06.
    """
    allowed = min(available_processors(), torch.get_num_threads())
    return min(requested or allowed, allowed)


def available_processors(system: Path = _SYSTEM) -> int:
    """Whole processors this process may keep busy, by its affinity and the CPU quotas of its control groups.

    system: where /proc and /sys are, for tests
    """
    return max(1, min([_affinity(), *(int(quota) for quota in _quotas(system))]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(system: Path) -> Iterator[float]:
    """Processors granted by each control group around this process that sets a quota."""
    for controllers, group in _control_groups(system):
        if controllers == "":
            roots, read = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            roots, read = ("sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}"), _quota_v1
        else:
            continue
        for root in roots:
            # A container may see its own group's path but not its files there: the root of the mount is it.
            for directory in [*_upwards(group), Path()]:
                quota = read(system / root / directory)
                if quota is not None:
                    yield quota


def _control_groups(system: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of /proc/self/cgroup; version 2 has no controllers there."""
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        yield controllers, group


def _upwards(group: str) -> Iterator[Path]:
    """A group and those around it, without the root: a quota anywhere above binds too."""
    path = Path(group.strip("/"))
    while path.parts:
        yield path
        path = path.parent


def _quota_v2(directory: Path) -> float | None:
    """cpu.max holds "max 100000" or "quota period", in microseconds."""
    quota, _, period = _read(directory / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.strip().isdecimal() else None


def _quota_v1(directory: Path) -> float | None:
    """cpu.cfs_quota_us is -1 without a quota."""
    quota = _read(directory / "cpu.cfs_quota_us").strip()
    period = _read(directory / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
