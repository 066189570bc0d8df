"""The GPU's benchmarks as commands, dry: every step of them on the CPU."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from wolong_fx.bench.gpu.question import ask

ROOT = Path(__file__).parents[2]
INDUCTORS = ("--without", "inductor", "inductor, CUDA graphs")


def run(name, *arguments, timeout=120):
    command = [sys.executable, "-P", f"benchmarks/gpu/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def ask_here(capsys, monkeypatch):
    """A question asked by this process, which saves an import of torch; its rows have their own."""
    monkeypatch.chdir(ROOT)

    def ask_it(name, *arguments):
        file = str(ROOT / "benchmarks" / "gpu" / f"{name}.py")
        question = runpy.run_path(file)["QUESTION"]
        status = ask(question, file, [*map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return ask_it


def test_without_a_gpu_there_is_one_line_and_a_status_that_says_so(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended = run("all")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert "no GPU to measure on" in line and "--dry" in line
    assert not ended.stdout


def test_a_question_asked_without_a_gpu_says_so_too(ask_here, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, out, err = ask_here("lstm80")
    assert (status, out) == (3, "")
    assert err.startswith("lstm80.py: no GPU to measure on")


def test_a_row_that_there_is_not_is_a_wrong_call(ask_here, tmp_path):
    status, _, err = ask_here("barrier", "--dry", "--only", "barriers", "--write", tmp_path)
    assert status == 2
    assert "there are barrier, weights" in err


def test_rows_are_added_to_the_file_and_only_missing_ones_are_measured_again(ask_here, tmp_path):
    common = ("--dry", "--quick", "--write", tmp_path)
    assert ask_here("barrier", "--only", "weights", *common)[0] == 0
    first = json.loads((tmp_path / "barrier.json").read_text())
    assert [row["row"] for row in first["rows"]] == ["weights"]
    _, out, _ = ask_here("barrier", "--missing", "--json", *common)
    both = json.loads(out)
    assert both == json.loads((tmp_path / "barrier.json").read_text())
    assert both["rows"][0] == first["rows"][0]
    barrier = both["rows"][1]
    assert [grid["blocks"] for grid in barrier["grids"]] == [1, 2, 4]
    assert all(
        us.keys() == {"low", "median", "high"} for grid in barrier["grids"] for us in grid["us"].values()
    )
    assert both["is_dry"] and both["device"]["triton"] and both["machine"]["torch"]


@pytest.mark.cpu
def test_a_row_has_everyones_times_errors_and_launches(ask_here, tmp_path):
    row = "lstm3-b1-h8-float32"
    status, out, _ = ask_here("lstm80", "--dry", "--quick", "--only", row, "--write", tmp_path, *INDUCTORS)
    assert status == 0, out
    (found,) = json.loads((tmp_path / "lstm80.json").read_text())["rows"]
    assert found["ms"].keys() == {"eager", "eager, CUDA graph", "nn.LSTM", "optimize()"}
    assert {spread["samples"] for spread in found["ms"].values()} == {30}
    assert found["launches"]["eager"]["kernels"] > 3
    assert found["missing"].keys() == set(INDUCTORS[1:])
    assert found["error"]["optimize()"] < 1e-6
    assert found["weights_bytes"] == 4 * 8 * 8 * 4
    assert "LSTM-3 per gate, batch 1, hidden 8" in out


@pytest.mark.cpu
@pytest.mark.slow
def test_all_questions_answer_in_one_command(tmp_path):
    ended = run("all", "--dry", "--quick", "--write", tmp_path, *INDUCTORS, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in ("barrier", "lstm80", "occupancy", "launch_bound", "train_step", "gpu_tests"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["rows"] and not any("failed" in row for row in found["rows"])
    assert "== goals" in ended.stdout
