"""The parts of a first call, and what the goals say of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wolong_fx import Stats
from wolong_fx.bench.compile_time import AOT_AND_COMPILE, growth, split_of, verdicts
from wolong_fx.ledger import Ledger

ROOT = Path(__file__).parents[2]


def test_what_is_neither_aots_nor_ours_is_dynamos():
    capture = Ledger(timings={AOT_AND_COMPILE: 5.0, "reroll": 0.5})
    graphs = [Ledger(timings={"lower": 1.0, "build": 0.25}), Ledger(timings={"lower": 0.75})]
    split = split_of(Stats(2, 2, capture.fallbacks(), [capture, *graphs]), first_call_s=10.0)
    assert split["by_step"] == {"lower": 1.75, "reroll": 0.5, "build": 0.25}
    assert (split["dynamo"], split["aot"], split["ours"], split["g++"]) == (4.5, 3.0, 2.5, 0.25)


def call(steps, ours, *, kind="forward", cache="cold", first_call=4.0):
    return {"kind": kind, "steps": steps, "cache": cache, "ours": ours, "first_call": first_call}


def test_growth_is_of_our_part_with_empty_caches():
    assert growth([call(20, 1.0), call(80, 1.5), call(320, 3.0), call(320, 0.1, cache="warm")]) == 3.0


def test_goals_are_judged_by_80_steps_and_by_the_growth_over_all():
    found = verdicts([call(20, 1.0), call(80, 2.5, first_call=4.0), call(80, 0.2, cache="warm")])
    assert [(v["goal"], v["is_met"]) for v in found] == [
        ("forward, cold cache, ours <= 2 s", False),
        ("forward, cold cache, first_call <= 5 s", True),
        ("forward, warm cache, ours <= 0.3 s", True),
        ("forward, our part within 1.5x over all numbers of steps", False),
    ]
    assert found[0]["share"] == pytest.approx(0.8)


def test_one_number_of_steps_tells_nothing_of_growth():
    assert [v["goal"] for v in verdicts([call(80, 1.0)])] == [
        "forward, cold cache, ours <= 2 s",
        "forward, cold cache, first_call <= 5 s",
    ]


@pytest.mark.cpu
@pytest.mark.slow
def test_the_benchmark_makes_each_first_call_in_a_process_of_its_own():
    command = [
        sys.executable,
        "-P",
        "benchmarks/compile_time.py",
        "--steps",
        "2",
        "--kind",
        "forward",
        "--json",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    cold, warm = json.loads(run.stdout)["first_calls"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    assert 0 < warm["g++"] < cold["g++"]
    assert cold["first_call"] == pytest.approx(cold["dynamo"] + cold["aot"] + cold["ours"])
