"""Measuring side by side: contenders take turns, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep


@dataclass(frozen=True)
class Spread:
    """Quartiles of a measurement."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two values."""
        return cls(*quantiles(values, n=4, method="inclusive"))

    @property
    def noise(self) -> float:
        """Distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Contest:
    """Milliseconds a call by contender, and every sample in the order taken."""

    samples: Mapping[str, Sequence[float]]

    def spread(self, name: str) -> Spread:
        return Spread.of(self.samples[name])

    def ratio(self, slow: str, fast: str) -> Spread:
        """How many times longer `slow` takes than `fast`, paired round by round: drift cancels."""
        pairs = zip(self.samples[slow], self.samples[fast], strict=True)
        return Spread.of([a / b for a, b in pairs])

    def as_json(self) -> dict[str, object]:
        """Quartiles in milliseconds by contender, with the number of samples."""
        return {
            name: asdict(self.spread(name)) | {"samples": len(values)}
            for name, values in self.samples.items()
        }


def measure_interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    sample_ms: float = 0.0,
    rest_ms: float = 0.0,
    progress: Callable[[str], None] = lambda line: None,
    finish: Callable[[], object] = lambda: None,
) -> Contest:
    """Time each call in turn, `rounds` times, after warming all up.

    sample_ms: repeat a fast call until one sample takes about this long, so that the clock does not matter;
               the repeats of one contender run back to back, as they would in use
    rest_ms: wait so long before each sample, and call once untimed: threads of the contender before, which
             wait for more work, would else take a processor from the next one
    finish: waits for what calls leave running, within the time of each sample
    """
    repeats = {name: _repeats(call, sample_ms, finish) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for name, call in calls.items():
            if rest_ms:
                sleep(rest_ms / 1e3)
                call()
            taken[name].append(_time_ms(call, repeats[name], finish))
    return Contest(taken)


def _repeats(call: Callable[[], object], sample_ms: float, finish: Callable[[], object]) -> int:
    for _ in range(3):
        call()
    finish()
    return max(1, round(sample_ms / median(_time_ms(call, 1, finish) for _ in range(5))))


def _time_ms(call: Callable[[], object], repeats: int, finish: Callable[[], object]) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    finish()
    return 1e3 * (perf_counter() - start) / repeats


def machine() -> dict[str, object]:
    """What a figure must be read with: processor, processors in use, load, versions."""
    import torch

    from wolong_fx import __version__

    return {
        "processor": processor_name(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wolong_fx": __version__,
    }


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where Linux tells it, else its architecture."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """The two ways every benchmark can put its results: --json and --write FILE."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the results in this file, as JSON")


def publish(
    results: Mapping[str, object],
    arguments: argparse.Namespace,
    screen: Callable[[Mapping[str, object]], str],
) -> None:
    """Print results, for a machine or by `screen` for a person, and keep them if the arguments say so."""
    text = json.dumps(results, indent=2)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text + "\n")
    print(text if arguments.json else screen(results))
