from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wolong_fx.train.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig

WORDS = "the loop reads a line and the loop writes a line then it ends \n"

# What makes a run small, on the command line of the real program.
TINY = (
    "compile=eager model.hidden=16 model.embed=8 data.length=8 data.batch=4 data.validation=0.2 "
    "trainer.validate_batches=2 trainer.sample_bytes=8 trainer.tensorboard=false"
).split()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, and much slower beside another test on the same core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of 40 different lines."""
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{number * number} {WORDS}" for number in range(40)))
    return file


@pytest.fixture
def tiny(text: Path) -> TrainConfig:
    """The same small run as a config object."""
    trainer = TrainerConfig(
        steps=12,
        validate_every=4,
        validate_batches=2,
        checkpoint_every=4,
        progress=False,
        tensorboard=False,
        sample_bytes=8,
    )
    return TrainConfig(
        data=DataConfig(path=str(text), validation=0.2, length=8, batch=4),
        model=ModelConfig(embed=8, hidden=16),
        compile={"backend": "eager"},
        trainer=trainer,
    )


def changed(config: TrainConfig, group: str, **values: Any) -> TrainConfig:
    """The config with other values in one group."""
    return replace(config, **{group: replace(getattr(config, group), **values)})


def start(*arguments: str, text: Path, run_dir: Path) -> subprocess.Popen[str]:
    """The real program in a process of its own, one thread so that tests may run side by side."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "wolong_fx.train",
        *TINY,
        f"data.path={text}",
        f"run_dir={run_dir}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=text.parent,
    )
