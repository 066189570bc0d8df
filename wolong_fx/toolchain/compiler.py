"""The C++ compiler: finding it, and building a source into a shared object in a process of its own."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from wolong_fx.errors import CompilerFailed, CompilerTookTooLong, NoCompiler

CANDIDATES = ("g++", "clang++", "c++")

COMMON_FLAGS = (
    "-std=c++17",
    "-O2",  # -O3 was no faster on any kernel and takes longer
    "-shared",
    "-fPIC",
    "-pipe",
    "-w",
    # One rounding for a*b+c is what the micro-kernels live on. Never -ffast-math: NaN, infinities and signed
    # zeros must come out as eager's do.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    # The arena holds values of several types in the same bytes, one after the other.
    "-fno-strict-aliasing",
    # Integer tensors wrap around.
    "-fwrapv",
    "-fno-exceptions",
    "-fno-rtti",
)

TIME_LIMIT = 300.0
"""Seconds for one kernel: twenty times the slowest seen, so only a stuck compiler meets it."""

_SHOWN_LINES = 5


@dataclass(frozen=True)
class Compiler:
    """A compiler command; `fingerprint` tells two compilers apart without running either."""

    command: tuple[str, ...]
    fingerprint: str


def find_compiler() -> Compiler | None:
    """The compiler that CXX names (it may hold arguments: "ccache g++"), else the first one on PATH."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [[name] for name in CANDIDATES]:
        path = shutil.which(command[0])
        if path:
            return Compiler((path, *command[1:]), _fingerprint(path, command[1:]))
    return None


def get_compiler() -> Compiler:
    """As find_compiler; raises NoCompiler when there is none."""
    compiler = find_compiler()
    if compiler is None:
        chosen = os.environ.get("CXX")
        looked_for = f"CXX={chosen}" if chosen else ", ".join(CANDIDATES)
        raise NoCompiler(looked_for=looked_for, path=os.environ.get("PATH", ""))
    return compiler


@cache
def compiler_version(compiler: Compiler) -> str:
    """First line of what the compiler says of itself; runs it once."""
    said = subprocess.run([*compiler.command, "--version"], capture_output=True, text=True, timeout=30)
    return (said.stdout.splitlines() or ["unknown"])[0]


def build_library(source: str, flags: Sequence[str], directory: Path, *, limit: float = TIME_LIMIT) -> Path:
    """Compile `source` to a shared object in `directory`, where the compiler's own temporary files go too.

    limit: seconds
    Raises NoCompiler, CompilerFailed, CompilerTookTooLong, and OSError(ENOSPC) when the disk is full.
    """
    compiler, library = get_compiler(), directory / "kernel.so"
    command = [*compiler.command, *COMMON_FLAGS, *flags, "-x", "c++", "-", "-o", str(library)]
    # LC_ALL: _fail looks for one message. TMPDIR: whoever sweeps `directory` sweeps everything.
    env = os.environ | {"LC_ALL": "C", "TMPDIR": str(directory)}
    status, said = _run(command, source, env, limit)
    if status is None:
        raise CompilerTookTooLong(command=shlex.join(command), seconds=limit, source=keep_source(source))
    if status != 0 or not library.is_file():
        _fail(shlex.join(command), status, said, source, directory)
    return library


def kept_path(source: str, suffix: str) -> Path:
    """Where a person finds a source that would not compile.

    Named by its content, so that failing again and again leaves one file.
    """
    digest = sha256(source.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"wolong_fx-{digest}{suffix}"


def keep_source(source: str, path: Path | None = None) -> str:
    """Write a source that would not compile where a person can read it; the path, or why there is none."""
    path = path or kept_path(source, ".cpp")
    try:
        with suppress(FileExistsError), open(path, "x") as kept:
            kept.write(source)
    except OSError as error:
        return f"nowhere ({error.strerror})"
    return str(path)


def _run(command: list[str], source: str, env: dict[str, str], limit: float) -> tuple[int | None, str]:
    """Exit status (None past the limit) and output of a command that leads a process group of its own.

    The group is killed as a whole: g++ only drives cc1plus and ld, which would go on without it.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=env, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(source, timeout=limit)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _fail(command: str, status: int, said: str, source: str, directory: Path) -> None:
    for full in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(full) in said:
            raise OSError(full, os.strerror(full), str(directory))
    lines = [line for line in said.splitlines() if line.strip()]
    shown = "\n".join(lines[:_SHOWN_LINES]) or "it said nothing"
    raise CompilerFailed(status=status, command=command, said=shown, source=keep_source(source))


def _fingerprint(path: str, arguments: Sequence[str]) -> str:
    """Changes when the compiler is replaced by another version, and costs one stat."""
    real = os.path.realpath(path)
    stat = os.stat(real)
    return sha256(repr((real, stat.st_size, stat.st_mtime_ns, *arguments)).encode()).hexdigest()[:12]
