"""The two forms of a built program: one persistent kernel, or a kernel for every stage.

Both take their addresses from a block that the caller fills in; binding a form to a block prepares all its
launches, so that a call only writes addresses and launches.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

from wolong_fx.runtime.gpu.build import TritonBinary
from wolong_fx.runtime.gpu.device import Device, KernelCall, NoRoom, Run
from wolong_fx.runtime.gpu.gpu_image import FAILURE, WORD, GpuImage, Pointer
from wolong_fx.runtime.gpu.image import TritonImage
from wolong_fx.runtime.gpu.launches import StageLaunch, StageLoop, count_launches, deepest, kernels_of
from wolong_fx.runtime.threads import team_size

BuildBinary = Callable[[TritonImage], TritonBinary]
"""Raises TritonFailed."""

_TRIES = 3
"""Compilations until grid and occupancy agree: the grid is a constant in the text that it depends on."""

_ADDRESS_BYTES = ctypes.sizeof(ctypes.c_uint64)


class Form(Protocol):
    """A program that can be launched.

    grid: blocks of its largest launch
    resident: blocks of that kernel that the device holds together
    """

    @property
    def name(self) -> Literal["persistent", "staged"]: ...

    @property
    def launches(self) -> int: ...

    @property
    def grid(self) -> int: ...

    @property
    def resident(self) -> int: ...

    @property
    def binaries(self) -> tuple[TritonBinary, ...]: ...

    def bind(self, block: AddressBlock) -> Run:
        """What launches with the addresses that the block then holds."""
        ...


class AddressBlock:
    """The addresses of one launch, the places of which gpu_image.py names; the last one stays null."""

    __slots__ = ("address", "places")

    def __init__(self, tensors: int, first: int) -> None:
        self.places = (ctypes.c_uint64 * (first + tensors + 1))()
        self.address = ctypes.addressof(self.places)

    def address_of(self, place: int) -> int:
        """Where the address at a place stands."""
        return self.address + _ADDRESS_BYTES * (place if place >= 0 else len(self.places) + place)


NULL = -1
"""The place that holds no address."""


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel that was loaded."""

    image: TritonImage
    binary: TritonBinary
    function: int
    resident: int

    def call(self, parameters: ctypes.Array[ctypes.c_void_p], *, cooperative: bool) -> KernelCall:
        """A launch with these parameters."""
        return KernelCall(
            self.function,
            self.image.blocks,
            self.image.warps,
            self.binary.shared_bytes,
            parameters,
            cooperative,
        )


@dataclass(frozen=True)
class GridForm:
    """One launch of a kernel whose blocks all run at once."""

    device: Device
    kernel: BuiltKernel
    pointers: tuple[Pointer, ...]
    meets: bool

    name: Literal["persistent"] = "persistent"
    launches: int = 1

    @property
    def grid(self) -> int:
        return self.kernel.image.blocks

    @property
    def resident(self) -> int:
        return self.kernel.resident

    @property
    def binaries(self) -> tuple[TritonBinary, ...]:
        return (self.kernel.binary,)

    def bind(self, block: AddressBlock) -> Run:
        places = [*(p.place for p in self.pointers), WORD, FAILURE]
        parameters = _parameters(self.kernel, [block.address_of(p) for p in places], block)
        return self.device.prepare(self.kernel.call(parameters, cooperative=self.meets))


@dataclass(frozen=True)
class StagedForm:
    """A launch for every stage."""

    device: Device
    kernels: dict[str, BuiltKernel]
    pointers: tuple[Pointer, ...]
    items: tuple[StageLaunch | StageLoop, ...]

    name: Literal["staged"] = "staged"

    @property
    def launches(self) -> int:
        return count_launches(self.items)

    @property
    def grid(self) -> int:
        return max((k.image.blocks for k in self.kernels.values()), default=0)

    @property
    def resident(self) -> int:
        return min((k.resident for k in self.kernels.values()), default=0)

    @property
    def binaries(self) -> tuple[TritonBinary, ...]:
        return tuple(k.binary for k in self.kernels.values())

    def bind(self, block: AddressBlock) -> Run:
        trips = (ctypes.c_int32 * max(1, deepest(self.items)))()
        prepared = {name: self._prepare(kernel, block, trips) for name, kernel in self.kernels.items()}
        return _sequence(self.items, prepared, trips, 0)

    def _prepare(self, kernel: BuiltKernel, block: AddressBlock, trips: ctypes.Array[ctypes.c_int32]) -> Run:
        values = [block.address_of(p.place) for p in self.pointers]
        values += [ctypes.addressof(trips) + 4 * depth for depth in range(kernel.image.loops or 0)]
        parameters = _parameters(kernel, [*values, block.address_of(FAILURE)], block)
        return self.device.prepare(kernel.call(parameters, cooperative=False))


