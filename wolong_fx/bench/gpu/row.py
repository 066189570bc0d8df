"""A row of contenders on a device: made one by one, then, alone on the machine, timed in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

import wolong_fx
from wolong_fx.bench.contenders import OURS
from wolong_fx.bench.gpu.apart import Line
from wolong_fx.bench.gpu.contenders import gpu_makers
from wolong_fx.bench.gpu.device import Device
from wolong_fx.bench.job import Contender, Job
from wolong_fx.bench.race import (
    Effort,
    Field,
    error_over_eagers,
    race,
    speedups,
    verdicts,
    what_we_did,
)
from wolong_fx.bench.table import Row
from wolong_fx.bench.verdict import judge_at_most

ERROR_OVER_EAGERS = 4.0
"""How far from float64 results may be, in eager's own errors: a wrong one is not fast."""


@dataclass(frozen=True)
class GpuRow(Row):
    """A row of the CPU's table or of its kind, on a device.

    limit_launches: kernels that a call of ours may launch; 0 = not stated
    """

    dtype: torch.dtype = torch.float32
    limit_launches: int = 0

    @property
    def contenders(self) -> tuple[str, ...]:
        """Everyone who is measured, each once, ours last: if its kernels fault, the others are there."""
        others = [name for goal in self.goals for name in goal.against]
        return tuple(dict.fromkeys((*others, *self.beside, OURS)))


@dataclass(frozen=True)
class Setting:
    """How a row is measured.

    line: to who waits for it
    without: contenders to leave out
    """

    device: Device
    effort: Effort
    line: Line
    without: Sequence[str] = ()
    dry: bool = False


def measure_race(row: GpuRow, setting: Setting) -> dict[str, Any]:
    """All that is known of a row, as JSON; times of a sample end when the device has finished it."""
    torch.manual_seed(0)
    device = setting.device
    job = Job.of(row.model(), row.batch, is_training=row.is_training, device=device.name, dtype=row.dtype)
    with nullcontext() if row.is_training else torch.no_grad():
        arrived = _gather(row, job, setting)
        setting.line.wait_for_turn()
        exact = job.exact_results()
        errors = {name: job.error(one, exact) for name, one in arrived.contenders.items()}
        contest = race(arrived.contenders, setting.effort, lambda line: None, device.finish)
        launches = {name: _launches(one, device) for name, one in arrived.contenders.items()}
    ours = arrived.contenders.get(OURS)
    over_eagers = error_over_eagers(errors)
    return {
        "title": row.title,
        "batch": row.batch,
        "dtype": str(row.dtype).removeprefix("torch."),
        "ms": contest.as_json(),
        "speedup": speedups(contest),
        "kernel_ms": None,
        "launches": launches,
        "missing": arrived.missing,
        "verdicts": [
            *verdicts(row, contest),
            judge_at_most(f"error <= {ERROR_OVER_EAGERS:g}x eager's", over_eagers, ERROR_OVER_EAGERS),
            *_launch_verdict(row, launches.get(OURS)),
        ],
        "error": errors,
        "error_over_eagers": over_eagers,
        "first_call_s": arrived.first_calls(setting.effort),
        **(what_we_did(ours, arrived.first_call_s[OURS]) | _gpu_kernels(ours) if ours else {}),
    }


def _gather(row: GpuRow, job: Job, setting: Setting) -> Field:
    arrived, makers = Field(), gpu_makers(setting.device, setting.without)
    for name in row.contenders:
        setting.line.doing(f"making {name}", name)
        arrived.admit(name, makers[name], job)
        setting.device.finish()  # a fault that it left behind ends this process, not the figures of others
    return arrived


def _gpu_kernels(ours: Contender) -> dict[str, Any]:
    """How each of our kernels is launched: its form, its grid, what it takes."""
    ledgers = wolong_fx.stats(ours.model).ledgers
    return {"gpu_kernels": [asdict(kernel) for ledger in ledgers for kernel in ledger.gpu_kernels]}


def _launches(contender: Contender, device: Device) -> dict[str, Any]:
    """What one call launches, or why that is not known."""
    try:
        return asdict(device.profile(contender.call))
    except RuntimeError as error:  # of a profiler that this system does not allow
        return {"unknown": str(error).strip()[:200]}


def _launch_verdict(row: GpuRow, launches: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if not row.limit_launches:
        return []
    found = (launches or {}).get("kernels") or None  # no call of ours launches none: then nothing was seen
    return [judge_at_most(f"kernels launched <= {row.limit_launches}", found, row.limit_launches)]
