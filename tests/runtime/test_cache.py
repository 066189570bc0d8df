from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wolong_fx.errors import CompilerFailed, NoCompiler
from wolong_fx.options import Options
from wolong_fx.toolchain import cache as cache_module
from wolong_fx.toolchain.cache import KernelCache, build_private, cache_key
from wolong_fx.toolchain.compiler import build_library
from wolong_fx.toolchain.sealed_file import is_sealed, seal

KEY = "ab" * 32


def answering(number: int):
    """A build of a library whose answer() is `number`."""
    source = f'extern "C" int answer() {{ return {number}; }}'
    return lambda directory: build_library(source, (), directory)


def ask(path: str) -> int:
    return ctypes.CDLL(path).answer()


def not_again(directory: Path) -> Path:
    raise AssertionError("built again")


@pytest.fixture
def cache(tmp_path) -> KernelCache:
    return KernelCache(tmp_path / "cache")


def key(number: int) -> str:
    return cache_key(str(number), ())


# ---- names


def test_a_key_changes_with_source_and_flags():
    assert cache_key("a", ("-mfma",)) == cache_key("a", ("-mfma",))
    assert len({cache_key("a", ()), cache_key("b", ()), cache_key("a", ("-mfma",))}) == 3


def test_a_key_names_the_processor_only_when_the_flags_do(monkeypatch):
    portable, native = cache_key("a", ("-mavx2",)), cache_key("a", ("-march=native",))
    monkeypatch.setattr(cache_module, "processor_identity", lambda: "another")
    assert cache_key("a", ("-mavx2",)) == portable
    assert cache_key("a", ("-march=native",)) != native


def test_the_directory_is_the_options_own_or_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert KernelCache.of(Options()).directory == tmp_path / ".cache" / "wolong_fx"
    assert KernelCache.of(Options(cache_dir="~/k")).directory == tmp_path / "k"
    assert KernelCache.of(Options(cache_size_mb=3)).cap_bytes == 3 << 20


# ---- entries


@pytest.mark.cpu
def test_an_entry_is_built_once_and_found_again(cache):
    assert cache.fetch(KEY, answering(1), ask) == 1
    assert cache.fetch(KEY, not_again, ask) == 1
    assert cache.info().entries == 1


@pytest.mark.cpu
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
    ],
    ids=["empty", "a stump", "one byte short", "one bit flipped"],
)
def test_a_damaged_entry_is_never_loaded_but_built_again(cache, child, damage):
    # Each load in a process of its own: within one, the system knows a library again by its path.
    assert child(lambda: cache.fetch(KEY, answering(1), ask) == 1).succeeds()
    (entry,) = (cache.directory / "kernels").iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert not is_sealed(entry)
    assert child(lambda: cache.fetch(KEY, answering(2), ask) == 2).succeeds()
    assert child(lambda: cache.fetch(KEY, not_again, ask) == 2).succeeds()


def test_a_sealed_file_keeps_its_content_in_front(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"body")
    assert not is_sealed(file)
    seal(file)
    assert is_sealed(file)
    assert file.read_bytes().startswith(b"body")


@pytest.mark.cpu
def test_an_entry_deleted_between_finding_and_loading_is_built_again(cache, child):
    assert child(lambda: cache.fetch(KEY, answering(1), ask) == 1).succeeds()
    (entry,) = (cache.directory / "kernels").iterdir()
    loads = []

    def load(path: str) -> int:
        loads.append(path)
        if len(loads) == 1:  # another process prunes
            entry.unlink()
        return ask(path)

    assert cache.fetch(KEY, answering(2), load) == 2
    assert cache.info().entries == 1


@pytest.mark.cpu
def test_another_compiler_builds_its_own_entry_but_without_one_any_entry_serves(cache, compiler, monkeypatch):
    cache.fetch(KEY, answering(1), ask)
    compiler.script.write_text(compiler.script.read_text() + "# another version\n")
    assert cache.find(KEY) is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cache.fetch(KEY, not_again, ask) == 1


@pytest.mark.cpu
def test_what_the_builder_raises_is_raised_and_leaves_nothing(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CompilerFailed):
        cache.fetch(KEY, lambda directory: build_library("nonsense", (), directory), ask)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler):
        cache.fetch(KEY, answering(1), ask)
    assert cache.info().entries == 0
    assert list((cache.directory / "tmp").iterdir()) == []


# ---- size


def entries_of(cache: KernelCache) -> set[str]:
    return {path.name.partition("-")[0] for path in (cache.directory / "kernels").iterdir()}


def age(cache: KernelCache, number: int, seconds: float) -> None:
    path = cache.find(key(number))
    assert path is not None
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


