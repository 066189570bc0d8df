"""Real text as bytes: found, read in a fixed order, split, and cut into windows."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from wolong_fx.errors import NoText, TextTooShort
from wolong_fx.train.config import DataConfig

VOCABULARY = 256  # a token is a byte: every file can be read, nothing has to be learned or stored first

# Installed packages are not the standard library, and distributions differ in which tests they ship.
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests"}


@dataclass(frozen=True)
class Corpus:
    """train, validation: (n,) uint8; digest tells texts and their splits apart."""

    train: Tensor
    validation: Tensor
    digest: str


def load_corpus(config: DataConfig) -> Corpus:
    """Read the text and split it; raises NoText, TextTooShort."""
    source, documents = _read_documents(config)
    cuts = [len(d) - int(len(d) * config.validation) for d in documents]
    train = b"".join(d[:cut] for d, cut in zip(documents, cuts, strict=True))
    validation = b"".join(d[cut:] for d, cut in zip(documents, cuts, strict=True))
    for part, text in (("training", train), ("validation", validation)):
        _check_size(source, part, len(text), config.length)
    digest = "-".join(hashlib.sha256(part).hexdigest()[:8] for part in (train, validation))
    return Corpus(_to_tensor(train), _to_tensor(validation), digest)


class Windows:
    """Windows of a text, each seen once an epoch, in an order that a seed and a position determine.

    An epoch cuts the text at a random phase and shuffles the pieces. Nothing is kept between batches:
    a run that knows its position goes on exactly where it was.
    """

    def __init__(self, text: Tensor, length: int, *, seed: int) -> None:
        self.text, self.length, self.seed = text, length, seed
        self.count = (len(text) - length) // length
        self._epoch_starts = lru_cache(maxsize=2)(self._shuffle_epoch)

    def batch(self, position: int, size: int) -> tuple[Tensor, Tensor]:
        """Windows position .. position+size-1: tokens and the bytes that follow them, (T, B) int64 each."""
        starts = torch.stack([self._start(p) for p in range(position, position + size)])
        window_BT = self.text[starts[:, None] + torch.arange(self.length + 1)]
        window_TB = window_BT.T.long()
        return window_TB[:-1].contiguous(), window_TB[1:].contiguous()

    def _start(self, position: int) -> Tensor:
        epoch, index = divmod(position, self.count)
        return self._epoch_starts(epoch)[index]

    def _shuffle_epoch(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        phase = torch.randint(self.length, (), generator=generator)
        return torch.randperm(self.count, generator=generator) * self.length + phase


def _read_documents(config: DataConfig) -> tuple[str, list[bytes]]:
    if not config.path:
        root = Path(sysconfig.get_path("stdlib"))
        files = _find_files(root, config.pattern or "*.py", _NOT_STDLIB)
    else:
        root = Path(config.path).expanduser()
        files = [root] if root.is_file() else _find_files(root, config.pattern or "*", set())
    try:
        documents = [text for file in files if (text := file.read_bytes()) and b"\0" not in text]
    except OSError as error:
        raise NoText(path=str(error.filename), because=error.strerror) from error
    if not documents:
        because = f"no text file matches {config.pattern or '*'!r}" if root.exists() else "it does not exist"
        raise NoText(path=str(root), because=because)
    return str(root), documents


def _find_files(root: Path, pattern: str, skipped: set[str]) -> list[Path]:
    """Files below a folder in the order of their relative paths, the same on every file system."""
    found = (Path(folder, name) for folder, names in _walk(root, skipped) for name in names)
    matching = (path for path in found if fnmatch(path.name, pattern) and path.is_file())
    return sorted(matching, key=lambda path: path.relative_to(root).as_posix())


def _walk(root: Path, skipped: set[str]) -> Iterator[tuple[str, list[str]]]:
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in skipped and not f.startswith((".", "__pycache__"))]
        yield folder, [name for name in names if not name.startswith(".")]


def _check_size(source: str, part: str, size: int, length: int) -> None:
    needed = 2 * length  # one window, its last target, and room for any phase
    if size < needed:
        raise TextTooShort(path=source, part=part, size=size, length=length, needed=needed)


def _to_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
