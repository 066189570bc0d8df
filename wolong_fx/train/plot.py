"""The loss curve as a PNG."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from wolong_fx.train.files import write_atomically
from wolong_fx.train.metrics import Record

log = logging.getLogger("wolong_fx")

# Okabe and Ito (2008): told apart under every common colour blindness; line styles say the same twice.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_STYLES = ("-", "--", "-.", ":")


def plot_losses(path: Path, runs: Mapping[str, Sequence[Record]], *, title: str) -> Path | None:
    """Training and validation loss of each named run over its steps; None when matplotlib is missing."""
    figure = _new_figure(path)
    if figure is None:
        return None
    axes = figure.subplots()
    for index, (name, records) in enumerate(runs.items()):
        _plot_run(axes, name, records, COLOURS[index % 4], _STYLES[index % 4])
    axes.set(title=title, xlabel="step", ylabel="cross-entropy (nats a byte)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _save(figure, path)


def plot_bars(
    path: Path, rows: Mapping[str, tuple[float, float, float]], *, title: str, unit: str
) -> Path | None:
    """One horizontal bar a row at its median, whiskers from its low to its high; None without matplotlib."""
    figure = _new_figure(path)
    if figure is None:
        return None
    axes = figure.subplots()
    names, medians = list(rows), [median for _, median, _ in rows.values()]
    below = [median - low for low, median, _ in rows.values()]
    above = [high - median for _, median, high in rows.values()]
    bars = axes.barh(names, medians, xerr=(below, above), color=COLOURS[: len(rows)], height=0.6, capsize=3)
    axes.bar_label(bars, labels=[f"{median:.3g} {unit}" for median in medians], padding=8)
    axes.set(title=title, xlabel=f"{unit}, median and quartiles; less is better")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """The mean of the last `span` values at each place."""
    windows = (values[max(0, i - span + 1) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _new_figure(path: Path) -> Figure | None:
    if importlib.util.find_spec("matplotlib") is None:
        log.warning("no plot at %s: matplotlib is not installed; pip install matplotlib", path)
        return None
    from matplotlib.figure import Figure  # the object interface with no backend: needs no display

    return Figure(figsize=(8, 4.5), dpi=144, layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    return path


def _plot_run(axes: Axes, name: str, records: Sequence[Record], colour: str, style: str) -> None:
    steps, losses = _curve(records, "train")
    span = max(1, len(losses) // 40)
    axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
    label = f"{name}, training" + (f" (mean of {span} points)" if span > 1 else "")
    axes.plot(steps, smoothed(losses, span), color=colour, linestyle=style, linewidth=1.8, label=label)
    steps, losses = _curve(records, "validation")
    if steps:
        look = {"marker": "o", "markersize": 5, "linewidth": 1.0, "linestyle": style}
        axes.plot(steps, losses, color=colour, markerfacecolor="white", label=f"{name}, validation", **look)


def _curve(records: Sequence[Record], split: str) -> tuple[list[int], list[float]]:
    own = [r for r in records if r["split"] == split]
    return [r["step"] for r in own], [r["loss"] for r in own]
