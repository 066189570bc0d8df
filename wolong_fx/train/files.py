"""Files of a run that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from wolong_fx.errors import CannotWrite, RunDirectoryBusy

_PART = ".part"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file, bring it to disk, then give it its name; raises CannotWrite.

    The old file of that name stands until the new one is whole (rename(2) is atomic), and the folder
    is synchronised as well, or a power cut could undo the rename.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    with reporting_full_disk(path):
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _synchronise_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Turn an error of the file system into CannotWrite."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(path=str(path), because=error.strerror or str(error)) from error


@contextmanager
def own_directory(path: Path) -> Iterator[Path]:
    """Hold a run's directory alone, free of a killed run's leftovers.

    Raises RunDirectoryBusy, CannotWrite.
    """
    with reporting_full_disk(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunDirectoryBusy(path=str(path)) from error
    with lock:
        for leftover in path.rglob(f"*{_PART}"):
            leftover.unlink(missing_ok=True)
        yield path


def _synchronise_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
