"""The golden kernels on a GPU: short programs with everything that emitted text is made of.

    python -P -m wolong_fx.bench.gpu.golden --launches 3

launches each, and is what compute-sanitizer watches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wolong_fx.bench.gpu.device import CpuDevice, Device, find_device
from wolong_fx.codegen.triton import choose_tile
from wolong_fx.codegen.triton.gpu_target import GpuTarget
from wolong_fx.codegen.triton.image import gpu_image_of
from wolong_fx.errors import NoGpuHere
from wolong_fx.ir.program import OpInst, Program
from wolong_fx.options import Options
from wolong_fx.runtime.gpu import ARCHITECTURES, TritonBinary, TritonImage, build_triton, resident_blocks
from wolong_fx.runtime.gpu.cuda_device import find_cuda_device
from wolong_fx.runtime.gpu.kernel import GpuKernel
from wolong_fx.testing.fake_device import FakeDevice, FakeTarget
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import TYPICAL, inputs_of

DRY_ARCHITECTURE = "sm_90"


def golden_programs() -> dict[str, Program]:
    """By name, with the tiles that a GPU gets."""

    def retiled(op: OpInst) -> OpInst:
        return replace(op, tile=choose_tile(op))

    return {name: map_ops(make(), retiled) for name, make in TYPICAL.items()}


# ---- launches


def golden_kernel(program: Program, device: Device) -> GpuKernel:
    """A program's kernel; in a dry run on the fake device, whose blocks are simulated."""
    if isinstance(device, CpuDevice):
        return FakeTarget.on(FakeDevice()).build(program)
    return GpuTarget("ieee", Options.of(), find_cuda_device(0)).build(program)


def golden_call(program: Program, device: Device) -> Callable[[], list[Tensor]]:
    """Launches the program's kernel on inputs that stay the same."""
    inputs = [x.to(device.name) for x in inputs_of(program)]
    kernel = golden_kernel(program, device)
    return lambda: kernel.launch(inputs)


def count_differences(call: Callable[[], Sequence[Tensor]], launches: int) -> int:
    """Of so many launches, how many give other bits than the first."""
    first = [_bits(y) for y in call()]
    different = torch.zeros((), dtype=torch.int64, device=first[0].device)
    for _ in range(launches - 1):
        pairs = zip(call(), first, strict=True)
        different += torch.stack([(_bits(y) != bits).any() for y, bits in pairs]).any()
    return int(different)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


# ---- occupancy


@dataclass(frozen=True)
class Occupancy:
    """Blocks of a kernel that the whole device holds: as our formula has it, and as its driver says."""

    kernel: str
    warps: int
    registers: int
    shared_bytes: int
    formula: int
    driver: int


def build_golden(program: Program, warps: int, device: Device) -> TritonBinary:
    """A golden kernel's binary, for the device; in a dry run for DRY_ARCHITECTURE."""
    is_dry = isinstance(device, CpuDevice)
    architecture = ARCHITECTURES[DRY_ARCHITECTURE] if is_dry else find_cuda_device(0).architecture
    text = gpu_image_of(program, "ieee").grid
    pointers = tuple((p.name, p.type) for p in text.pointers)
    blocks = min(text.blocks, architecture.multiprocessors)
    return build_triton(TritonImage(text.text, pointers, architecture, blocks, warps))


def occupancy_of(name: str, binary: TritonBinary, shared: Sequence[int], device: Device) -> list[Occupancy]:
    """Of a kernel with the shared memory that it takes and with more, by one thread of the process.

    shared: bytes; those that are less than it takes are left out
    """
    sizes = [binary.shared_bytes, *(size for size in shared if size > binary.shared_bytes)]
    ask = _formula if isinstance(device, CpuDevice) else _driver
    return [
        Occupancy(name, binary.warps, binary.registers, size, _formula(binary, size), ask(binary, size))
        for size in sizes
    ]


def _driver(binary: TritonBinary, shared_bytes: int) -> int:
    gpu = find_cuda_device(0)
    function = gpu.find_function(gpu.load(binary.code), "wolong", shared_bytes)
    return gpu.resident_blocks(function, binary.warps, shared_bytes)


def _formula(binary: TritonBinary, shared_bytes: int) -> int:
    architecture = binary.architecture
    of_one = resident_blocks(
        architecture, registers=binary.registers, shared_bytes=shared_bytes, warps=binary.warps
    )
    return of_one * architecture.multiprocessors


def main() -> int:
    """Launch every golden kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--launches", type=int, default=3, help="of each (3)")
    parser.add_argument("--dry", action="store_true", help="on the fake device")
    chosen = parser.parse_args()
    try:
        device = find_device(dry=chosen.dry)
    except NoGpuHere as error:
        print(error, file=sys.stderr)
        return 3
    for program in golden_programs().values():
        call = golden_call(program, device)
        for _ in range(chosen.launches):
            call()
    device.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
