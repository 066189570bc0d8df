from __future__ import annotations

import importlib.util

from wolong_fx.train.plot import plot_losses, smoothed


def records(length: int) -> list[dict[str, object]]:
    train = [{"step": i, "split": "train", "loss": 5.0 / i} for i in range(1, length)]
    return [*train, {"step": length, "split": "validation", "loss": 1.0}]


def test_the_plot_is_a_png_that_can_be_read(tmp_path):
    from matplotlib.image import imread

    runs = {"wolong": records(200), "eager": records(100)}
    path = plot_losses(tmp_path / "loss.png", runs, title="cell")
    assert path is not None
    height, width, _ = imread(path).shape
    assert (height, width) == (648, 1152)


def test_a_run_of_one_step_can_be_plotted(tmp_path):
    assert plot_losses(tmp_path / "loss.png", {"a": records(2)}, title="short") is not None


def test_without_matplotlib_there_is_no_plot_but_a_line_that_says_how(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plot_losses(tmp_path / "loss.png", {"a": records(9)}, title="a") is None
    assert "pip install matplotlib" in caplog.text


def test_smoothing_takes_the_mean_of_the_past_only():
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
