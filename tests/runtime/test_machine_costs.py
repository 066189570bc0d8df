from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from wolong_fx.options import Options
from wolong_fx.runtime.calibrate import FIGURES, calibrate
from wolong_fx.runtime.machine_costs import (
    LIMITS,
    MachineCosts,
    checked_costs,
    costs_file,
    find_cache_bytes,
    keep_costs,
    machine_costs,
    usual_costs,
)
from wolong_fx.toolchain.isa import NEEDS

USUAL = usual_costs("portable", 2, {})


def test_what_is_kept_is_what_is_read(options):
    costs = replace(USUAL, barrier=1.25e-7, l2_bytes=512 << 10)
    keep_costs(costs, options, "portable", 2)
    assert machine_costs(options, "portable", 2).as_json() == costs.as_json()


def test_costs_of_another_isa_or_team_are_others(options):
    keep_costs(replace(USUAL, barrier=1.25e-7), options, "portable", 2)
    assert machine_costs(options, "portable", 3).barrier == USUAL.barrier
    assert len({costs_file(options, isa, n) for isa in NEEDS for n in (1, 2)}) == 2 * len(NEEDS)


def test_without_a_measurement_the_usual_costs_are_taken_without_a_word(options, caplog):
    assert machine_costs(options, "portable", 2) == usual_costs("portable", 2)
    assert caplog.messages == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"costs": 3}', '{"isa": "avx2"}', "\x00\xff"])
def test_a_damaged_file_is_said_once_and_the_usual_costs_are_taken(options, caplog, content):
    path = costs_file(options, "portable", 2)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with caplog.at_level(logging.WARNING, "wolong_fx"):
        found = [machine_costs(options, "portable", 2) for _ in range(2)]
    assert found == [usual_costs("portable", 2)] * 2
    assert len(caplog.messages) == 1
    assert "wolong calibrate" in caplog.messages[0]


@pytest.mark.parametrize("wrong", [0, -1, 1e9, float("nan"), float("inf"), "fast", None, True])
def test_a_figure_that_cannot_be_true_is_replaced_by_the_usual_one(wrong):
    assert checked_costs({"barrier": wrong, "cycle": 3e-10}, USUAL) == replace(USUAL, cycle=3e-10)


def test_no_team_reads_slower_than_one_core():
    costs = checked_costs({"l3_rate": 2e11, "team_l3_rate": 1e10, "team_dram_rate": 1e9}, USUAL)
    assert (costs.team_l3_rate, costs.team_dram_rate) == (2e11, USUAL.dram_rate)


@pytest.mark.parametrize("isa", NEEDS)
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_usual_costs_are_within_the_limits_of_every_machine(isa, threads):
    costs = asdict(usual_costs(isa, threads, {}))
    assert {name for name, value in costs.items() if not LIMITS[name][0] <= value <= LIMITS[name][1]} == set()


def test_cache_sizes_are_read_as_linux_tells_them(tmp_path):
    told = [
        ("1", "Data", "48K"),
        ("1", "Instruction", "32K"),
        ("2", "Unified", "1024K"),
        ("4", "Unified", "9M"),
    ]
    for number, (level, kind, size) in enumerate(told):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (index / name).write_text(value + "\n")
    assert find_cache_bytes(tmp_path) == {"l1_bytes": 48 << 10, "l2_bytes": 1 << 20}
    assert find_cache_bytes(tmp_path / "nowhere") == {}


def test_calibration_measures_every_figure_in_two_seconds_of_a_processor_and_keeps_it(options):
    start = sum(os.times()[:4])
    costs, path = calibrate(options)
    took = sum(os.times()[:4]) - start  # of the compiler too, whatever else the machine does
    kept = json.loads(path.read_text())
    assert kept["costs"] == costs.as_json()
    assert machine_costs(options, kept["isa"], kept["threads"]).as_json() == costs.as_json()
    assert took < 2
    assert costs.l1_rate > costs.dram_rate
    assert costs.fma_rate > costs.special_rate


def test_figures_are_fields_and_those_not_measured_are_usual(options, monkeypatch):
    assert set(FIGURES) <= {name for name in LIMITS if not name.endswith("_bytes")}
    monkeypatch.setattr("wolong_fx.runtime.calibrate._measure", lambda *_: dict.fromkeys(FIGURES, 0.0))
    costs, path = calibrate(options)
    kept = json.loads(path.read_text())
    assert costs == usual_costs(kept["isa"], kept["threads"])


def test_costs_that_cannot_be_kept_are_an_error_of_the_command(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(OSError):
        keep_costs(USUAL, Options(cache_dir=str(in_the_way)), "portable", 2)
    assert machine_costs(Options(cache_dir=str(in_the_way)), "portable", 2) == usual_costs("portable", 2)


def test_no_half_written_file_is_left_or_read(options, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        keep_costs(USUAL, options, "portable", 2)
    assert list(Path(options.cache_dir, "machine").iterdir()) == []


def test_a_command_killed_while_it_keeps_costs_leaves_those_before(options, child, monkeypatch, caplog):
    before = replace(USUAL, cycle=1e-9)
    keep_costs(before, options, "portable", 2)

    def killed_before_the_disk_has_it() -> bool:
        monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        return bool(keep_costs(USUAL, options, "portable", 2))

    victim = child(killed_before_the_disk_has_it)
    assert not victim.succeeds() and victim.process.exitcode == -signal.SIGKILL
    assert machine_costs(options, "portable", 2).cycle == before.cycle
    keep_costs(replace(USUAL, cycle=2e-9), options, "portable", 2)
    assert machine_costs(options, "portable", 2).cycle == 2e-9
    assert caplog.text == ""


def test_costs_are_kept_as_plain_numbers():
    assert set(USUAL.as_json()) == set(MachineCosts.__dataclass_fields__)
    assert replace(USUAL, cycle=1.23456e-10).as_json()["cycle"] == 1.23e-10
