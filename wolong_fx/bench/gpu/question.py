"""The command behind each file of benchmarks/gpu: its rows, one after another, into one file of results."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wolong_fx.bench.gpu.apart import Apart, Limits, Line, Result, default_ready
from wolong_fx.bench.gpu.device import Device, find_device
from wolong_fx.bench.gpu.row import Setting
from wolong_fx.bench.race import Effort
from wolong_fx.bench.screen import verdict_line
from wolong_fx.errors import NoGpuHere
from wolong_fx.report.measure import machine
from wolong_fx.report.screen import show_status

RESULTS, DRY_RESULTS = Path("benchmarks/results/gpu"), Path("runs/bench/gpu_dry")
LOGS = Path("runs/bench/gpu_logs")
NO_GPU, INCOMPLETE = 3, 1
"""Exit statuses: nothing to measure on; rows without figures."""

FULL = Effort(rounds=40, sample_ms=20.0, rest_ms=0.0, keeps_caches=True)
QUICK = Effort(rounds=30, sample_ms=3.0, rest_ms=0.0, keeps_caches=True)

Rows = Mapping[str, Result]


@dataclass(frozen=True)
class Question:
    """What one file of benchmarks/gpu answers.

    rows: names in order of importance, given whether the run is dry: then they are small
    measure: a row, in a process of its own
    verdicts: on all rows together; given too the folder, where answers to other questions may be
    lines: a row for a person
    blame: contenders suspected first when a row fails in a step of all together
    """

    name: str
    title: str
    rows: Callable[[bool], Sequence[str]]
    measure: Callable[[str, Setting], Result]
    lines: Callable[[Result], Sequence[str]]
    verdicts: Callable[[Rows, Path], Sequence[Mapping[str, Any]]] = lambda rows, folder: []
    blame: Sequence[str] = ()


def ask(question: Question, script: str, arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    chosen = _parser(question).parse_args(arguments)
    chosen.write = chosen.write or (DRY_RESULTS if chosen.dry else RESULTS)
    try:
        device = find_device(dry=chosen.dry)
    except NoGpuHere as error:
        print(f"{Path(script).name}: {error}", file=sys.stderr)
        return NO_GPU
    if chosen.one:
        return _measure_one(question, chosen, device)
    with _ended_by_sigterm():
        return _measure_all(question, chosen, script, device)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends this process by way of every `finally`, and so the rows' processes too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser(question: Question) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=question.title)
    parser.add_argument("--only", action="append", metavar="ROW", help="one of them; may be repeated")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="contenders to leave out")
    parser.add_argument("--quick", action="store_true", help="short samples")
    parser.add_argument("--missing", action="store_true", help="only rows that have no figures yet")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, no table")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"where results are kept ({RESULTS})")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="seconds for all rows")
    parser.add_argument("--limit-s", type=float, default=Limits.contender, help="seconds for a contender")
    parser.add_argument("--ready", type=int, default=default_ready(), help="rows that get ready at once")
    parser.add_argument("--dry", action="store_true", help="on the CPU, small: tries the benchmark itself")
    parser.add_argument("--one", metavar="ROW", help=argparse.SUPPRESS)
    return parser


# ---- one row, in its process


def _measure_one(question: Question, chosen: argparse.Namespace, device: Device) -> int:
    line = Line()
    effort = QUICK if chosen.quick else FULL
    setting = Setting(device, effort, line, tuple(chosen.without), chosen.dry)
    line.answer(question.measure(chosen.one, setting))
    return 0


# ---- all rows


def _measure_all(question: Question, chosen: argparse.Namespace, script: str, device: Device) -> int:
    kept = Kept.of(question, chosen, device)
    names = [name for name in question.rows(chosen.dry) if not chosen.only or name in chosen.only]
    if unknown := set(chosen.only or ()) - set(names):
        print(f"no row {sorted(unknown)}; there are {', '.join(question.rows(chosen.dry))}", file=sys.stderr)
        return 2
    if chosen.missing:
        names = [name for name in names if not _has_figures(kept.rows.get(name))]
    apart = Apart(
        command=lambda name, without: _command(script, name, chosen, without),
        limits=Limits(chosen.limit_s, chosen.budget_s, chosen.ready),
        blame=question.blame,
        logs=LOGS / question.name,
        progress=show_status,
    )
    for name, result in apart.measure(names):
        show_status("")
        kept.add(name, result)
        if not chosen.json:
            print("\n".join(_row_lines(question, {"row": name, **result})), flush=True)
    return _conclude(kept, chosen, names)


def _command(script: str, name: str, chosen: argparse.Namespace, without: Mapping[str, str]) -> list[str]:
    flags = [flag for flag in ("quick", "dry") if getattr(chosen, flag)]
    left_out = [*chosen.without, *without]
    return [
        sys.executable,
        "-P",
        script,
        "--one",
        name,
        *(f"--{flag}" for flag in flags),
        *(["--without", *left_out] if left_out else []),
    ]


def _has_figures(result: Result | None) -> bool:
    return result is not None and "failed" not in result


def _row_lines(question: Question, row: Result) -> Sequence[str]:
    if not _has_figures(row):
        return ["", f"{row['row']}: failed, {row['failed']}"]
    return question.lines(row)


def _conclude(kept: Kept, chosen: argparse.Namespace, names: Sequence[str]) -> int:
    if chosen.json:
        print(json.dumps(kept.as_json(), indent=2))
    else:
        print("\n".join(["", *map(verdict_line, kept.verdicts()), f"written to {kept.file}"]))
    return 0 if all(_has_figures(kept.rows.get(name)) for name in names) else INCOMPLETE


@dataclass
class Kept:
    """The file of a question's results, written after every row.

    rows: by name; those of an earlier run on the same device with the same versions stay
    """

    question: Question
    file: Path
    head: Mapping[str, Any]
    rows: dict[str, Result]

    @classmethod
    def of(cls, question: Question, chosen: argparse.Namespace, device: Device) -> Kept:
        head = {
            "benchmark": question.name,
            "title": question.title,
            "is_dry": chosen.dry,
            "machine": machine(),
            "device": device.describe(),
        }
        file = Path(chosen.write) / f"{question.name}.json"
        return cls(question, file, head, _rows_of(file, head))

    def add(self, name: str, result: Result) -> None:
        """A row more, or anew; one without figures replaces none with."""
        if _has_figures(result) or not _has_figures(self.rows.get(name)):
            when = datetime.now(UTC).isoformat(timespec="seconds")
            self.rows[name] = {"row": name, "measured": when, **result}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        new.replace(self.file)

    def verdicts(self) -> Sequence[Mapping[str, Any]]:
        """On all rows together."""
        measured = {name: row for name, row in self.rows.items() if _has_figures(row)}
        return self.question.verdicts(measured, self.file.parent)

    def as_json(self) -> dict[str, Any]:
        return {**self.head, "rows": [*self.rows.values()], "verdicts": [*self.verdicts()]}


def _rows_of(file: Path, head: Mapping[str, Any]) -> dict[str, Result]:
    """Those that a file has of the same device and versions."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    versions = ("python", "torch", "wolong_fx")
    is_same = found["device"] == head["device"] and all(
        found["machine"][name] == head["machine"][name] for name in versions
    )
    return {row["row"]: row for row in found["rows"]} if is_same else {}


def rows_of_question(folder: Path, name: str) -> Rows:
    """What another question's file in the folder has; nothing where there is none."""
    file = folder / f"{name}.json"
    found = json.loads(file.read_text())["rows"] if file.exists() else []
    return {row["row"]: row for row in found if _has_figures(row)}
