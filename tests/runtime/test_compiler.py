from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from wolong_fx.errors import CompilerFailed, CompilerTookTooLong, IsaNotHere, NoCompiler
from wolong_fx.toolchain import choose_isa, isa, isa_flags
from wolong_fx.toolchain.compiler import build_library, compiler_version, find_compiler, get_compiler

EMPTY = 'extern "C" int answer() { return 42; }'


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_without_a_compiler_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    with pytest.raises(NoCompiler, match=r"looked for g\+\+, clang\+\+, c\+\+ .*`apt install g\+\+`"):
        build_library(EMPTY, (), tmp_path)


def test_a_cxx_that_is_not_there_is_not_replaced_by_another_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(NoCompiler, match="looked for CXX=no-such-compiler -O1"):
        get_compiler()


@pytest.mark.cpu
def test_cxx_may_hold_arguments(tmp_path, monkeypatch):
    real = get_compiler().command[0]
    wrapper = script(tmp_path / "launcher", f'test "$1" = --quiet && shift && exec {real} "$@"')
    monkeypatch.setenv("CXX", f"{wrapper} --quiet")
    assert build_library(EMPTY, (), tmp_path).is_file()


@pytest.mark.cpu
def test_the_fingerprint_tells_an_updated_compiler_without_running_it(tmp_path, monkeypatch):
    script(tmp_path / "g++", f"echo run >> {tmp_path}/runs")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    before = get_compiler()
    assert before == get_compiler()
    script(tmp_path / "g++", "echo now another version")
    assert before.fingerprint != get_compiler().fingerprint
    assert not (tmp_path / "runs").exists()


@pytest.mark.cpu
def test_the_version_is_what_the_compiler_says_first():
    assert any(name in compiler_version(get_compiler()) for name in ("g++", "clang", "GCC", "c++"))


@pytest.mark.cpu
def test_a_rejected_source_is_kept_and_its_first_errors_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        with pytest.raises(CompilerFailed, match=r"error: .*no_such_type") as failed:
            build_library("no_such_type x;", (), tmp_path)
    kept = Path(str(failed.value.facts["source"]))
    assert kept.read_text() == "no_such_type x;"
    assert str(kept) in str(failed.value)
    assert [kept] == list(tmp_path.glob("wolong_fx-*"))


def test_a_compiler_past_its_time_limit_is_killed_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pids = tmp_path / "pids"
    monkeypatch.setenv("CXX", str(script(tmp_path / "stuck", f"sleep 300 & echo $! $$ > {pids}; wait")))
    start = time.monotonic()
    with pytest.raises(CompilerTookTooLong, match=r"stopped after 0\.5 s"):
        build_library(EMPTY, (), tmp_path, limit=0.5)
    assert time.monotonic() - start < 30
    leftover, driver = (int(pid) for pid in pids.read_text().split())
    assert not psutil.pid_exists(driver)
    deadline = time.monotonic() + 10
    while _is_running(leftover) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(leftover)


def _is_running(pid: int) -> bool:
    """An orphan is reaped by whoever is process 1, sooner or later: a zombie has stopped too."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_full_disk_is_told_from_a_bad_source(tmp_path, monkeypatch):
    said = "ld: final link failed: No space left on device"
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++", f"cat > /dev/null; echo '{said}' >&2; exit 1")))
    with pytest.raises(OSError, match="No space left on device"):
        build_library(EMPTY, (), tmp_path)


@pytest.mark.cpu
def test_the_compilers_own_temporary_files_stay_in_the_build_directory(tmp_path, monkeypatch):
    real = get_compiler().command[0]
    monkeypatch.setenv(
        "CXX", str(script(tmp_path / "g++", f'echo "$TMPDIR" > {tmp_path}/seen; exec {real} "$@"'))
    )
    build_library(EMPTY, (), tmp_path)
    assert (tmp_path / "seen").read_text().strip() == str(tmp_path)


# ---- instruction sets


@pytest.fixture
def processor(monkeypatch):
    """Makes this processor one with the given features."""
    return lambda *features: monkeypatch.setattr(isa, "processor_flags", lambda: frozenset(features))


def test_auto_is_the_best_instruction_set_whose_every_feature_is_here(processor):
    processor(*isa.NEEDS["avx512"], "sse2")
    assert choose_isa("auto") == "avx512"
    processor(*(isa.NEEDS["avx512"] - {"avx512vl"}))
    assert choose_isa("auto") == "avx2"
    processor("avx2")  # without fma
    assert choose_isa("auto") == "portable"


def test_an_instruction_set_that_is_not_here_is_refused_with_the_best_that_is(processor):
    processor(*isa.NEEDS["avx2"])
    with pytest.raises(IsaNotHere, match=r"no 'avx512': it lacks \['avx512bw', .*use isa='avx2'"):
        choose_isa("avx512")
    assert choose_isa("portable") == "portable"


@pytest.mark.cpu
@pytest.mark.parametrize("name", isa.NEEDS)
def test_every_instruction_set_has_flags_that_the_compiler_knows(name, tmp_path):
    assert build_library(EMPTY, isa_flags(name), tmp_path).is_file()


def test_flags_never_depend_on_the_machine_they_are_written_on():
    assert not [flag for name in isa.NEEDS for flag in isa_flags(name) if "native" in flag]


def test_features_are_those_that_the_system_lists():
    listed = Path("/proc/cpuinfo")
    flags = listed.read_text() if listed.exists() else ""
    assert all(flag in flags for flag in isa.processor_flags())
    assert os.uname().machine != "x86_64" or "sse2" in isa.processor_flags()
