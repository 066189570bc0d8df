"""A built kernel: loading it, and calling it on tensors."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

import torch
from torch import Tensor

from wolong_fx.errors import KernelCheckFailed, KernelNotLoadable, StaleKernelInput, WrongKernelAbi
from wolong_fx.options import Options
from wolong_fx.runtime.arena import Arena
from wolong_fx.runtime.image import ABI_VERSION, KernelImage, TensorSpec
from wolong_fx.runtime.openmp import OpenMP, find_openmp
from wolong_fx.runtime.outputs import MakeAllocator, Outputs
from wolong_fx.runtime.team import LoneRunner, TeamRunner
from wolong_fx.toolchain.cache import KernelCache, cache_key
from wolong_fx.toolchain.compiler import build_library
from wolong_fx.toolchain.notices import warn_once

_FIRST_TENSOR = 2
"""Position in the argument block: the arena and the constants come before."""

_address = torch.Tensor.data_ptr
_libraries: dict[str, ctypes.CDLL] = {}


WriteAddresses = Callable[[int, int, Sequence[Tensor], Sequence[int], Sequence[Tensor]], object]
"""Writes to an address so many addresses: of tensors, these, of tensors; ValueError for another number."""


class Helpers(NamedTuple):
    """Parts of a launch, in C."""

    write_addresses: WriteAddresses
    make_allocator: MakeAllocator


class WolongHost(ctypes.Structure):
    """What a kernel needs of its host; without OpenMP entries it is only ever run on one thread."""

    _fields_ = (
        ("parallel", ctypes.c_void_p),
        ("thread_num", ctypes.c_void_p),
        ("yield_", ctypes.c_void_p),
        ("clock", ctypes.c_void_p),
        ("monotonic", ctypes.c_int),
    )


class Block:
    """One launch's arguments and arena. A launch owns one; overlapping launches have different ones."""

    __slots__ = ("_arena", "arguments", "first")

    def __init__(self, image: KernelImage, constants: Arena) -> None:
        self._arena = Arena(image.arena_bytes)
        count = _FIRST_TENSOR + len(image.inputs) + len(image.outputs)
        self.arguments = (ctypes.c_void_p * count)(self._arena.address, constants.address)
        self.first = ctypes.addressof(self.arguments) + _FIRST_TENSOR * ctypes.sizeof(ctypes.c_void_p)


