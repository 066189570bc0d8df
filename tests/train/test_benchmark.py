from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.cpu
def test_the_training_benchmark_finds_gradients_within_a_hundred_thousandth_of_eagers(text):
    sizes = ["model.hidden=24", "model.embed=16", "data.length=5", "data.batch=5", "data.validation=0.2"]
    command = [sys.executable, "-P", "benchmarks/train_step.py", "--json", "--rounds", "3", *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, f"data.path={text}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results["gradient_error"]["wolong"] <= 1e-5
    assert results["kernel_launches"] == {"forward": 1, "backward": 1}
    assert results["whole_step_ms"].keys() == {"eager", "wolong"}
