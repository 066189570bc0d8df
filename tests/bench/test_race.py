"""A row of the table: who came, who did not, and what the goals say."""

from __future__ import annotations

import os

import pytest
import torch

from wolong_fx.bench.contenders import EAGER, HAND, NN_LSTM, OURS, OURS_BY_TORCH, makers
from wolong_fx.bench.job import ContenderMissing
from wolong_fx.bench.race import Effort, caches, measure_row, verdicts
from wolong_fx.bench.screen import row_lines
from wolong_fx.bench.table import ROWS, Goal, Row, find_row, goals
from wolong_fx.report.measure import Contest
from wolong_fx.testing.models import GateLSTM

SHORT = Effort(rounds=3, sample_ms=0.1, rest_ms=0.1)


def small_row(*given: Goal, **more) -> Row:
    return Row("small", "a small row", lambda: GateLSTM(16, 2), given, **more)


def test_a_goal_is_judged_by_the_fastest_of_those_it_names():
    row = small_row(*goals({EAGER: 2, ("one", "two"): 1.5, "absent": 1}), limit_ms=0.5)
    contest = Contest({EAGER: [6.0] * 3, "one": [3.0] * 3, "two": [1.2] * 3, OURS: [1.0] * 3})
    met, missed, unknown, limit = verdicts(row, contest)
    assert (met["found"], met["share"], met["is_met"]) == (6.0, 3.0, True)
    assert (missed["found"], missed["share"], missed["is_met"]) == (1.2, pytest.approx(0.8), False)
    assert (unknown["found"], unknown["share"], unknown["is_met"]) == (None, None, None)
    assert (limit["goal"], limit["found"], limit["share"], limit["is_met"]) == ("<= 0.5 ms", 1.0, 0.5, False)


@pytest.mark.cpu
def test_a_measured_row_says_everything_about_itself():
    def absent(job):
        raise ContenderMissing("it is on holiday")

    def broken(job):
        raise RuntimeError("it fell over")

    row = small_row(*goals({EAGER: 0.001, NN_LSTM: 1e9, HAND: 1}), beside=("other",))
    chosen = {name: maker for name, maker in makers(None).items() if name in (EAGER, NN_LSTM, OURS)}
    result = measure_row(row, chosen | {HAND: absent, OURS_BY_TORCH: absent, "other": broken}, SHORT)
    assert result["ms"].keys() == {EAGER, NN_LSTM, OURS}
    assert {spread["samples"] for spread in result["ms"].values()} == {3}
    assert result["missing"].keys() == {HAND, OURS_BY_TORCH, "other"}
    assert "it fell over" in result["missing"]["other"]
    assert [verdict["is_met"] for verdict in result["verdicts"]] == [True, False, None]
    assert result["kernel_launches"] == {"inference": 1}
    assert 0 < result["kernel_ms"] < 1e3
    assert result["error_over_eagers"] is not None
    split = result["compile_s"]
    whole = split["dynamo"] + split["aot"] + split["ours"]
    assert split["ours"] == pytest.approx(sum(split["by_step"].values()))
    assert split["by_step"]["build"] == split["g++"]
    assert whole == pytest.approx(result["first_call_s"][OURS], rel=1e-6)
    assert all(split[part] > 0 for part in ("dynamo", "aot", "ours", "g++"))
    screen = "\n".join(row_lines(result))
    assert "met      eager >= 0.001x" in screen
    assert "MISSED   nn.LSTM >= 1e+09x" in screen
    assert "missing: it is on holiday" in screen
    assert "unknown  hand" in screen


@pytest.mark.cpu
def test_a_training_row_times_a_forward_and_a_backward():
    row = small_row(*goals({EAGER: 0.001}), is_training=True)

    def absent(job):
        raise ContenderMissing("not in this test")

    chosen = {name: makers(None)[name] for name in (EAGER, OURS)} | {OURS_BY_TORCH: absent}
    result = measure_row(row, chosen, SHORT)
    assert result["kernel_launches"] == {"forward": 1, "backward": 1}
    assert all(0 < error < 1e-5 for error in result["error"].values())


def test_caches_are_empty_unless_kept_and_the_users_come_back(monkeypatch):
    monkeypatch.setenv("WOLONG_CACHE_DIR", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with caches(keeps=True):
        assert os.environ["WOLONG_CACHE_DIR"] == "mine"
    with caches(keeps=False):
        assert os.environ["WOLONG_CACHE_DIR"] != "mine"
        assert not os.path.exists(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert os.environ["WOLONG_CACHE_DIR"] == "mine"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_every_row_has_a_name_of_its_own_and_contenders_that_can_be_made():
    assert len({row.name for row in ROWS}) == len(ROWS) == 12
    assert all(set(row.contenders) <= set(makers(None)) for row in ROWS)
    assert all(find_row(row.name) is row for row in ROWS)
    assert find_row("none") is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_compared_with_eager_and_inductor_and_its_model_is_made(row):
    torch.manual_seed(0)
    assert [goal.against for goal in row.goals[:2]] == [("eager",), ("inductor",)]
    assert row.contenders[-2:] == (OURS_BY_TORCH, OURS)
    assert all(isinstance(x, torch.Tensor) for x in row.model().example_inputs(row.batch))
