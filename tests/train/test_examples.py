from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from wolong_fx.train.config import leave_compile_open, read_config
from wolong_fx.train.doors import check_compile_config

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = re.findall(
    r"^python -m wolong_fx.train (.*?) *(?:#.*)?$", (EXAMPLES / "README.md").read_text(), re.M
)


def run(example: str) -> str:
    command = [sys.executable, "-P", str(EXAMPLES / example)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cpu
def test_a_cell_of_ones_own_trains_to_the_same_losses():
    output = run("custom_cell.py")
    assert "2 graphs, 2 kernel launches a call" in output
    assert float(output.split()[-1]) < 1e-3


@pytest.mark.cpu
def test_the_ledger_says_what_was_left_to_torch_and_at_which_line():
    output = run("why_eager.py")
    sort = 1 + (EXAMPLES / "why_eager.py").read_text().splitlines().index(
        "        middle = torch.sort(scores, dim=-1).values[:, 8:9]"
    )
    assert re.search(rf"sort.* fell-back at .*why_eager.py:{sort}: ", output)
    assert "2 kernel launches a call" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_examples_is_a_right_one(command):
    leave_compile_open()
    words = [word for word in shlex.split(command) if not word.startswith("-") and word != "job"]
    with initialize_config_module("wolong_fx.configs", version_base="1.3"):
        for choice in (0, 1):
            overrides = [_choose(word, choice) for word in words]
            check_compile_config(read_config(compose("train", overrides=overrides)).compile)


def _choose(word: str, choice: int) -> str:
    """One member of a sweep `key=a,b`."""
    key, _, value = word.partition("=")
    several = value.split(",")
    return word if value.startswith("[") else f"{key}={several[choice % len(several)]}"
