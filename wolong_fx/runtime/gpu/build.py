"""Triton text to a GPU's machine code, in a process of its own: a compiler that crashes or hangs takes no
one along.

No GPU is needed. What ptxas says of registers and spills comes back with the code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

from wolong_fx.errors import TritonFailed
from wolong_fx.runtime.gpu.architectures import Architecture, resident_blocks
from wolong_fx.runtime.gpu.image import TritonImage
from wolong_fx.runtime.gpu.standalone import keep_repro, standalone

TIME_LIMIT = 300.0
"""Seconds for one kernel: twenty times the slowest seen, so only a stuck compiler meets it."""

WORKER = Path(__file__).with_name("build_worker.py")


@dataclass(frozen=True)
class TritonBinary:
    """A compiled kernel and what it takes.

    assembly: PTX by which the binary was made
    registers: of a thread; spill_bytes: stored and loaded again by it, because registers did not suffice
    shared_bytes: of a block
    """

    code: bytes
    assembly: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    architecture: Architecture = field(repr=False)

    @property
    def resident_blocks(self) -> int:
        """Blocks that the largest device of the architecture holds together."""
        of_one = resident_blocks(
            self.architecture,
            registers=self.registers,
            shared_bytes=self.shared_bytes,
            warps=self.warps,
        )
        return of_one * self.architecture.multiprocessors


def build_triton(image: TritonImage, *, limit: float = TIME_LIMIT) -> TritonBinary:
    """Compile a kernel.

    limit: seconds
    Raises TritonFailed when Triton or ptxas fails, crashes, takes longer, or answers nonsense.
    """
    request = {"module": standalone(image), "capability": image.architecture.capability}
    status, reply, said = _ask(json.dumps(request).encode(), limit)
    if status is None:
        raise _failed(image, f"it was stopped after {limit:g} s", said, limit)
    if status != 0:
        raise _failed(image, f"its process ended with {_ending(status)}{_last_line(said)}", said, limit)
    try:
        result = json.loads(reply)
        if "error" not in result:
            result["code"] = b64decode(result["code"], validate=True)
            return TritonBinary(**result, warps=image.warps, architecture=image.architecture)
    except (ValueError, TypeError, KeyError):  # no JSON, no object, or other fields
        raise _failed(image, f"its process answered {reply[:60]!r}", said, limit) from None
    raise _failed(image, result["error"], said, limit)


def _ask(request: bytes, limit: float) -> tuple[int | None, bytes, str]:
    """Exit status (None past the limit), answer and last words of a compiler's process.

    Its group is killed as a whole: ptxas, which it runs, would go on without it.
    """
    command = [sys.executable, "-P", str(WORKER)]
    with Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True) as process:
        try:
            reply, said = process.communicate(request, timeout=limit)
            return process.returncode, reply, said.decode(errors="replace")
        except TimeoutExpired as error:
            return None, b"", (error.stderr or b"").decode(errors="replace")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _failed(image: TritonImage, because: str, said: str, limit: float) -> TritonFailed:
    return TritonFailed(
        architecture=image.architecture.name, because=because, source=keep_repro(image, because, said, limit)
    )


def _ending(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""
