"""What is concluded from figures of a GPU: floors, means, goals."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from wolong_fx.bench.contenders import EAGER, INDUCTOR
from wolong_fx.bench.gpu.contenders import EAGER_GRAPH
from wolong_fx.bench.gpu.floors import floor_us

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


def script(name):
    spec = spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def us(median):
    return {"low": median, "median": median, "high": median}


BARRIERS = [
    {"blocks": blocks, "us": {"one": us(cost), "other": us(cost + 1)}}
    for blocks, cost in ((8, 1.0), (64, 3.0))
]
READS = [
    {"blocks": 8, "bytes": 1000, "us": us(5.0)},
    {"blocks": 64, "bytes": 1000, "us": us(1.0)},
    {"blocks": 64, "bytes": 2000, "us": us(2.0)},
    {"blocks": 128, "bytes": 1000, "us": us(0.1)},
]


def test_a_steps_floor_is_the_best_grids_cheaper_barrier_and_its_read():
    assert floor_us(1000, BARRIERS, READS) == 4.0
    assert floor_us(2000, BARRIERS, READS) == 5.0
    assert floor_us(3000, BARRIERS, READS) is None


def test_the_suite_is_judged_by_its_mean_over_cuda_graphs_and_by_its_slowest_row():
    def row(graph, eager):
        return {"speedup": {name: us(ratio) for name, ratio in ((EAGER_GRAPH, graph), (EAGER, eager))}}

    found = script("launch_bound").verdicts({"a": row(1.0, 10.0), "b": row(4.0, 40.0)}, FOLDER)
    graphs, eager, inductor, slowest = found
    assert (graphs["found"], graphs["is_met"]) == (pytest.approx(2.0), True)
    assert eager["found"] == pytest.approx(20.0)
    assert (inductor["found"], INDUCTOR in inductor["goal"]) == (None, True)
    assert (slowest["found"], slowest["is_met"]) == (1.0, True)


def test_the_suite_is_the_launch_bound_rows_of_the_cpus_table():
    suite = script("launch_bound").SUITE
    assert {"lstm80-b1-h256", "dlrm-26-b1", "nas-6x8x8", "decode-d256-l6-c128"} <= suite.keys()
    assert all(row.batch == 1 and not row.is_training for row in suite.values())


def test_the_lstms_are_all_sizes_and_the_goals_are_of_one():
    rows = script("lstm80").rows(dry=False)
    assert len(rows) == 12
    assert next(iter(rows)) == "lstm80-b1-h256-float32"
    assert [name for name, row in rows.items() if row.goals] == ["lstm80-b1-h256-float32"]
    assert all(row.limit_launches == 1 for row in rows.values())


def test_how_near_an_lstm_is_to_its_floor_is_told_when_that_was_measured(tmp_path):
    lstm80 = script("lstm80")
    row = {"row": "a", "steps": 80, "weights_bytes": 1000, "ms": {"optimize()": us(0.64)}}
    assert lstm80.verdicts({"a": row}, tmp_path) == []
    found = [{"row": "barrier", "grids": BARRIERS}, {"row": "weights", "grids": READS}]
    (tmp_path / "barrier.json").write_text(json.dumps({"rows": found}))
    (verdict,) = lstm80.verdicts({"a": row}, tmp_path)
    assert verdict["floor_us"] == 320.0
    assert (verdict["found"], verdict["is_met"]) == (pytest.approx(2.0), True)


def test_every_test_that_needs_a_gpu_is_run():
    tests = FOLDER.parents[1] / "tests"
    files = [f for f in tests.rglob("test_*.py") if re.search(r"\bmark\.gpu\b", f.read_text())]
    folders = [FOLDER.parents[1] / folder for folder in script("gpu_tests").FOLDERS]
    assert files and all(any(folder in file.parents for folder in folders) for file in files)


def test_rows_that_compare_with_others_time_ours_last():
    for name in ("lstm80", "train_step"):
        for row in script(name).rows(dry=False).values():
            assert row.contenders[-1] == "optimize()"
            assert {EAGER, EAGER_GRAPH, INDUCTOR, "inductor, CUDA graphs", "nn.LSTM"} < {*row.contenders}
