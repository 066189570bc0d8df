from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from wolong_fx.options import Options
from wolong_fx.runtime import KernelImage
from wolong_fx.toolchain import notices


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Options with a cache that starts empty."""
    return Options(cache_dir=str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_said", set())


class CountingCompiler(NamedTuple):
    """A CXX that writes a line a run and then is g++."""

    script: Path
    log: Path

    def runs(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingCompiler:
    real = shutil.which(os.environ.get("CXX", "g++"))
    counting = CountingCompiler(tmp_path / "counting-g++", tmp_path / "runs")
    counting.script.write_text(f'#!/bin/sh\necho run >> "{counting.log}"\nexec {real} "$@"\n')
    counting.script.chmod(0o755)
    monkeypatch.setenv("CXX", str(counting.script))
    return counting


@pytest.fixture
def unseen(tmp_path: Path) -> Callable[[KernelImage], KernelImage]:
    """Makes of an image one that no test and no process has built before."""
    return lambda image: replace(image, source=f"// {tmp_path} {os.getpid()}\n{image.source}")


class Child:
    """A real process, forked from this one, that runs a function and exits with 0 if it returns True."""

    def __init__(self, work: Callable[[], bool]) -> None:
        self.process: BaseProcess = get_context("fork").Process(target=self._run, args=(work,))
        self.process.start()

    @staticmethod
    def _run(work: Callable[[], bool]) -> None:
        os._exit(0 if work() else 1)

    def kill(self) -> None:
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def succeeds(self, seconds: float = 60) -> bool:
        """Whether the function returned True in time."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
        return self.process.exitcode == 0


@pytest.fixture
def child() -> type[Child]:
    return Child
