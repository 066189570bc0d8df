"""The process that compiles one kernel: a request on stdin, a binary or what is wrong on stdout.

Run as a file, so that nothing of Wolong FX and no torch is imported: half a second instead of four.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

HAND_WRITTEN = ("library", "barrier")
"""Modules that emitted text imports. They are loaded without their package, which would bring torch along."""

ALIGNED = [["tt.divisibility", 16]]
SHOWN = 600


def main() -> None:
    """Compile what stdin asks for."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand in the reply
    request = pickle.load(sys.stdin.buffer)
    with TemporaryDirectory() as folder:
        try:
            result: object = _compile(request, Path(folder))
        except Exception as error:
            result = f"{type(error).__name__}: {str(error).strip()[-SHOWN:]}"
    replies.write(pickle.dumps(result))
    replies.flush()


def _compile(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a TritonBinary, of those of a TritonImage."""
    for name in HAND_WRITTEN:
        _load(f"wolong_fx.codegen.triton.{name}", Path(request["library"]) / f"{name}.py")
    path = folder / "kernel.py"
    path.write_text(request["text"])
    pointers = dict(request["pointers"]) | {"word": "*u32", "failure": "*i32"}
    source = ASTSource(
        fn=_load("kernel", path).wolong,
        signature={**pointers, "G": "constexpr"},
        constexprs={"G": request["blocks"]},
        attrs={(i,): ALIGNED for i in range(len(pointers))},
    )
    options = {
        "num_warps": request["warps"],
        "num_stages": request["stages"],
        "launch_cooperative_grid": True,
        "enable_fp_fusion": True,
    }
    capability = request["capability"]
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(built.asm["ptx"], capability, folder)
    return {
        "code": built.asm["cubin"],
        "assembly": built.asm["ptx"],
        "registers": registers,
        "spill_bytes": spilled,
        "shared_bytes": built.metadata.shared,
    }


def _load(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
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
