"""One row of the table, measured: contenders in turn, errors, first calls, and the verdict on each goal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

import wolong_fx
from wolong_fx.bench.compile_time import split_of
from wolong_fx.bench.contenders import EAGER, OURS, Maker
from wolong_fx.bench.job import Contender, ContenderMissing, Job
from wolong_fx.bench.stopwatch import kernel_ms, watched_kernels
from wolong_fx.bench.table import Goal, Row
from wolong_fx.bench.verdict import judge_at_least, judge_at_most
from wolong_fx.report.measure import Contest, measure_interleaved

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    rounds: samples of each contender
    sample_ms: a fast call is repeated until one sample takes this long
    rest_ms: before each sample, so that the threads of the contender before have stopped waiting for work
    keeps_caches: whether compilers may find what they built in another run: quicker, but no first-call times
    """

    rounds: int = 40
    sample_ms: float = 20.0
    rest_ms: float = 5.0
    keeps_caches: bool = False


FULL = Effort()
QUICK = Effort(rounds=30, sample_ms=3.0, rest_ms=2.0, keeps_caches=True)


@dataclass
class Field:
    """Who has come to a race, and how they got there."""

    contenders: dict[str, Contender] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    first_call_s: dict[str, float] = field(default_factory=dict)

    def admit(self, name: str, maker: Maker, job: Job) -> None:
        """Make a contender and call it once; who cannot be made or called is missing, and that is kept."""
        try:
            contender = maker(job)
            start = perf_counter()
            contender.call()
            self.first_call_s[name] = perf_counter() - start
            self.contenders[name] = contender
        except ContenderMissing as missing:
            self.missing[name] = str(missing)
        except Exception as error:  # another's compiler may fail as it likes: the others are measured
            self.missing[name] = f"failed with {type(error).__name__}: {str(error).strip()[:200]}"

    def first_calls(self, effort: Effort) -> dict[str, float | str]:
        """Seconds of the first calls, and what caches they met."""
        return {"caches": "kept" if effort.keeps_caches else "empty", **self.first_call_s}


def measure_row(
    row: Row, makers: Mapping[str, Maker], effort: Effort, progress: Progress = lambda line: None
) -> dict[str, Any]:
    """All that is known of a row, as JSON."""
    torch.manual_seed(0)
    torch.compiler.reset()
    job = Job.of(row.model(), row.batch, is_training=row.is_training, count_flops=True)
    with nullcontext() if row.is_training else torch.no_grad():
        with caches(effort.keeps_caches), watched_kernels() as kernels:
            arrived = _gather(row, makers, job, progress)
        exact = job.exact_results()
        errors = {name: job.error(one, exact) for name, one in arrived.contenders.items()}
        contest = race(arrived.contenders, effort, lambda line: progress(f"{row.name}: {line}"))
        ours = arrived.contenders.get(OURS)
        inside = kernel_ms(ours.call, kernels, effort.rounds, effort.sample_ms) if ours else None
    return {
        "row": row.name,
        "title": row.title,
        "flops": job.flops,
        "ms": contest.as_json(),
        "speedup": speedups(contest),
        "kernel_ms": inside,
        "missing": arrived.missing,
        "verdicts": verdicts(row, contest),
        "error": errors,
        "error_over_eagers": error_over_eagers(errors),
        "first_call_s": arrived.first_calls(effort),
        **(what_we_did(ours, arrived.first_call_s[OURS]) if ours else {}),
    }


def race(
    contenders: Mapping[str, Contender],
    effort: Effort,
    progress: Progress,
    finish: Callable[[], object] = lambda: None,
) -> Contest:
    """Milliseconds of each, taken in turn; `finish` waits for what calls leave running."""
    return measure_interleaved(
        {name: contender.call for name, contender in contenders.items()},
        effort.rounds,
        sample_ms=effort.sample_ms,
        rest_ms=effort.rest_ms,
        progress=progress,
        finish=finish,
    )


def verdicts(row: Row, contest: Contest) -> list[dict[str, Any]]:
    """For each goal what was found, whether it is met, and by which factor it is missed or passed."""
    found = [_verdict(goal, contest) for goal in row.goals]
    if row.limit_ms:
        took = contest.spread(OURS).median if OURS in contest.samples else None
        found.append(judge_at_most(f"<= {row.limit_ms:g} ms", took, row.limit_ms))
    return found


def _verdict(goal: Goal, contest: Contest) -> dict[str, Any]:
    others = [name for name in goal.against if name in contest.samples]
    if not others or OURS not in contest.samples:
        return judge_at_least(str(goal), None, goal.at_least)
    fastest = min(others, key=lambda name: contest.spread(name).median)
    return judge_at_least(str(goal), contest.ratio(fastest, OURS).median, goal.at_least)


def _gather(row: Row, makers: Mapping[str, Maker], job: Job, progress: Progress) -> Field:
    arrived = Field()
    for name in row.contenders:
        progress(f"{row.name}: making {name}")
        arrived.admit(name, makers[name], job)
    return arrived


def speedups(contest: Contest) -> dict[str, dict[str, float]]:
    """How many times longer than ours every other takes, paired round by round."""
    if OURS not in contest.samples:
        return {}
    return {name: vars(contest.ratio(name, OURS)) for name in contest.samples if name != OURS}


def error_over_eagers(errors: Mapping[str, float | None]) -> float | None:
    """How many times eager's our error is, if both are known."""
    ours, eagers = errors.get(OURS), errors.get(EAGER)
    return ours / eagers if ours is not None and eagers else None


def what_we_did(ours: Contender, first_call_s: float) -> dict[str, Any]:
    """What our statistics say of a contender, and the parts of its first call."""
    stats = wolong_fx.stats(ours.model)
    return {
        "kernel_launches": stats.launches,
        "fallbacks": dict(stats.fallbacks),
        "memory_bytes": stats.memory,
        "copies_removed": {step: vars(copies) for step, copies in stats.copies_removed.items()},
        "compile_s": split_of(stats, first_call_s),
    }


@contextmanager
def caches(keeps: bool) -> Iterator[None]:
    """Caches of ours and of Inductor that are empty, unless `keeps`: then those of the user."""
    names = ("WOLONG_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as empty:
        if not keeps:
            os.environ.update({name: os.path.join(empty, name) for name in names})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({name: value} if value is not None else {})
