"""The process that compiles one kernel: a request on stdin, a binary or what is wrong on stdout.

Run as a file, so that nothing of Wolong FX and no torch is imported: half a second instead of four.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from triton.backends.nvidia.compiler import get_ptxas

SHOWN = 600


def main() -> None:
    """Compile what stdin asks for."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand in the reply
    request = json.load(sys.stdin)
    with TemporaryDirectory() as folder:
        try:
            result = _compile(request["module"], request["capability"], Path(folder))
        except Exception as error:
            result = {"error": _described(error)}
    json.dump(result, replies)
    replies.flush()


def _compile(module: str, capability: int, folder: Path) -> dict[str, Any]:
    """The fields of a TritonBinary, of a module that `standalone` has made."""
    built = _load(module, folder / "kernel.py").compile_kernel()
    registers, spilled = _resources(built.asm["ptx"], capability, folder)
    return {
        "code": b64encode(built.asm["cubin"]).decode(),
        "assembly": built.asm["ptx"],
        "registers": registers,
        "spill_bytes": spilled,
        "shared_bytes": built.metadata.shared,
    }


def _described(error: BaseException) -> str:
    """What an error came from, and then the error: Triton's own says where, the one below it says what."""
    text = f"{type(error).__name__}: {str(error).strip()[-SHOWN:]}"
    return f"{_described(error.__cause__)}; {text}" if error.__cause__ else text


def _load(text: str, path: Path) -> ModuleType:
    """A module of kernels; Triton reads their text from its file."""
    path.write_text(text)
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    sys.modules[path.stem] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _resources(ptx: str, capability: int, folder: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, as ptxas says."""
    path = folder / "kernel.ptx"
    path.write_text(ptx)
    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    assert target is not None
    ptxas = get_ptxas(capability).path
    command = [ptxas, "-v", f"--gpu-name={target[1]}", str(path), "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert spilled is not None and registers is not None, said
    return int(registers[1]), int(spilled[1]) + int(spilled[2])


if __name__ == "__main__":
    main()
