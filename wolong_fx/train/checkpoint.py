"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import logging
import random
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wolong_fx.errors import CannotWrite, CheckpointMismatch, TornCheckpoint
from wolong_fx.train.files import write_atomically

log = logging.getLogger("wolong_fx")

_KEPT = 2  # the newest, and one to go back to should a disk damage it


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    position: windows taken from the training text
    identity: what must be equal for the saved state to mean anything (config keys and the text's digest)
    rng: states of torch's and Python's generators
    """

    step: int
    position: int
    identity: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: dict[str, Any]


def rng_state() -> dict[str, Any]:
    """States of the generators a model may draw from."""
    return {"torch": torch.get_rng_state(), "python": random.getstate()}


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back."""
    rng: Tensor = state["torch"]
    torch.set_rng_state(rng)
    random.setstate(state["python"])


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and drop all but the newest two; raises CannotWrite, the older ones kept."""
    path = directory / f"step-{checkpoint.step:08d}.pt"
    # torch reports a failed write of its zip container as a RuntimeError
    try:
        write_atomically(path, lambda file: torch.save(vars(checkpoint), file))
    except RuntimeError as error:
        raise CannotWrite(path=str(path), because=str(error).splitlines()[0]) from error
    for old in checkpoint_files(directory)[_KEPT:]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, its checksums verified; raises TornCheckpoint."""
    try:
        _verify_checksums(path)
        return Checkpoint(**torch.load(path, weights_only=True))
    except Exception as error:  # a damaged file can raise anything, from the zip reader to the unpickler
        because = str(error).strip().splitlines() or [type(error).__name__]
        raise TornCheckpoint(path=str(path), because=because[0]) from error


def find_newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest readable checkpoint, damaged ones skipped with a warning; TornCheckpoint if all are."""
    torn: TornCheckpoint | None = None
    for path in checkpoint_files(directory):
        try:
            return load_checkpoint(path)
        except TornCheckpoint as error:
            log.warning("%s", error)
            torn = error
    if torn is not None:
        raise torn
    return None


def checkpoint_files(directory: Path) -> list[Path]:
    """The checkpoints of a directory, newest first."""
    return sorted(directory.glob("step-*.pt"), key=_step_of, reverse=True)


def drop_newer_checkpoints(directory: Path, step: int) -> None:
    """Remove checkpoints after `step`: left in place they would be taken for this run's newest."""
    for path in checkpoint_files(directory):
        if _step_of(path) > step:
            path.unlink()


def check_identity(path: str, saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises CheckpointMismatch at the first key in which a checkpoint and this run differ."""
    for key in sorted(saved.keys() | own.keys()):
        if saved.get(key) != own.get(key):
            raise CheckpointMismatch(path=path, key=key, theirs=saved.get(key), ours=own.get(key))


def flat(**groups: Any) -> dict[str, Any]:
    """Dataclasses by name as one `group.field` dictionary, the keys of the command line."""
    pairs = ((f"{group}.{key}", value) for group in groups for key, value in asdict(groups[group]).items())
    return dict(pairs)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _verify_checksums(path: Path) -> None:
    """torch.load does not look at the CRC of each record that torch.save wrote; zipfile does."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
