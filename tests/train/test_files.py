from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from wolong_fx.errors import CannotWrite, RunDirectoryBusy
from wolong_fx.train.files import own_directory, write_atomically


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process can grow beyond `room` bytes: the kernel refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    with pytest.raises(CannotWrite, match=r"cannot write '.*state': File too large"), full_disk(1000):
        write_atomically(path, lambda file: file.write(b"new" * 1000))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("state", b"old")]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    program = (
        "import os, sys, pathlib; from wolong_fx.train.files import write_atomically\n"
        "def write(file): file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)\n"
        "write_atomically(pathlib.Path(sys.argv[1]), write)"
    )
    killed = subprocess.run([sys.executable, "-P", "-c", program, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    with own_directory(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {"state", ".lock"}


def test_an_error_of_the_writer_leaves_nothing_behind(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyError("no such key")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "state", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_belongs_to_one_run(tmp_path):
    first, second = own_directory(tmp_path / "run"), own_directory(tmp_path / "run")
    with first, pytest.raises(RunDirectoryBusy, match="is in use by another run"):
        second.__enter__()
    with own_directory(tmp_path / "run") as free_again:
        assert free_again.is_dir()


def test_a_run_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="file/run': Not a directory"):
        own_directory(tmp_path / "file" / "run").__enter__()
