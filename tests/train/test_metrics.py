from __future__ import annotations

import importlib.util

import pytest

from wolong_fx.errors import CannotWrite
from wolong_fx.train.metrics import MetricsLog, read_metrics

from .test_files import full_disk


def test_each_record_is_one_json_line_at_once(tmp_path):
    log = MetricsLog(tmp_path, step=0, tensorboard=False)
    log.write(1, "train", loss=0.1 + 0.2, tokens_per_second=5.0)
    assert log.path.read_text() == (
        '{"step": 1, "split": "train", "loss": 0.30000000000000004, "tokens_per_second": 5.0}\n'
    )
    log.close()


def test_a_resumed_run_has_each_step_once(tmp_path):
    log = MetricsLog(tmp_path, step=0, tensorboard=False)
    for step in range(1, 6):
        log.write(step, "train", loss=float(step))
    log.close()
    log = MetricsLog(tmp_path, step=3, tensorboard=False)
    log.write(4, "train", loss=40.0)
    log.close()
    assert [r["loss"] for r in read_metrics(log.path)] == [1.0, 2.0, 3.0, 40.0]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2, "sp')
    log = MetricsLog(tmp_path, step=2, tensorboard=False)
    log.write(2, "train", loss=2.0)
    log.close()
    assert [r["step"] for r in read_metrics(log.path)] == [1, 2]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    log = MetricsLog(tmp_path, step=0, tensorboard=False)
    with pytest.raises(CannotWrite, match=r"metrics.jsonl': File too large"), full_disk(100):
        for step in range(10):
            log.write(step, "train", loss=1.0)


def test_without_tensorboard_metrics_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    log = MetricsLog(tmp_path, step=0, tensorboard=True)
    log.write(1, "train", loss=1.0)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.tensorboard
def test_tensorboard_reads_the_same_values_from_its_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, step=0, tensorboard=True)
    log.write(1, "train", loss=1.5)
    log.write(2, "train", loss=1.25)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 1.5), (2, 1.25)]
