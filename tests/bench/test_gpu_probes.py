"""What times barriers and reads on a GPU: compiled ahead of time, and counted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wolong_fx.bench.gpu.device import CpuDevice
from wolong_fx.bench.gpu.floors import microseconds_a_round

# In a process of its own, as every use of Triton's compiler.
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wolong_fx.bench.gpu import probes

MEET = {"word": "*u32", "rounds": "i32", "G": "constexpr"}
READ = {"data": "*fp32", "sums": "*fp32", "rounds": "i32", "COUNT": "constexpr", "LANES": "constexpr"}
found = {}
for name, signature in (("meet", MEET), ("meet_by_one_thread", MEET), ("read_all", READ)):
    constants = {"G": 132} if signature is MEET else {"COUNT": 1 << 18, "LANES": 1024}
    source = ASTSource(getattr(probes, name), signature, constants, {(0,): [["tt.divisibility", 16]]})
    options = {"num_warps": 4, "launch_cooperative_grid": True}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert built.asm["cubin"]
    found[name] = built.asm["ptx"]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def assembly():
    ended = subprocess.run([sys.executable, "-P", "-c", COMPILE], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_both_forms_of_the_barrier_arrive_and_poll_once_a_round(assembly):
    for name in ("meet", "meet_by_one_thread"):
        lines = assembly[name].splitlines()
        assert sum("acq_rel" in line for line in lines) == 1
        assert any(".acquire." in line for line in lines)


def test_reads_of_weights_are_wide_and_pass_the_l1_cache_by(assembly):
    loads = [line for line in assembly["read_all"].splitlines() if "ld.global" in line]
    assert loads and all(".cg." in line for line in loads)
    assert all("v4" in line for line in loads)


def test_a_round_is_the_difference_of_long_and_short_launches(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("wolong_fx.report.measure.perf_counter", lambda: clock[0])

    def launch(rounds):
        clock[0] += 50e-6 + 2e-6 * rounds  # launching costs what it may: it falls out

    contest = microseconds_a_round({"a": launch}, 800, 5, CpuDevice())
    assert contest.spread("a").median == pytest.approx(2.0)
