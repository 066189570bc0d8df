"""Kernels for GPUs: compiled in a process of their own, with what they need of the device known
beforehand."""

from wolong_fx.runtime.gpu.architectures import ARCHITECTURES, Architecture, resident_blocks
from wolong_fx.runtime.gpu.build import TritonBinary, build_triton
from wolong_fx.runtime.gpu.image import TritonImage

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "TritonBinary",
    "TritonImage",
    "build_triton",
    "resident_blocks",
]