def build_grid(image: GpuImage, device: Device, build: BuildBinary) -> GridForm:
    """The persistent kernel, on as many blocks as have work and are resident together.

    Raises NoRoom where not even one block for each multiprocessor is, and TritonFailed.
    """
    text, architecture = image.grid, device.architecture
    if text.meets and not device.can_cooperate:
        raise NoRoom
    blocks = min(text.blocks, architecture.multiprocessors)
    for _ in range(_TRIES):
        found = TritonImage(text.text, _types(text.pointers), architecture, blocks, image.warps)
        kernel = _load(found, device, build)
        if kernel.resident == 0:
            break
        wanted = min(text.blocks, kernel.resident)
        if wanted == blocks:
            return GridForm(device, kernel, text.pointers, text.meets)
        blocks = wanted
    raise NoRoom


def build_stages(image: GpuImage, device: Device, build: BuildBinary) -> StagedForm:
    """A kernel for every stage, compiled side by side; raises TritonFailed."""
    text = image.stages()
    images = {
        name: TritonImage(
            text.text,
            _types(text.pointers),
            device.architecture,
            blocks,
            image.warps,
            kernel=name,
            loops=depth,
        )
        for name, (blocks, depth) in kernels_of(text.launches).items()
    }
    with ThreadPoolExecutor(max_workers=max(1, team_size(0))) as pool:
        binaries = dict(zip(images, pool.map(build, images.values()), strict=True))
    kernels = {name: _load(images[name], device, lambda _, b=binaries[name]: b) for name in images}
    return StagedForm(device, kernels, text.pointers, text.launches)


def _load(image: TritonImage, device: Device, build: BuildBinary) -> BuiltKernel:
    binary = build(image)
    function = device.find_function(device.load(binary.code), image.kernel, binary.shared_bytes)
    resident = device.resident_blocks(function, image.warps, binary.shared_bytes)
    return BuiltKernel(image, binary, function, resident)


def _types(pointers: Sequence[Pointer]) -> tuple[tuple[str, str], ...]:
    return tuple((p.name, p.type) for p in pointers)


def _parameters(
    kernel: BuiltKernel, values: Sequence[int], block: AddressBlock
) -> ctypes.Array[ctypes.c_void_p]:
    """Where each parameter's value stands; what Triton adds behind ours, memory to scratch, is null."""
    added = _count_parameters(kernel.binary, kernel.image.kernel) - len(values)
    return (ctypes.c_void_p * (len(values) + added))(*values, *[block.address_of(NULL)] * added)


def _count_parameters(binary: TritonBinary, kernel: str) -> int:
    """Parameters of a kernel, as its assembly declares them."""
    declared = re.search(rf"\.entry\s+{kernel}\s*\((.*?)\)", binary.assembly, re.DOTALL)
    assert declared is not None, f"{kernel} is not in its assembly"
    return declared[1].count(".param")


def _sequence(
    items: Sequence[StageLaunch | StageLoop],
    prepared: dict[str, Run],
    trips: ctypes.Array[ctypes.c_int32],
    depth: int,
) -> Run:
    """Launches items in order; the trip of the loop at each depth is written before its launches read it."""
    runs = [
        prepared[item.kernel] if isinstance(item, StageLaunch) else _loop(item, prepared, trips, depth)
        for item in items
    ]

    def run(stream: int) -> None:
        for launch in runs:
            launch(stream)

    return run


def _loop(loop: StageLoop, prepared: dict[str, Run], trips: ctypes.Array[ctypes.c_int32], depth: int) -> Run:
    body = _sequence(loop.body, prepared, trips, depth + 1)

    def run(stream: int) -> None:
        for trip in range(loop.trips):
            trips[depth] = trip
            body(stream)

    return run
