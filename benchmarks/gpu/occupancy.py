"""Golden kernels on a GPU: blocks that fit, 10,000 launches with the same bits, and compute-sanitizer.

    python benchmarks/gpu/occupancy.py
    python benchmarks/gpu/occupancy.py --only repeats

Our formula for the blocks that a device holds must give the driver's own answer for every kernel: grids are
planned by it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import wolong_fx
from wolong_fx.bench.gpu.device import Device
from wolong_fx.bench.gpu.golden import (
    build_golden,
    count_differences,
    golden_call,
    golden_programs,
    occupancy_of,
)
from wolong_fx.bench.gpu.question import Question, Rows, ask
from wolong_fx.bench.gpu.row import Setting
from wolong_fx.bench.job import Job
from wolong_fx.bench.verdict import judge_at_least
from wolong_fx.testing.models import GateLSTM

LAUNCHES, DRY_LAUNCHES = 10_000, 3
WARPS, DRY_WARPS = (4, 8), (4,)
SHARED = (1 << 10, 17_000, 1 << 15, 50_000, 1 << 16, 100_000, 200_000)
"""Bytes that kernels are given although they need fewer: the formula is asked about those too."""

CHECKS = ("memcheck", "racecheck")
SANITIZER = "compute-sanitizer"
FOUND = 86  # exit status of compute-sanitizer where it found something; a fault has another


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """One of the rows."""
    setting.line.doing(name)
    if name in CHECKS:
        return _sanitize(name, setting)
    return {"formula": _formula, "repeats": _repeats}[name](setting)


def _formula(setting: Setting) -> dict[str, Any]:
    programs, warps = golden_programs(), DRY_WARPS if setting.dry else WARPS
    jobs = [(name, n) for n in warps for name in programs][: 1 if setting.dry else None]
    with ThreadPoolExecutor(4) as pool:  # compilers, each in a process of its own
        binaries = [*pool.map(lambda job: build_golden(programs[job[0]], job[1], setting.device), jobs)]
    kernels = [
        asdict(found)
        for (name, _), binary in zip(jobs, binaries, strict=True)
        for found in occupancy_of(name, binary, SHARED, setting.device)
    ]
    setting.line.wait_for_turn()
    equal = sum(kernel["formula"] == kernel["driver"] for kernel in kernels)
    return {"kernels": kernels, "share": equal / len(kernels)}


def _repeats(setting: Setting) -> dict[str, Any]:
    """By kernel, launches that differed from the first."""
    launches, found = DRY_LAUNCHES if setting.dry else LAUNCHES, {}
    calls = [*_calls(setting.device, setting.dry)]
    setting.line.wait_for_turn()
    for name, call in calls:
        setting.line.doing(f"launching {name}")
        found[name] = count_differences(call, launches)
    share = 1 - sum(found.values()) / (launches * len(found))
    return {"launches": launches, "differences": found, "share": share}


def _calls(device: Device, dry: bool) -> Iterator[tuple[str, Any]]:
    for name, program in golden_programs().items():
        yield name, golden_call(program, device)
    model = GateLSTM(8, 3) if dry else GateLSTM(256)
    job = Job.of(model.eval(), device=device.name)
    results = job.contender(wolong_fx.optimize(job.model)).results
    assert results is not None
    yield f"LSTM-{model.steps}", torch.no_grad()(results)


def _sanitize(check: str, setting: Setting) -> dict[str, Any]:
    """What compute-sanitizer says of a process that launches every golden kernel."""
    program = shutil.which(SANITIZER) or shutil.which(SANITIZER, path="/usr/local/cuda/bin")
    if not program or setting.dry:
        return {"skipped": f"{SANITIZER} is not on PATH" if not program else "a dry run", "share": None}
    launches = [sys.executable, "-P", "-m", "wolong_fx.bench.gpu.golden", "--launches", "2"]
    command = [program, "--tool", check, "--error-exitcode", str(FOUND), *launches]
    setting.line.wait_for_turn()
    ran = subprocess.run(command, capture_output=True, text=True)
    said = (ran.stdout + ran.stderr).splitlines()
    summary = next((line for line in reversed(said) if re.search(r"SUMMARY", line)), "")
    if ran.returncode not in (0, FOUND):
        return {"skipped": f"it ended with status {ran.returncode}", "said": said[-20:], "share": None}
    is_clean = ran.returncode == 0
    return {"summary": summary, "said": [] if is_clean else said[-60:], "share": float(is_clean)}


def verdicts(rows: Rows, folder: Path) -> list[dict[str, Any]]:
    """A goal a row: nothing less than all."""
    return [judge_at_least(f"{GOALS[name]} >= 1", row["share"], 1.0) for name, row in rows.items()]


GOALS = {
    "formula": "share of kernels for which the formula is right",
    "repeats": "share of launches with the first's bits",
    "memcheck": "clean under memcheck",
    "racecheck": "clean under racecheck",
}


def lines(row: Mapping[str, Any]) -> list[str]:
    """What stands out in a row."""
    shown = ["", f"{row['row']}: {GOALS[row['row']]}"]
    if "skipped" in row:
        return [*shown, f"  skipped: {row['skipped']}"]
    for kernel in row.get("kernels", ()):
        if kernel["formula"] != kernel["driver"]:
            shown.append(
                f"  {kernel['kernel']}, {kernel['warps']} warps, {kernel['shared_bytes']} bytes shared:"
            )
            shown[-1] += f" formula {kernel['formula']}, driver {kernel['driver']}"
    for name, count in row.get("differences", {}).items():
        shown.append(f"  {name:<14} {count} of {row['launches']} launches differ from the first")
    return [*shown, *(f"  {line}" for line in row.get("said", ())), f"  {row.get('summary', '')}".rstrip()]


QUESTION = Question(
    "occupancy",
    "golden kernels on a GPU: blocks that fit, launches with the same bits, compute-sanitizer",
    lambda dry: tuple(GOALS),
    measure,
    lines,
    verdicts,
)

if __name__ == "__main__":
    sys.exit(ask(QUESTION, __file__))
