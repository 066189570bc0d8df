"""Metrics of a run: one JSON object a line, and TensorBoard events where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from wolong_fx.train.files import reporting_full_disk, write_atomically

Record = dict[str, Any]


class MetricsLog:
    """Appends records to DIRECTORY/metrics.jsonl; each has `step`, `split` and numbers.

    A resumed run cuts the file back to its checkpoint first, so that every step stands there once.
    """

    def __init__(self, directory: Path, *, step: int, tensorboard: bool) -> None:
        self.path = directory / "metrics.jsonl"
        kept = [r for r in read_metrics(self.path) if r["step"] <= step]
        write_atomically(self.path, lambda file: file.write("".join(map(_to_line, kept)).encode()))
        self._file = self.path.open("a", encoding="utf-8")
        self._events = _open_events(directory, step) if tensorboard else None

    def write(self, step: int, split: str, **values: float) -> None:
        """Add one record; raises CannotWrite."""
        with reporting_full_disk(self.path):
            self._file.write(_to_line({"step": step, "split": split} | values))
            self._file.flush()
            if self._events is not None:
                for name, value in values.items():
                    self._events.add_scalar(f"{name}/{split}", value, step)

    def close(self) -> None:
        """Bring the rest to disk."""
        if self._events is not None:
            self._events.close()
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file; a line that a killed run left half-written ends them."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _to_line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _open_events(directory: Path, step: int) -> Any | None:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
