"""From an emitted source to what the compiler's process is asked for."""

from __future__ import annotations

from wolong_fx.codegen.triton.emitter import TritonSource
from wolong_fx.ir.types import DType
from wolong_fx.runtime.gpu import Architecture, TritonImage

_NAMES = {DType.F64: "fp64", DType.F32: "fp32", DType.F16: "fp16", DType.BOOL: "u8"}


def image_of(source: TritonSource, architecture: Architecture, *, warps: int = 4) -> TritonImage:
    """A source for one architecture, on as many blocks as its largest stage has virtual blocks, or as the
    device has multiprocessors if those are fewer.
    """
    pointers = tuple((a.name, f"*{_NAMES.get(a.dtype, str(a.dtype))}") for a in source.arguments)
    blocks = min(source.blocks, architecture.multiprocessors)
    return TritonImage(source.text, pointers, architecture, blocks, warps)
