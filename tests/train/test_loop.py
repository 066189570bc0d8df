from __future__ import annotations

import signal
from dataclasses import replace

import pytest
import torch

from wolong_fx.errors import (
    BadConfig,
    CheckpointMismatch,
    LossNotFinite,
    RunDirectoryBusy,
    UnknownOption,
    UnknownPass,
)
from wolong_fx.train.checkpoint import checkpoint_files, load_checkpoint
from wolong_fx.train.config import MODELS
from wolong_fx.train.files import own_directory
from wolong_fx.train.finish import finish_run
from wolong_fx.train.loop import Outcome, Run, train

from .conftest import changed


def losses(outcome: Outcome) -> list[tuple[int, str, float]]:
    return [(r["step"], r["split"], r["loss"]) for r in outcome.records]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns(tiny, tmp_path, name):
    config = changed(changed(tiny, "model", name=name), "trainer", steps=60, validate_every=60)
    config = changed(config, "optim", lr=0.02)
    outcome = train(config, tmp_path / "run")
    first, last = outcome.losses()[0], outcome.losses()[-1]
    assert first == pytest.approx(5.5, abs=0.6)
    assert last < 0.75 * first
    assert outcome.losses("validation")[-1] < 0.85 * first


def test_a_seed_gives_one_run_and_another_seed_another(tiny, tmp_path):
    one, two = (train(tiny, tmp_path / name) for name in ("one", "two"))
    other = train(replace(tiny, seed=1), tmp_path / "other")
    assert losses(one) == losses(two)
    assert one.losses()[0] != other.losses()[0]


@pytest.mark.parametrize("stop_at", [4, 6, 11])
def test_a_longer_run_continues_a_shorter_one_exactly(tiny, tmp_path, stop_at):
    config = changed(tiny, "model", dropout=0.3)
    whole = train(config, tmp_path / "whole")
    train(changed(config, "trainer", steps=stop_at), tmp_path / "parts")
    parts = train(config, tmp_path / "parts")
    assert losses(parts) == losses(whole)
    mine, theirs = (load_checkpoint(checkpoint_files(tmp_path / d)[0]) for d in ("parts", "whole"))
    assert all(torch.equal(mine.model[name], theirs.model[name]) for name in theirs.model)


def test_the_batch_may_change_on_resume_and_no_window_is_skipped(tiny, tmp_path):
    train(changed(tiny, "trainer", steps=3), tmp_path)
    outcome = train(changed(changed(tiny, "trainer", steps=5), "data", batch=2), tmp_path)
    assert outcome.run.position == 3 * 4 + 2 * 2


def test_a_finished_run_started_again_changes_nothing(tiny, tmp_path):
    first = train(tiny, tmp_path)
    again = train(tiny, tmp_path)
    assert again.records == first.records
    assert again.run.step == tiny.trainer.steps


def test_resume_never_starts_afresh_in_the_same_directory(tiny, tmp_path):
    whole = train(tiny, tmp_path)
    afresh = train(replace(changed(tiny, "trainer", steps=2), resume="never"), tmp_path)
    assert losses(afresh) == losses(whole)[:2]
    assert [path.name for path in checkpoint_files(tmp_path)] == ["step-00000002.pt"]


def test_a_named_checkpoint_is_continued_in_another_directory(tiny, tmp_path):
    whole = train(tiny, tmp_path / "a")
    part = train(changed(tiny, "trainer", steps=6), tmp_path / "b")
    newest = checkpoint_files(tmp_path / "b")[0]
    continued = train(replace(tiny, resume=str(newest)), tmp_path / "c")
    assert part.run.step == 6
    assert losses(continued) == [r for r in losses(whole) if r[0] > 6]


def test_resume_from_a_file_that_is_not_there_is_a_config_error(tiny, tmp_path):
    with pytest.raises(BadConfig, match=r"'resume' cannot be '/nope\.pt'"):
        train(replace(tiny, resume="/nope.pt"), tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: changed(c, "model", hidden=24), "model.hidden=16, this run has 24"),
        (lambda c: replace(c, seed=9), "seed=0, this run has 9"),
        (lambda c: changed(c, "optim", name="sgd"), "optim.name='adam', this run has 'sgd'"),
        (lambda c: changed(c, "data", validation=0.3), "text digest='[0-9a-f-]{17}'"),
    ],
)
def test_a_run_that_could_not_be_continued_exactly_is_refused(tiny, tmp_path, change, key):
    train(tiny, tmp_path)
    with pytest.raises(CheckpointMismatch, match=key):
        train(change(tiny), tmp_path)


def test_a_run_that_diverges_says_so_and_saves_nothing_of_it(tiny, tmp_path):
    config = changed(changed(tiny, "optim", name="sgd", lr=1e38), "trainer", clip=0.0)
    with pytest.raises(LossNotFinite, match=r"the loss is (nan|inf) at step \d+; lower optim.lr"):
        train(config, tmp_path)
    assert checkpoint_files(tmp_path) == []


def test_two_runs_do_not_share_a_directory(tiny, tmp_path):
    with own_directory(tmp_path), pytest.raises(RunDirectoryBusy):
        train(tiny, tmp_path)


def test_a_signal_ends_the_run_after_a_whole_step_with_a_checkpoint(tiny, tmp_path, monkeypatch):
    advance = Run.advance

    def advance_and_interrupt(run: Run) -> float:
        if run.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return advance(run)

    monkeypatch.setattr(Run, "advance", advance_and_interrupt)
    stopped = train(tiny, tmp_path / "run")
    monkeypatch.undo()
    assert (stopped.signum, stopped.run.step) == (signal.SIGTERM, 6)
    assert checkpoint_files(tmp_path / "run")[0].name == "step-00000006.pt"
    assert losses(train(tiny, tmp_path / "run")) == losses(train(tiny, tmp_path / "whole"))


def test_an_unknown_compile_option_is_told_before_anything_is_read(tiny, tmp_path):
    config = replace(changed(tiny, "data", path="/nope"), compile={"backend": "wolong", "tragte": "cpu"})
    with pytest.raises(UnknownOption, match="'tragte' in the compile group; did you mean 'target'"):
        train(config, tmp_path)


def test_a_door_without_options_takes_none(tiny, tmp_path):
    with pytest.raises(BadConfig, match=r"'compile.threads' cannot be 1: expected no option with eager"):
        train(replace(tiny, compile={"backend": "eager", "threads": 1}), tmp_path)


def test_a_finished_run_leaves_plot_sample_metrics_and_checkpoints(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    directory = tmp_path / "run"
    finish_run(train(tiny, directory), directory)
    assert {p.name for p in directory.iterdir()} == {
        ".lock",
        "loss.png",
        "metrics.jsonl",
        "sample.txt",
        "step-00000008.pt",
        "step-00000012.pt",
    }
    assert (directory / "sample.txt").read_text().startswith("def ")
    assert "12 steps, loss" in caplog.text


def test_a_run_that_logs_nothing_still_finishes(tiny, tmp_path):
    config = changed(tiny, "trainer", log_every=0, validate_every=0, checkpoint_every=0)
    outcome = train(config, tmp_path)
    finish_run(outcome, tmp_path)
    assert outcome.records == []
    assert [p.name for p in checkpoint_files(tmp_path)] == ["step-00000012.pt"]


def test_an_unknown_pass_in_disable_is_told_at_once(tiny, tmp_path):
    with pytest.raises(UnknownPass, match=r"'fuse-op' in compile.disable; did you mean 'fuse-ops'"):
        train(replace(tiny, compile={"backend": "wolong", "disable": ["fuse-op"]}), tmp_path)
