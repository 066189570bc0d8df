"""The README is run: each block of its Python by itself, its commands as far as parsing them goes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from wolong_fx.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


@pytest.fixture
def compiled(monkeypatch):
    """(ledger, kernel launches) of each graph that reaches the pipeline."""
    import torch

    from wolong_fx import pipeline

    # Dynamo compiles a piece of code for at most eight models; other tests may have used nn.Sequential's up.
    torch.compiler.reset()
    graphs, compile_graph = [], pipeline.compile_graph

    def noting(*args, ledger, **kwargs):
        found = compile_graph(*args, ledger=ledger, **kwargs)
        graphs.append((ledger, getattr(found, "launches", 0)))
        return found

    monkeypatch.setattr(pipeline, "compile_graph", noting)
    return graphs


@pytest.mark.cpu
@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda text: text.splitlines()[-1])
def test_a_python_snippet_of_the_readme_runs_on_one_kernel_a_graph(snippet, compiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    assert compiled
    for ledger, launches in compiled:
        assert (launches, dict(ledger.fallbacks())) == (1, {})


def test_the_readme_opens_with_the_two_commands():
    assert commands()[:2] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("command", commands(), ids=shlex.join)
def test_a_command_of_the_readme_exists(command, tmp_path):
    program, *arguments = command
    match program:
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(arguments) <= set(targets)
        case "wolong":
            assert callable(build_parser().parse_args(arguments).run)
        case "python":
            assert arguments[:2] == ["-m", "wolong_fx.train"]
            composed = [sys.executable, *arguments, "--cfg", "job"]
            shown = subprocess.run(composed, cwd=tmp_path, capture_output=True, text=True)
            assert shown.returncode == 0, shown.stderr
        case _:
            pytest.fail(f"the README names {program!r}, which no test knows")
