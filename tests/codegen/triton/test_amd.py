"""Emitted kernels compiled for AMD's GPUs: nothing of them is NVIDIA's but the one-thread barrier.

None has run on such a GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wolong_fx.codegen.triton import BARRIERS, choose_tile, emit_program
from wolong_fx.codegen.triton.image import image_of
from wolong_fx.emit import count_stages
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.runtime.gpu import ARCHITECTURES
from wolong_fx.runtime.gpu.standalone import standalone
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import TYPICAL

DEVICES = {"gfx90a": 64, "gfx942": 64, "gfx1100": 32}
"""Architectures, of the MI200, the MI300 and the RX 7900, with threads of a warp."""

COMPILER = """\
import json, sys
from importlib.util import module_from_spec, spec_from_file_location

def compiled(path):
    spec = spec_from_file_location(path.rpartition("/")[2][:-3], path)
    sys.modules[spec.name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.compile_kernel().asm["amdgcn"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

json.dump([compiled(path) for path in sys.argv[1:]], sys.stdout)
"""


def retiled(op: OpInst) -> OpInst:
    return replace(op, tile=choose_tile(op))


def module(program: Program, barrier: str, device: str) -> str:
    """A file that compiles the program's kernel for a device of AMD."""
    source = emit_program(map_ops(program, retiled), barrier=barrier)
    text = standalone(image_of(source, ARCHITECTURES["sm_90"]))
    ours, theirs = 'GPUTarget("cuda", 90, 32)', f'GPUTarget("hip", "{device}", {DEVICES[device]})'
    assert ours in text
    return text.replace(ours, theirs)


def compile_all(modules: dict[str, str], folder: Path) -> dict[str, str]:
    """Assembly by name, or what is wrong; in a process of its own, which a crash would end."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    paths = [str(folder / f"{name}.py") for name in modules]
    command = [sys.executable, "-P", "-c", COMPILER, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(modules, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    "device", [pytest.param(d, marks=() if d == "gfx942" else pytest.mark.slow) for d in DEVICES]
)
def test_every_golden_kernel_compiles_for_amd(device, tmp_path):
    made = compile_all({n: module(make(), "grid_barrier", device) for n, make in TYPICAL.items()}, tmp_path)
    assert {n: text[:80] for n, text in made.items() if ".amdhsa_kernel wolong" not in text} == {}


def test_a_barrier_pushes_writes_out_arrives_and_drops_what_is_cached(tmp_path):
    recurrence = TYPICAL["recurrence"]()
    made = compile_all({"recurrence": module(recurrence, "grid_barrier", "gfx942")}, tmp_path)
    kinds = {"s_barrier": "m", "buffer_wbl2 sc1": "f", "global_atomic_add": "a", "buffer_inv sc1": "i"}
    found = re.findall("|".join(kinds), made["recurrence"])
    events = "".join(kinds[word] for word in found)
    assert (
        events.count("a") == len(re.findall("mfai", events)) >= count_stages(TYPICAL["recurrence"]().body)[1]
    )


def is_amds(text: str, folder: Path) -> bool:
    """Whether a kernel comes out without NVIDIA's assembly, over which some versions of LLVM end the process
    and others say nothing."""
    try:
        made = compile_all({"kernel": text}, folder)["kernel"]
    except AssertionError:
        return False
    return ".amdhsa_kernel wolong" in made and "%tid.x" not in made


def test_the_one_thread_form_of_the_barrier_is_nvidias_alone(tmp_path):
    mlp = TYPICAL["mlp"]()
    assert BARRIERS[1] not in emit_program(mlp).text
    assert is_amds(module(mlp, BARRIERS[0], "gfx942"), tmp_path)
    assert not is_amds(module(mlp, BARRIERS[1], "gfx942"), tmp_path)