@pytest.mark.cpu
def test_above_the_cap_the_entries_used_longest_ago_go(cache):
    for number in range(4):
        cache.fetch(key(number), answering(number), ask)
        age(cache, number, seconds=100 - number)
    cache.fetch(key(0), not_again, ask)  # used now: the youngest
    size = cache.info().size_bytes // 4
    small = KernelCache(cache.directory, cap_bytes=2 * size + size // 2)
    assert small.prune() == 2
    assert entries_of(cache) == {key(0), key(3)}
    small.fetch(key(4), answering(4), ask)  # building prunes too
    assert entries_of(cache) == {key(0), key(4)}


@pytest.mark.cpu
def test_clear_deletes_every_entry_and_loaded_ones_go_on_working(cache):
    library = cache.fetch(KEY, answering(5), ctypes.CDLL)
    cache.fetch(key(1), answering(1), ask)
    assert cache.clear() == 2
    assert cache.info().entries == 0
    assert library.answer() == 5


def test_an_empty_or_missing_cache_can_be_asked_and_cleared(cache):
    assert (cache.info().entries, cache.info().size_bytes) == (0, 0)
    assert (cache.clear(), cache.prune(), cache.find(KEY)) == (0, 0, None)


# ---- places that cannot be written


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="wolong_fx")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def private_builds(tmp_path, monkeypatch) -> Path:
    """Where kernels that cannot be cached are built."""
    directory = tmp_path / "private"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


@pytest.mark.cpu
def test_where_no_directory_can_be_made_kernels_are_private_and_it_is_said_once(
    tmp_path, warnings, private_builds
):
    (tmp_path / "file").write_text("")
    cache = KernelCache(tmp_path / "file" / "cache")
    assert [cache.fetch(key(n), answering(n), ask) for n in (1, 2)] == [1, 2]
    assert list(private_builds.iterdir()) == []
    (message,) = warnings()
    assert "cannot keep kernels in" in message
    assert "WOLONG_CACHE_DIR" in message


def as_another_user() -> None:
    """In a child: give up root, whom file modes do not bind."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@pytest.mark.cpu
def test_a_read_only_directory_serves_what_it_has_and_the_rest_is_private(child, monkeypatch):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        cache = KernelCache(Path(directory))
        cache.fetch(KEY, answering(1), ask)
        for path in [*Path(directory).iterdir(), Path(directory)]:
            path.chmod(0o555)

        def read_only() -> bool:
            as_another_user()
            return cache.fetch(KEY, not_again, ask) == 1 and cache.fetch(key(2), answering(2), ask) == 2

        assert child(read_only).succeeds()
        assert cache.info().entries == 1


@pytest.mark.cpu
@pytest.mark.parametrize("step", ["FileLock", "seal", "os.replace", "_sync_directory"])
def test_a_disk_that_fills_up_at_any_step_costs_the_cache_not_the_kernel(cache, step, monkeypatch, warnings):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"wolong_fx.toolchain.cache.{step}", full)
    assert cache.fetch(KEY, answering(1), ask) == 1
    assert len(warnings()) == 1
    assert list((cache.directory / "tmp").iterdir()) == []


@pytest.mark.private_mounts
@pytest.mark.cpu
def test_a_really_full_disk_costs_the_cache_not_the_kernel(cache, child):
    def on_a_full_disk() -> bool:
        cache.directory.mkdir()
        mount_small_disk(cache.directory)
        fill(cache.directory / "ballast", leave=8 << 10)
        return cache.fetch(KEY, answering(1), ask) == 1 and cache.info().entries == 0

    assert child(on_a_full_disk).succeeds()


def mount_small_disk(directory: Path) -> None:
    """64 KB that only this process sees and that go with it."""
    new_mount_namespace, recursive_private = 0x20000, 0x44000
    libc = ctypes.CDLL(None)
    assert libc.unshare(new_mount_namespace) == 0
    assert libc.mount(b"none", b"/", None, recursive_private, None) == 0
    assert libc.mount(b"none", bytes(directory), b"tmpfs", 0, b"size=64k") == 0


def fill(file: Path, leave: int) -> None:
    with open(file, "wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while ballast.write(bytes(4096)):
            pass
    os.truncate(file, file.stat().st_size - leave)


@pytest.mark.cpu
def test_a_private_build_leaves_nothing_behind(private_builds):
    assert build_private(answering(3), ask) == 3
    assert list(private_builds.iterdir()) == []


@pytest.mark.cpu
def test_a_second_process_starts_from_the_cache_without_any_compiler(options, tmp_path):
    program = (
        "import torch\n"
        "from wolong_fx.options import Options\n"
        "from wolong_fx.runtime import load_kernel\n"
        "from wolong_fx.testing.handwritten import add_then_reverse\n"
        "kernel = load_kernel(add_then_reverse(5), Options.of())\n"
        "assert kernel(torch.arange(5.), torch.ones(5))[0].tolist() == [5, 4, 3, 2, 1]\n"
    )
    environment = os.environ | {"WOLONG_CACHE_DIR": options.cache_dir}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    bare = environment | {"PATH": str(tmp_path), "CXX": ""}
    subprocess.run([sys.executable, "-c", program], env=bare, check=True, timeout=120)
