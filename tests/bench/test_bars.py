"""`wolong bench lstm80`."""

from __future__ import annotations

import json

import pytest

from wolong_fx.bench.bars import BARS, BATCHED, FUSED, PACKING_AND_PLACEMENT, PLACED, bars_screen
from wolong_fx.cli import main
from wolong_fx.pipeline import step_names

SMALL = ["bench", "lstm80", "--steps", "3", "--hidden", "16", "--rounds", "2"]


@pytest.mark.cpu
def test_the_bars_are_measured_and_kept_figures_show_the_same_bars(tmp_path, capsys):
    file = tmp_path / "lstm80.json"
    assert main([*SMALL, "--without", "inductor", "--write", str(file)]) == 0
    screen = capsys.readouterr().out
    results = json.loads(file.read_text())
    assert results["ms"].keys() == BARS.keys() - {"inductor"}
    assert all(error < 1e-6 for error in results["error"].values())
    assert results["machine"]["torch"]
    assert main(["bench", "lstm80", "--show", str(file)]) == 0
    assert capsys.readouterr().out == screen
    assert [line.split("  ")[1] for line in screen.splitlines()[1:]] == [*results["ms"]]


def test_a_bar_is_as_long_as_its_time_and_tells_what_it_gains_over_eager():
    ms = {
        name: {"low": m, "median": m, "high": m}
        for name, m in (("eager", 8.0), (BATCHED, 4.0), (PLACED, 1.0))
    }
    results = {"steps": 80, "batch": 1, "hidden": 256, "ms": ms, "missing": {"inductor": "it is out"}}
    title, eager, batched, placed, missing = bars_screen(results).splitlines()
    assert title.startswith("LSTM, 80 steps, 640 matmuls, batch 1, hidden 256")
    assert [line.count("█") for line in (eager, batched, placed)] == [40, 20, 5]
    assert "4.000 ms    2.0x" in batched
    assert missing == "  inductor: missing, it is out"


def test_bars_are_ascii_where_the_output_is(monkeypatch):
    class Plain:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Plain())
    ms = {"eager": {"low": 1.0, "median": 1.0, "high": 1.0}}
    screen = bars_screen({"steps": 1, "batch": 1, "hidden": 1, "ms": ms, "missing": {}})
    assert screen.isascii()
    assert "#" * 40 in screen


def test_the_steps_that_a_bar_goes_without_are_steps():
    assert set(PACKING_AND_PLACEMENT) <= set(step_names())
    assert [*BARS][:4] == ["eager", BATCHED, FUSED, PLACED]


def test_a_bar_that_is_none_is_a_wrong_call(capsys):
    assert main([*SMALL, "--without", "indcutor"]) == 2
    assert "'indcutor'" in capsys.readouterr().err
