"""The Triton target on a device that is there: kernels that can be launched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from wolong_fx.codegen.triton.fit import fit_program
from wolong_fx.codegen.triton.gpu_costs import GPU_COSTS, USUAL, GpuCosts
from wolong_fx.codegen.triton.image import gpu_image_of
from wolong_fx.codegen.triton.target import TritonTarget
from wolong_fx.ir.program import Program
from wolong_fx.options import Options
from wolong_fx.runtime.gpu.binary_cache import cached_binary
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
        architecture = self.device.architecture
        usual = GPU_COSTS.get(architecture.name, USUAL)
        return replace(usual, multiprocessors=architecture.multiprocessors)  # a part of a device has fewer

    def build(self, program: Program) -> GpuKernel:
        build = self.build_binary or partial(cached_binary, options=self.options)
        source, _ = fit_program(program, self.precision, self.device.architecture, build)
        image = gpu_image_of(program, self.precision, source)
        return load_gpu_kernel(image, self.options, self.device, build)
