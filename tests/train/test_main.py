"""The real program in processes of its own: exit codes, signals, kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import start

STEPS = 400
# Dropout draws from the generator every step: a resume that lost its state would show at once.
LONG = (
    f"trainer.steps={STEPS}",
    "trainer.checkpoint_every=50",
    "trainer.validate_every=70",
    "model.dropout=0.2",
)


def records(run_dir: Path) -> list[tuple[Any, ...]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["split"], r["loss"]) for r in map(json.loads, lines)]


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def undisturbed(text: Path, tmp_path: Path) -> list[tuple[Any, ...]]:
    process = start(*LONG, text=text, run_dir=tmp_path / "undisturbed")
    _, error = process.communicate()
    assert process.returncode == 0, error
    return records(tmp_path / "undisturbed")


def test_a_run_killed_twice_and_stopped_by_ctrl_c_has_the_losses_of_an_undisturbed_one(
    text, tmp_path, undisturbed
):
    run_dir = tmp_path / "disturbed"
    for step in (90, 180):  # both between two checkpoints: some steps are made twice
        process = start(*LONG, text=text, run_dir=run_dir)
        wait_for_step(process, run_dir, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(*LONG, text=text, run_dir=run_dir)
    wait_for_step(process, run_dir, 270)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "stopped by SIGINT after step" in output
    assert f"continue with run_dir={run_dir}" in output

    stopped_at = records(run_dir)[-1][0]
    assert 260 < stopped_at < STEPS
    assert (run_dir / f"step-{stopped_at:08d}.pt").exists()
    process = start(*LONG, text=text, run_dir=run_dir)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert f"resumed after step {stopped_at}" in output
    assert records(run_dir) == undisturbed
    assert [loss for _, split, loss in undisturbed if split == "train"][-1] < 4.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=foo", "Could not find 'model/foo'"),
        ("data.path=/nope", "no text at data.path='/nope'"),
    ],
)
def test_a_wrong_command_line_is_one_line_on_stderr_and_exit_code_2(text, tmp_path, override, message):
    process = start(override, text=text, run_dir=tmp_path / "run")
    output, error = process.communicate()
    assert process.returncode == 2
    assert output == ""
    assert message in error
    assert error.count("\n") == 1


def test_all_checkpoints_torn_is_one_line_and_exit_code_1(text, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "step-00000005.pt").write_bytes(b"torn")
    process = start(text=text, run_dir=run_dir)
    _, error = process.communicate()
    assert process.returncode == 1
    assert error.splitlines()[-1].startswith("wolong_fx.train: checkpoint")
    assert "Traceback" not in error
    assert (run_dir / "step-00000005.pt").read_bytes() == b"torn"
