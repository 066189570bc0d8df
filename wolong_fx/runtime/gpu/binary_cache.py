"""Compiled kernels on the disk, in the cache that all kernels share."""

from __future__ import annotations

import pickle
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wolong_fx.options import Options
from wolong_fx.runtime.gpu.build import TritonBinary, build_triton
from wolong_fx.runtime.gpu.image import TritonImage
from wolong_fx.runtime.gpu.standalone import standalone
from wolong_fx.toolchain.cache import KernelCache

FORMAT = 1
"""Of an entry: a pickled TritonBinary. It counts up when that changes."""


def cached_binary(image: TritonImage, options: Options) -> TritonBinary:
    """A kernel's binary: from the cache, or compiled now and kept. Raises TritonFailed.

    What a binary depends on is one text, `standalone`: the kernel with all that it imports of ours, its
    types, options and architecture. That and Triton's version name the entry.
    """

    def build(directory: Path) -> Path:
        path = directory / "kernel.gpu"
        path.write_bytes(pickle.dumps(build_triton(image)))
        return path

    key = sha256(f"{FORMAT} {standalone(image)}".encode()).hexdigest()
    return KernelCache.of(options, triton=_triton_version()).fetch(key, build, _read)


def _read(path: str) -> TritonBinary:
    """The binary before the checksum; an entry that another version wrote is as good as none."""
    try:
        with open(path, "rb") as file:
            binary = pickle.load(file)
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ImportError) as error:
        raise OSError(f"{path} holds no kernel: {error}") from error
    if not isinstance(binary, TritonBinary):
        raise OSError(f"{path} holds no kernel")
    return binary


@cache
def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # a build of torch that brings its own under another name
        import triton

        return triton.__version__
