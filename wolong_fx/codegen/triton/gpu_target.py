"""The Triton target on a device that is there: kernels that can be launched."""

from __future__ import annotations

from dataclasses import dataclass

from wolong_fx.codegen.triton.gpu_costs import GPU_COSTS, USUAL, GpuCosts
from wolong_fx.codegen.triton.image import gpu_image_of
from wolong_fx.codegen.triton.target import TritonTarget
from wolong_fx.ir.program import Program
from wolong_fx.options import Options
from wolong_fx.runtime.gpu.device import Device
from wolong_fx.runtime.gpu.forms import BuildBinary
from wolong_fx.runtime.gpu.kernel import GpuKernel, load_gpu_kernel


@dataclass(frozen=True)
class GpuTarget(TritonTarget):
    """Generated Triton, built for a device.

    build_binary: the compiler; None for Triton's, with the cache of the options in front
    """

    options: Options
    device: Device
    build_binary: BuildBinary | None = None

    @property
    def costs(self) -> GpuCosts:
        return GPU_COSTS.get(self.device.architecture.name, USUAL)

    def build(self, program: Program) -> GpuKernel:
        image = gpu_image_of(program, self.precision)
        return load_gpu_kernel(image, self.options, self.device, self.build_binary)
