from __future__ import annotations

import argparse
import json
import time

import pytest

from wolong_fx.report.measure import (
    Contest,
    Spread,
    add_output_arguments,
    machine,
    measure_interleaved,
    processor_name,
    publish,
)


def test_contenders_are_measured_in_turn():
    turns: list[str] = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    contest = measure_interleaved(calls, rounds=3)
    assert turns[-6:] == [*"ababab"]
    assert {name: len(samples) for name, samples in contest.samples.items()} == {"a": 3, "b": 3}


def test_milliseconds_are_milliseconds_however_often_a_fast_call_is_repeated():
    contest = measure_interleaved({"nap": lambda: time.sleep(0.002)}, rounds=3, sample_ms=10)
    assert 2.0 <= contest.spread("nap").low < 20.0


def test_ratios_are_paired_so_that_drift_cancels():
    contest = Contest({"slow": [2.0, 20.0, 200.0], "fast": [1.0, 10.0, 100.0]})
    assert contest.ratio("slow", "fast") == Spread(2.0, 2.0, 2.0)


def test_the_spread_is_made_of_quartiles():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread(2.0, 4.0, 6.0).noise == pytest.approx(1.0)


def test_the_processor_is_named(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id : X\nmodel name\t: Some CPU: 3 GHz\nmodel name\t: other\n")
    assert processor_name(info) == "Some CPU: 3 GHz"
    assert processor_name(tmp_path / "missing")


def test_results_go_to_the_screen_and_to_a_file(tmp_path, capsys):
    file = tmp_path / "new" / "results.json"
    parser = argparse.ArgumentParser()
    add_output_arguments(parser)
    results = machine() | Contest({"a": [1.0, 2.0, 3.0]}).as_json()
    publish(results, parser.parse_args(["--write", str(file)]), lambda r: f"a: {r['a']['median']}")
    assert capsys.readouterr().out == "a: 2.0\n"
    kept = json.loads(file.read_text())
    assert kept["a"] == {"low": 1.5, "median": 2.0, "high": 2.5, "samples": 3}
    assert kept["processors"] >= 1


def test_machines_get_one_json_object(capsys):
    parser = argparse.ArgumentParser()
    add_output_arguments(parser)
    publish({"a": 1}, parser.parse_args(["--json"]), lambda r: "for a person")
    assert json.loads(capsys.readouterr().out) == {"a": 1}
