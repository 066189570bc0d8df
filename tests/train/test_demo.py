from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from wolong_fx import Stats
from wolong_fx.report.measure import Contest
from wolong_fx.report.screen import bar_lines, ratio_words, work_words
from wolong_fx.train import demo
from wolong_fx.train.demo import largest_difference, run_demo

from .conftest import TINY


@pytest.fixture
def training(text):
    own = [word for word in TINY if not word.startswith("compile=")]
    return [*own, f"data.path={text}", "trainer.steps=3", "trainer.validate_every=3", "data.length=4"]


def test_the_demo_is_one_screen_with_both_halves_and_its_plots(training, tmp_path, capsys):
    assert run_demo(tmp_path / "demo", training=training, steps=3, hidden=8, rounds=3) == 0
    lines = capsys.readouterr().out.splitlines()
    screen = "\n".join(lines)
    assert len(lines) < 24
    assert max(map(len, lines)) <= 160
    assert "LSTM, 3 steps, 24 matmuls, batch 1, hidden 8" in screen
    assert "tolerance 0.001: the same" in screen
    for plot in ("lstm80.png", "loss.png"):
        assert f"plot: {tmp_path / 'demo' / plot}" in lines
        assert (tmp_path / "demo" / plot).stat().st_size > 10_000


def test_the_demo_fails_when_wolong_trains_to_other_losses(training, tmp_path, capsys, monkeypatch):
    def train_wrongly(config, directory):
        outcome = train(replace(config, compile={"backend": "eager"}), directory)
        if config.compile["backend"] == "eager":
            return outcome
        return replace(outcome, records=[r | {"loss": r["loss"] * 1.01} for r in outcome.records])

    train, samples = demo.train, {name: [1.0, 2.0] for name in ("eager", "nn.LSTM", "optimize()")}
    lstm = demo.Comparison(Contest(samples), Stats(0, 0, Counter(), []), 1.0, 0.0, 0.0)
    monkeypatch.setattr(demo, "train", train_wrongly)
    monkeypatch.setattr(demo, "compare_lstm", lambda **sizes: lstm)
    assert run_demo(tmp_path, training=training) == 1
    assert "losses 1.0e-02, tolerance 0.001: NOT the same" in capsys.readouterr().out


def test_loss_curves_of_other_lengths_or_without_numbers_are_never_alike():
    assert largest_difference([2.0, 4.0], [2.0, 4.002]) == pytest.approx(0.0005)
    assert largest_difference([2.0], [2.0, 3.0]) == math.inf
    assert largest_difference([], []) == math.inf
    assert largest_difference([2.0, 2.0], [math.nan, 2.0]) == math.inf


def test_a_slower_model_is_called_slower():
    assert ratio_words(20.44) == "20.4x as fast as"
    assert ratio_words(0.99) == "as fast as"
    assert ratio_words(0.5) == "SLOWER, 0.50x the speed of"


def test_what_ran_eagerly_is_told_with_the_commonest_reason():
    training = Stats(2, 3, Counter(), [], {"forward": 2, "backward": 1})
    assert work_words(training) == "kernel launches: 2 forward, 1 backward; 0 fallbacks"
    fallbacks = Counter({"no lowering": 2, "no compiler": 7})
    some = Stats(1, 3, fallbacks, [], {"inference": 3})
    assert work_words(some) == "kernel launches: 3 inference; 9 fell back: no compiler"
    assert work_words(Stats(1, 0, Counter(), [])).startswith("no kernel, it runs eagerly")


def test_bars_are_in_proportion():
    one, two = bar_lines({"a": (1.0, "x"), "long": (4.0, "y")})
    assert (one.count("█"), two.count("█")) == (10, 40)
    assert one.index("█") == two.index("█")
