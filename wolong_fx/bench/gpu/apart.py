"""Rows measured each in a process of its own, by what a lent GPU is short of: time, and second chances.

A kernel that faults takes its process's GPU along, one that never ends is ended only with its process, and
a compiler may take any time. So a row's process says what it is doing, and one that dies or takes too long is
started again without the contender that it was busy with; the others keep their figures.

Several rows get ready at once, which is mostly compiling. They are timed one at a time; meanwhile the
processes of all others are stopped.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO, Any

Progress = Callable[[str], None]
Result = Mapping[str, Any]


# ---- the row's process

_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Line:
    """To the process that waits for the row, without which it ends too."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
        # What libraries print must not stand among the replies.
        self._replies: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def doing(self, what: str, contender: str = "") -> None:
        """What comes next; whose fault it is if it does not end well."""
        self._say(doing=what, contender=contender)

    def wait_for_turn(self) -> None:
        """Until no other row is timed, nor gets ready."""
        self._say(ready=True)
        sys.stdin.readline()

    def answer(self, result: Result) -> None:
        self._say(result=result)

    def _say(self, **message: object) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()


# ---- the process that waits


@dataclass(frozen=True)
class Limits:
    """Seconds.

    contender: for one step, such as making a contender and calling it once
    budget: for all rows; a row that is not done by then is left out
    ready: rows that get ready at once
    """

    contender: float = 150.0
    budget: float = float("inf")
    ready: int = 1


@dataclass
class _Row:
    """A row on its way.

    without: contenders to leave out, and why
    blame: who is left out where a process fails in a step that is no one's
    """

    name: str
    blame: Sequence[str]
    without: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    unread: bytes = b""
    step: str = "starting"
    contender: str = ""
    since: float = 0.0
    is_ready: bool = False
    result: Result | None = None


@dataclass
class Apart:
    """Measures rows.

    command: by the row's name and those left out
    logs: folder of what the processes print, a file a row
    blame: contenders that are suspected first when a row fails in a step of all together
    """

    command: Callable[[str, Mapping[str, str]], Sequence[str]]
    limits: Limits
    logs: Path
    blame: Sequence[str] = ()
    progress: Progress = lambda line: None

    def measure(self, names: Sequence[str]) -> Iterator[tuple[str, Result]]:
        """Each row's result as soon as it is there; rows that have none say `failed` in theirs.

        When this is left early, the processes are ended.
        """
        self._end = monotonic() + self.limits.budget
        waiting = [_Row(name, self.blame) for name in names]
        running: list[_Row] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.limits.ready:
                    running.append(self._start(waiting.pop(0)))
                self._listen(running)
                if turn := next((row for row in running if row.is_ready), None):
                    self._time_alone(turn, running)
                for row in [row for row in running if row.result is not None]:
                    running.remove(row)
                    yield row.name, row.result or {}
        finally:
            for row in running:
                _kill(row)

    def _start(self, row: _Row) -> _Row:
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._log(row).open("ab" if row.without else "wb") as log:
            row.process = subprocess.Popen(
                self.command(row.name, row.without),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_fewer_compilers(self.limits.ready) | os.environ,
                start_new_session=True,
            )
        row.step, row.contender, row.since = "starting", "", monotonic()
        row.is_ready, row.unread = False, b""
        return row

    def _log(self, row: _Row) -> Path:
        return self.logs / f"{row.name}.log"

    def _listen(self, heard: Sequence[_Row]) -> None:
        """Take in what rows say, and end what takes too long."""
        with selectors.DefaultSelector() as selector:
            for row in heard:
                assert row.process is not None and row.process.stdout is not None
                selector.register(row.process.stdout, selectors.EVENT_READ, row)
            for key, _ in selector.select(timeout=0.2):
                self._read(key.data)
        now = monotonic()
        for row in heard:
            if row.result is None and now > self._end:
                _kill(row)
                row.result = {"failed": f"the budget of {self.limits.budget:g} s was used up ({row.step})"}
            elif row.result is None and not row.is_ready and now > row.since + self.limits.contender:
                self._again(row, f"stopped after {self.limits.contender:g} s of {row.step}")

    def _read(self, row: _Row) -> None:
        assert row.process is not None and row.process.stdout is not None
        if not (said := os.read(row.process.stdout.fileno(), 1 << 16)):
            row.process.wait()
            ending = f"its process ended with {_ending(row.process.returncode)} while {row.step}"
            self._again(row, f"{ending}: {_last_line(self._log(row))}")
            return
        *lines, row.unread = (row.unread + said).split(b"\n")
        for line in lines:
            self._take(row, json.loads(line))

    def _take(self, row: _Row, said: Mapping[str, Any]) -> None:
        if "result" in said:
            row.result = _with_missing(said["result"], row.without)
            _kill(row)
        elif "ready" in said:
            row.is_ready = True
        else:
            row.step, row.contender, row.since = said["doing"], said["contender"], monotonic()
            self.progress(f"{row.name}: {row.step}")

    def _time_alone(self, row: _Row, running: Sequence[_Row]) -> None:
        """Let a row go on while all others stand still."""
        others = [other for other in running if other is not row and other.result is None]
        began = monotonic()
        _signal(others, signal.SIGSTOP)
        row.is_ready, row.step, row.since = False, "taking turns", began
        self._let_go(row)
        started = row.process
        while row.result is None and row.process is started:
            self._listen([row])
        _signal(others, signal.SIGCONT)
        for other in others:
            other.since += monotonic() - began

    def _let_go(self, row: _Row) -> None:
        assert row.process is not None and row.process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # it is gone, which reading from it will tell
            row.process.stdin.write(b"go\n")
            row.process.stdin.flush()

    def _again(self, row: _Row, because: str) -> None:
        """Once more without the one that it failed for; without suspects the row has failed."""
        _kill(row)
        suspects = [row.contender] if row.contender else [n for n in row.blame if n not in row.without]
        if not suspects or suspects[0] in row.without:
            row.result = {"failed": because, "missing": row.without}
            return
        row.without[suspects[0]] = because
        self.progress(f"{row.name}: {because}; again without {suspects[0]}")
        self._start(row)


def _with_missing(result: Result, without: Mapping[str, str]) -> Result:
    return {**result, "missing": {**result.get("missing", {}), **without}} if without else result


def _signal(rows: Sequence[_Row], number: int) -> None:
    for row in rows:
        assert row.process is not None
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(row.process.pid, number)


def _kill(row: _Row) -> None:
    assert row.process is not None
    if row.process.poll() is None:
        _signal([row], signal.SIGKILL)
    row.process.wait()
    for pipe in (row.process.stdin, row.process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it said nothing"


def _ending(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _fewer_compilers(ready: int) -> dict[str, str]:
    """Inductor would start as many as there are processors, in every row that gets ready."""
    return {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ready))}


def default_ready() -> int:
    """Rows that can get ready at once: a compiler has four processors."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 4))