class Kernel:
    """A compiled kernel. Calls may overlap, from any threads; each returns fresh tensors.

    `kernel(*inputs)` and `kernel.launch([inputs])` return the list of outputs. Pickling and deepcopy carry
    the image: the copy is loaded from the cache, or built, where it is unpickled.
    """

    def __init__(
        self, image: KernelImage, options: Options, library: ctypes.CDLL, openmp: OpenMP | None
    ) -> None:
        self.image, self.options, self.library = image, options, library
        self._constants = Arena.holding(image.constants)
        self._blocks = [Block(image, self._constants)]
        self._outputs = Outputs(image.outputs)
        self._tensors = len(image.inputs) + len(image.outputs)
        self._write_addresses: WriteAddresses = addresses_in_python(self._tensors)
        self._runner = _runner(library, image.threads, openmp)
        self._run: Callable[[object], int] = self._runner

    @property
    def name(self) -> str:
        return self.image.name

    @property
    def best_seconds(self) -> float:
        """What the shortest of the launches took that were looked at; infinity before the first."""
        return self._runner.best

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self.launch(inputs)

    def launch(
        self, inputs: Sequence[Tensor], bound: Sequence[int] = (), *, check: bool = False
    ) -> list[Tensor]:
        """Run once on `inputs`, which must be as image.inputs says: a kernel reads addresses, not metadata.

        bound: what `bind` gave for the inputs behind these
        check: compare dtypes, shapes and strides first (3 us) and raise StaleKernelInput
        Raises KernelCheckFailed when an index in the data is out of its range.
        """
        if check:
            self.check_inputs(inputs)
        outputs = self.allocate_outputs()
        try:
            block = self._blocks.pop()
        except IndexError:
            block = Block(self.image, self._constants)
        try:
            arguments = block.arguments
            self._write_addresses(block.first, self._tensors, inputs, bound, outputs)
            failed = self._run(arguments)
        except (StructError, ValueError):
            self.check_inputs(inputs)  # which knows what to say of a wrong number of them
            raise
        finally:
            self._blocks.append(block)
        if failed:
            raise KernelCheckFailed(message=self.image.checks[failed - 1], kernel=self.name)
        return outputs

    def bind(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """The last inputs of launches to come, which must live and stay where they are as long as those."""
        return tuple(map(_address, tensors))

    def launch_with(self, helpers: Helpers) -> None:
        """From now on write argument blocks and make outputs in C: a tenth and three quarters of the time."""
        self._write_addresses = helpers.write_addresses
        self._outputs.allocate_by(helpers.make_allocator)

    def allocate_outputs(self) -> list[Tensor]:
        """New tensors as image.outputs says, their content undefined."""
        return self._outputs.allocate()

    def keep_together(self, positions: Collection[int]) -> None:
        """From now on allocate these outputs as one where their shapes allow; see `Outputs`."""
        self._outputs = Outputs(self.image.outputs, positions)

    def check_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Raise StaleKernelInput for the first input that this kernel was not compiled for."""
        expected = self.image.inputs
        if len(inputs) != len(expected):
            raise StaleKernelInput(
                kernel=self.name, expected=f"{len(expected)} tensors", which="inputs", found=len(inputs)
            )
        for index, (spec, tensor) in enumerate(zip(expected, inputs, strict=True)):
            if not spec.is_met_by(tensor):
                found = f"{TensorSpec.of(tensor)} on {tensor.device}"
                raise StaleKernelInput(kernel=self.name, expected=spec, which=f"input {index}", found=found)

    def __reduce__(self) -> tuple[Callable[..., Kernel], tuple[KernelImage, Options]]:
        return load_kernel, (self.image, self.options)

    def __repr__(self) -> str:
        return f"Kernel({self.name!r}, {len(self.image.inputs)} inputs, {len(self.image.outputs)} outputs)"


def addresses_in_python(count: int) -> WriteAddresses:
    """What writes the addresses of `count` tensors where nothing could be built to do it in C."""
    pack, size = Struct(f"{count}P").pack_into, count * ctypes.sizeof(ctypes.c_void_p)

    def write(
        to: int, count: int, inputs: Sequence[Tensor], bound: Sequence[int], outputs: Sequence[Tensor]
    ) -> None:
        memory = (ctypes.c_char * size).from_address(to)
        pack(memory, 0, *map(_address, inputs), *bound, *map(_address, outputs))

    return write


def load_kernel(image: KernelImage, options: Options) -> Kernel:
    """The kernel of `image`: from this process, from the cache, or built now.

    Raises NoCompiler, CompilerFailed, CompilerTookTooLong, KernelNotLoadable, WrongKernelAbi.
    """
    openmp = find_openmp() if image.threads > 1 else None
    key = cache_key(image.source, image.flags)
    library = _libraries.get(key)
    if library is None:
        library = _load_library(image, key, options)
        _libraries[key] = library
    return Kernel(image, options, library, openmp)


def _load_library(image: KernelImage, key: str, options: Options) -> ctypes.CDLL:
    def build(directory: Path) -> Path:
        return build_library(image.source, image.flags, directory)

    try:
        library = KernelCache.of(options).fetch(key, build, ctypes.CDLL)
        found = ctypes.c_int.in_dll(library, "wolong_abi").value
    except (OSError, ValueError) as error:
        raise KernelNotLoadable(kernel=image.name, because=error) from error
    if found != ABI_VERSION:
        raise WrongKernelAbi(kernel=image.name, found=found, expected=ABI_VERSION)
    library.wolong_init(ctypes.byref(kernel_host()))
    library.wolong_run.restype = ctypes.c_long
    return library


@cache
def kernel_host() -> WolongHost:
    """The one host structure; kernels keep pointers to it."""
    openmp = find_openmp()
    libc = ctypes.CDLL(None)
    return WolongHost(
        openmp.address("GOMP_parallel") if openmp else None,
        openmp.address("omp_get_thread_num") if openmp else None,
        ctypes.cast(libc.sched_yield, ctypes.c_void_p).value,
        ctypes.cast(libc.clock_gettime, ctypes.c_void_p).value,
        time.CLOCK_MONOTONIC,
    )


def _runner(library: ctypes.CDLL, threads: int, openmp: OpenMP | None) -> TeamRunner | LoneRunner:
    run = library.wolong_run
    if threads > 1 and openmp is None:
        warn_once("no openmp", "torch is loaded without an OpenMP runtime: kernels run on one thread.")
    if threads > 1 and openmp is not None and openmp.grants_team(threads):
        return TeamRunner(run, threads, openmp)
    return LoneRunner(run)
