"""The kernel cache: files named by what they were built from, shared by all processes of a user.

Layout of the directory:
    kernels/<key>-<compiler>.so   sealed with a checksum, put there by one rename, never written again;
                                  .gpu if Triton made it
    locks/<two digits of a key>   held while a kernel of such a key is built
    tmp/<key>.<random>/           a build in progress; without the lock held, what a killed builder left

Whoever dies at whatever moment leaves a complete entry or none: the system frees its lock, and the next
builder of that key, or the next prune, sweeps what it left in tmp/.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock, Timeout

from wolong_fx.toolchain.compiler import COMMON_FLAGS, TIME_LIMIT, find_compiler
from wolong_fx.toolchain.isa import processor_identity
from wolong_fx.toolchain.notices import warn_once
from wolong_fx.toolchain.sealed_file import is_sealed, seal

Library = TypeVar("Library")
Build = Callable[[Path], Path]
"""Makes a shared object in the given empty directory and returns its path."""

_PATIENCE = TIME_LIMIT + 30.0
_MEGABYTE = 1 << 20


def cache_key(source: str, flags: Sequence[str]) -> str:
    """Names a kernel by all that its code depends on, the compiler excepted.

    The compiler is the other half of an entry's name: where none is installed, any compiler's entry will do.
    """
    native = any("native" in flag for flag in flags)
    parts = (source, COMMON_FLAGS, tuple(flags), processor_identity() if native else "")
    return sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class CacheInfo:
    """What `wolong cache` shows."""

    directory: Path
    entries: int
    size_bytes: int
    cap_bytes: int


class CacheOptions(Protocol):
    """What options say of the cache; see Options."""

    @property
    def cache_dir(self) -> str: ...

    @property
    def cache_size_mb(self) -> int: ...


@dataclass(frozen=True)
class KernelCache:
    """The cache under one directory; it keeps nothing in memory, so any number of objects may share it.

    triton: version of the Triton that makes the kernels; "" if the C++ compiler does
    """

    directory: Path
    cap_bytes: int = 2048 * _MEGABYTE
    triton: str = ""

    @classmethod
    def of(cls, options: CacheOptions, *, triton: str = "") -> KernelCache:
        directory = Path(options.cache_dir).expanduser() if options.cache_dir else _default_directory()
        return cls(directory, options.cache_size_mb * _MEGABYTE, triton)

    def fetch(self, key: str, build: Build, load: Callable[[str], Library]) -> Library:
        """`load` applied to the entry of `key`, after `build` if there is none that is whole.

        However many processes ask at once, one of them builds. When the cache cannot be used (a read-only
        directory, a full disk, no file locks) the kernel is built in a directory of its own, and the user is
        told once. Raises what `build` raises, and OSError when `load` fails there too.
        """
        library = self._load_entry(key, load)
        if library is not None:
            return library
        try:
            return self._build_shared(key, build, load)
        except (OSError, NotImplementedError) as error:
            library = build_private(build, load)
            self._tell_unusable(error)
        return library

    def find(self, key: str) -> Path | None:
        """A whole entry: this compiler's, or anyone's where no compiler is installed."""
        is_certain = self.triton or find_compiler()
        candidates = [self._entry(key)] if is_certain else sorted(self._kernels.glob(f"{key}-*.so"))
        return next((path for path in candidates if is_sealed(path)), None)

    def info(self) -> CacheInfo:
        sizes = [size for _, size, _ in self._entries()]
        return CacheInfo(self.directory, len(sizes), sum(sizes), self.cap_bytes)

    def clear(self) -> int:
        """Delete every entry and what killed builders left; the number of entries deleted."""
        return self._delete_down_to(-1)

    def prune(self) -> int:
        """Delete the entries used longest ago until the cap holds; the number deleted."""
        return self._delete_down_to(self.cap_bytes)

    @property
    def _kernels(self) -> Path:
        return self.directory / "kernels"

    @property
    def _builds(self) -> Path:
        return self.directory / "tmp"

    def _entry(self, key: str) -> Path:
        if self.triton:
            return self._kernels / f"{key}-triton-{self.triton}.gpu"
        compiler = find_compiler()
        return self._kernels / f"{key}-{compiler.fingerprint if compiler else 'none'}.so"

    def _load_entry(self, key: str, load: Callable[[str], Library]) -> Library | None:
        path = self.find(key)
        if path is None:
            return None
        with suppress(OSError):  # read-only: its owner's uses alone keep it
            os.utime(path)
        with suppress(OSError):  # deleted since, or on a disk mounted noexec
            return load(str(path))
        return None

    def _build_shared(self, key: str, build: Build, load: Callable[[str], Library]) -> Library:
        """Build and publish under the lock; raises OSError when this directory cannot be used."""
        with self._locked(key):
            library = self._load_entry(key, load)
            if library is not None:
                return library
            self._sweep(key)
            with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=self._builds) as directory:
                built = build(Path(directory))
                seal(built)
                entry = self._entry(key)
                os.replace(built, entry)
            _sync_directory(self._kernels)
            library = load(str(entry))
        self.prune()
        return library

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of `key`: one of 256, since locks are never deleted (a waiter may have one open)."""
        for directory in (self._kernels, self._builds, self.directory / "locks"):
            directory.mkdir(parents=True, exist_ok=True)
        with self._lock(key).acquire(timeout=_PATIENCE, poll_interval=0.02):
            yield

    def _lock(self, key: str) -> FileLock:
        return FileLock(self.directory / "locks" / key[:2])

    def _sweep(self, key: str) -> None:
        """Remove what killed builders of `key` left; only for the holder of its lock."""
        for left in self._builds.glob(f"{key}.*"):
            shutil.rmtree(left, ignore_errors=True)

    def _sweep_all(self) -> None:
        for key in {path.name.partition(".")[0] for path in self._builds.glob("*.*")}:
            with suppress(Timeout, OSError), self._lock(key).acquire(timeout=0):
                self._sweep(key)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path), longest ago first."""
        found = []
        for path in (*self._kernels.glob("*.so"), *self._kernels.glob("*.gpu")):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _delete_down_to(self, size_bytes: int) -> int:
        """Delete oldest entries. Who has one loaded keeps its pages; who is about to load it builds again."""
        self._sweep_all()
        entries = self._entries()
        total, deleted = sum(size for _, size, _ in entries), 0
        for _, size, path in entries:
            if total <= size_bytes:
                break
            path.unlink(missing_ok=True)
            total, deleted = total - size, deleted + 1
        return deleted

    def _tell_unusable(self, error: Exception) -> None:
        warn_once(
            f"cache {self.directory}",
            f"cannot keep kernels in {str(self.directory)!r} ({error}): each process builds its own until "
            "WOLONG_CACHE_DIR names a writable directory with room.",
        )


def build_private(build: Build, load: Callable[[str], Library]) -> Library:
    """Build and load a kernel that no other process will see; nothing is left on the disk."""
    with tempfile.TemporaryDirectory(prefix="wolong_fx-") as directory:
        return load(str(build(Path(directory))))


def _default_directory() -> Path:
    try:
        return Path.home() / ".cache" / "wolong_fx"
    except RuntimeError:  # a user without a home, as in some containers: a path that cannot be made
        return Path(os.devnull) / "wolong_fx"


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
