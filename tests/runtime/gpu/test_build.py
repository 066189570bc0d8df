"""The compiler's process: whatever it does, the caller gets a binary or one clear error, and a file that
shows the same failure again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from wolong_fx.errors import TritonFailed
from wolong_fx.runtime.gpu import ARCHITECTURES, TritonImage, build, build_triton

KERNEL = """\
import triton
import triton.language as tl

from wolong_fx.codegen.triton.barrier import grid_barrier_by_one_thread as grid_barrier
from wolong_fx.codegen.triton.library import *

@triton.jit
def wolong(tensor0, word, failure, G: tl.constexpr):
    tl.store(tensor0 + tl.program_id(0), floor_div(tl.program_id(0) - 7, 2))
    grid_barrier(word, G)
"""
MISTAKEN = KERNEL.replace("floor_div(tl.program_id(0) - 7, 2)", "tl.arange(0, 3)")


def image(text: str = KERNEL, architecture: str = "sm_90") -> TritonImage:
    return TritonImage(text, (("tensor0", "*i32"),), ARCHITECTURES[architecture], blocks=4)


@pytest.fixture(autouse=True)
def _kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def failure_of(wanted: str, *, limit: float = 60.0, text: str = KERNEL) -> Path:
    """Building fails with these words; the file that is kept."""
    with pytest.raises(TritonFailed, match=wanted) as failed:
        build_triton(image(text), limit=limit)
    return Path(str(failed.value.facts["source"]))


def rerun(kept: Path) -> subprocess.CompletedProcess[str]:
    """What the command in the file's head gives, where nothing of ours can be imported."""
    command = re.search(r"^#     (TRITON_\S+ timeout .*)$", kept.read_text(), re.MULTILINE)
    assert command is not None
    isolated = command[1].replace(" -P ", " -I ")
    return subprocess.run(["sh", "-c", isolated], capture_output=True, text=True, cwd="/")


def test_a_kernel_is_built_with_what_it_takes():
    binary = build_triton(image())
    assert binary.code[:4] == b"\x7fELF" and ".visible .entry wolong" in binary.assembly
    assert 0 < binary.registers < 64 and binary.spill_bytes == 0


def test_what_triton_rejects_is_kept_as_a_file_that_shows_it_again():
    kept = failure_of("power of 2", text=MISTAKEN)
    head = kept.read_text()
    for words in ("sm_90", "power of 2", "Seen with Triton", f"Python {sys.version.split()[0]}"):
        assert words in head
    assert "wolong_fx." not in head
    again = rerun(kept)
    assert again.returncode == 1 and "power of 2" in again.stderr


def test_failing_again_leaves_one_file():
    first, second = (failure_of("SyntaxError", text="def wolong(: no") for _ in range(2))
    assert first == second and list(first.parent.iterdir()) == [first]


# ---- processes that misbehave

WORKERS = {
    "crashes": (
        "import os, sys\nsys.stderr.write('LLVM ERROR: out of luck\\n')\nsys.stderr.flush()\nos.abort()",
        r"SIGABRT \(LLVM ERROR: out of luck\)",
    ),
    "ends early": ("import sys\nsys.exit(3)", "ended with status 3"),
    "says nothing": ("", "answered b''"),
    "prints garbage": ("import os\nos.write(1, bytes(range(256)))", r"answered b'\\x00"),
    "prints before it answers": ("print('hello')\nprint('{}')", r"answered b'hello"),
    "answers half": ("print('{\"registers\": 12, \"spill_by', end='')", "answered b'{"),
    "answers another shape": ("print('[1, 2]')", "answered b'"),
    "leaves a field out": ("print('{\"registers\": 12}')", "answered b'{"),
    "code is no code": ('print(\'{"registers": 12, "code": "%"}\')', "answered b'{"),
}


def use_worker(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = folder / "worker.py"
    worker.write_text("import sys\nsys.stdin.read()\n" + text)
    monkeypatch.setattr(build, "WORKER", worker)


@pytest.mark.parametrize("does", WORKERS)
def test_a_process_that_fails_is_one_clear_error_with_a_file(does, tmp_path, monkeypatch):
    text, wanted = WORKERS[does]
    use_worker(text, tmp_path, monkeypatch)
    assert "compile_kernel()" in failure_of(wanted).read_text()


def test_last_words_stand_in_the_file_that_compiles_when_the_fault_was_not_the_kernels(tmp_path, monkeypatch):
    use_worker(WORKERS["crashes"][0], tmp_path, monkeypatch)
    kept = failure_of("SIGABRT")
    assert "#     LLVM ERROR: out of luck" in kept.read_text()
    assert rerun(kept).stdout == "compiled\n"


def test_a_process_that_hangs_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    child = tmp_path / "child"
    use_worker(
        "import subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(child)!r}, 'w').write(str(process.pid))\n"
        "time.sleep(300)",
        tmp_path,
        monkeypatch,
    )
    start = time.monotonic()
    kept = failure_of("stopped after 2 s", limit=2.0)
    assert time.monotonic() - start < 20
    assert "timeout 2 " in kept.read_text()
    assert is_gone(int(child.read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, waiting for it a little: it may be a zombie of init's for a moment."""
    for _ in range(100):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                os.kill(pid, 0)
                time.sleep(0.05)
                continue
        return True
    return False
