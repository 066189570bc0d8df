"""Triton text to a GPU's machine code, in a process of its own: a compiler that crashes or hangs takes no
one along.

No GPU is needed. What ptxas says of registers and spills comes back with the code.
"""

from __future__ import annotations

import pickle
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

from wolong_fx.errors import TritonFailed
from wolong_fx.runtime.compiler import keep_source
from wolong_fx.runtime.gpu.architectures import Architecture, resident_blocks

TIME_LIMIT = 300.0
"""Seconds for one kernel: twenty times the slowest seen, so only a stuck compiler meets it."""


LIBRARY = Path(__file__).parents[2] / "codegen" / "triton"
"""Where the modules are that emitted text imports."""


@dataclass(frozen=True)
class TritonImage:
    """What a binary is made from.

    text: a module with the kernel `wolong`
    pointers: Triton's type of every pointer argument but the last two, by name and in order
    blocks: of the grid
    warps, stages: of a block; steps of a loop that loads may run ahead
    """

    text: str
    pointers: tuple[tuple[str, str], ...]
    architecture: Architecture
    blocks: int
    warps: int = 4
    stages: int = 3


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
    Raises TritonFailed when Triton or ptxas fails, crashes or takes longer.
    """
    request = asdict(image) | {"library": str(LIBRARY), "capability": image.architecture.capability}
    command = [sys.executable, "-P", str(Path(__file__).with_name("build_worker.py"))]
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True)
    try:
        said, _ = process.communicate(pickle.dumps(request), timeout=limit)
    except TimeoutExpired:
        raise _failed(image, f"it was stopped after {limit:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0 or not said:
        raise _failed(image, f"its process ended with {_ending(process.returncode)}")
    result = pickle.loads(said)
    if isinstance(result, str):
        raise _failed(image, result)
    return TritonBinary(**result, warps=image.warps, architecture=image.architecture)


def _failed(image: TritonImage, because: str) -> TritonFailed:
    source = keep_source(image.text, suffix=".py")
    return TritonFailed(architecture=image.architecture.name, because=because, source=source)


def _ending(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
