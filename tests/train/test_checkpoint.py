from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from wolong_fx.errors import CannotWrite, CheckpointMismatch, TornCheckpoint
from wolong_fx.train.checkpoint import (
    Checkpoint,
    check_identity,
    checkpoint_files,
    drop_newer_checkpoints,
    find_newest_checkpoint,
    load_checkpoint,
    restore_rng_state,
    rng_state,
    save_checkpoint,
)

from .test_files import full_disk


def state(step: int) -> Checkpoint:
    model = torch.nn.Linear(40, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.25, 0.5))
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    identity = {"seed": 0, "model.name": "cell", "optim.betas": (0.25, 0.5)}
    return Checkpoint(
        step=step,
        position=step * 4,
        identity=identity,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        rng=rng_state(),
    )


def same(one: object, two: object) -> bool:
    """Equality that looks into tensors, bit by bit."""
    if isinstance(one, Checkpoint) and isinstance(two, Checkpoint):
        return same(vars(one), vars(two))
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two


def steps(directory: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in checkpoint_files(directory)]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = state(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    assert same(loaded, saved)


def test_generators_go_on_where_they_were():
    saved = rng_state()
    drawn = torch.rand(3), random.random()
    restore_rng_state(saved)
    assert torch.equal(torch.rand(3), drawn[0])
    assert random.random() == drawn[1]


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 100_000_000, 99_999_999):
        save_checkpoint(tmp_path, state(step))
    assert steps(tmp_path) == [100_000_000, 99_999_999]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    saved = state(1)
    save_checkpoint(tmp_path, saved)
    with pytest.raises(CannotWrite, match=r"cannot write '.*step-00000002.pt'"), full_disk(4096):
        save_checkpoint(tmp_path, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    newest = find_newest_checkpoint(tmp_path)
    assert same(newest, saved)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_told(tmp_path, share):
    path = save_checkpoint(tmp_path, state(1))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        TornCheckpoint, match=r"step-00000001.pt' cannot be read: .+; resume from an older one"
    ):
        load_checkpoint(path)


def test_a_flipped_bit_is_never_taken_for_the_state(tmp_path):
    saved = state(1)
    path = save_checkpoint(tmp_path, saved)
    whole, torn = path.read_bytes(), 0
    for place in range(11, len(whole), len(whole) // 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert same(load_checkpoint(path), saved), f"byte {place}"  # padding and dates may change
        except TornCheckpoint:
            torn += 1
    assert torn > 50


def test_a_damaged_newest_checkpoint_gives_way_to_the_previous_one(tmp_path, caplog):
    saved = state(1)
    save_checkpoint(tmp_path, saved)
    save_checkpoint(tmp_path, state(2)).write_bytes(b"torn")
    assert same(find_newest_checkpoint(tmp_path), saved)
    assert "step-00000002.pt' cannot be read" in caplog.text


def test_only_damaged_checkpoints_are_an_error_and_not_a_fresh_start(tmp_path):
    save_checkpoint(tmp_path, state(2)).write_bytes(b"torn")
    with pytest.raises(TornCheckpoint):
        find_newest_checkpoint(tmp_path)


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert find_newest_checkpoint(tmp_path) is None


def test_a_checkpoint_is_data_and_runs_no_code(tmp_path):
    path = tmp_path / "step-00000001.pt"
    torch.save({"step": Path}, path)
    with pytest.raises(TornCheckpoint, match="Weights only load failed"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_model_is_refused_by_the_first_key_that_differs():
    check_identity("p", {"seed": 1, "model.hidden": 2}, {"model.hidden": 2, "seed": 1})
    with pytest.raises(CheckpointMismatch, match=r"made with model.hidden=2, this run has 3"):
        check_identity("p", {"seed": 1, "model.hidden": 2}, {"seed": 2, "model.hidden": 3})


def test_checkpoints_of_an_abandoned_future_are_dropped(tmp_path):
    for step in (3, 4):
        save_checkpoint(tmp_path, state(step))
    drop_newer_checkpoints(tmp_path, 3)
    assert steps(tmp_path) == [3]
