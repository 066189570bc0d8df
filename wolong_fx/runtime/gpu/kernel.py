"""A built program on a GPU, and a call of it.

Nothing here waits for the device. Memory of a call comes from torch's allocator on the current stream, whose
order is also that of the launches: what a launch still reads or writes is not lent out before it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wolong_fx.errors import FirstCallInCapture, GridTooLarge, StaleKernelInput
from wolong_fx.ledger import GpuKernelReport
from wolong_fx.options import Options
from wolong_fx.runtime.gpu.binary_cache import cached_binary
from wolong_fx.runtime.gpu.bound import NOTHING, Bound
from wolong_fx.runtime.gpu.device import Device, NoRoom
from wolong_fx.runtime.gpu.failures import FailureWord
from wolong_fx.runtime.gpu.forms import AddressBlock, BuildBinary, Form, build_grid, build_stages
from wolong_fx.runtime.gpu.gpu_image import ARENA, CONSTANTS, FAILURE, FIRST_TENSOR, WORD, GpuImage
from wolong_fx.runtime.gpu.words import Words
from wolong_fx.runtime.image import TensorSpec
from wolong_fx.runtime.kernel import Helpers, WriteAddresses, addresses_in_python
from wolong_fx.toolchain.notices import warn_once

ALIGNMENT = 16
"""Bytes on which every tensor must begin: kernels load four floats at once."""

_address = Tensor.data_ptr


class GpuKernel:
    """A program on one device. Calls may overlap, from any threads and on any streams; each returns fresh
    tensors, which hold the results once the stream is there.

    Pickling and deepcopy carry the image: the copy is loaded from the cache, or built.
    """

    def __init__(
        self, image: GpuImage, options: Options, device: Device, build: BuildBinary, form: Form
    ) -> None:
        self.image, self.options, self.device = image, options, device
        self._build, self._form = build, form
        self._changes = threading.Lock()
        self._failure = FailureWord(image.name, image.checks, device)
        self._words = Words(device)
        self._constants = device.upload(image.constants) if image.constants else None
        self._calls: list[_Call] = []
        self._tensors = len(image.inputs) + len(image.outputs)
        self._write_addresses: WriteAddresses = addresses_in_python(self._tensors)
        self._allocators = [device.allocator(spec) for spec in image.outputs]
        arena = TensorSpec(torch.uint8, (image.arena_bytes,), (1,))
        self._allocate_arena = device.allocator(arena) if image.arena_bytes else None

    @property
    def name(self) -> str:
        return self.image.name

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self.launch(inputs)

    def launch(
        self, inputs: Sequence[Tensor], bound: Bound = NOTHING, *, check: bool = False
    ) -> list[Tensor]:
        """Launch on the current stream of this kernel's device.

        inputs: as image.inputs says, on the device: a kernel reads addresses, not metadata
        bound: what `bind` gave for the inputs behind these
        check: compare metadata first and raise StaleKernelInput
        Raises KernelCheckFailed when an index in the data of an *earlier* call was out of its range, and
        DriverFailed.
        """
        if not self.device.is_current():
            with self.device.selected():
                return self.launch(inputs, bound, check=check)
        if self._failure.is_set:
            self._words.drop_all()
            self._failure.raise_failure()
        if check:
            self.check_inputs(inputs)
        outputs = [allocate() for allocate in self._allocators]
        device = self.device
        stream, capture = device.stream(), device.find_capture()
        word = self._words.find(stream) if capture is None else None
        if word is None:
            word = self._new_word(stream, capture)
        if bound.tensors:
            bound.join(device, stream, capture)
        self._run(_Given(inputs, bound.addresses, outputs, word), stream)
        return outputs

    def _run(self, given: _Given, stream: int) -> None:
        """Fill in a block of addresses that no other call is using, and launch with it."""
        try:
            call = self._calls.pop()
        except IndexError:
            call = _Call(self)
        try:
            aligned = self._write(call, given)
            arena = self._allocate_arena() if self._allocate_arena else None
            call.places[ARENA] = 0 if arena is None else _address(arena)
            call.places[WORD] = given.word
            self._launch(call, stream)
        finally:
            self._calls.append(call)
        if aligned is not None:
            self._write_back(given.inputs, aligned)

    def _launch(self, call: _Call, stream: int) -> None:
        """Raises DriverFailed; then what the barrier's word holds is unknown."""
        try:
            if call.form is not self._form:
                call.bind(self._form)
            call.run(stream)
        except NoRoom:
            grid = self._form
            self.use_stages()
            tell_staged(self.image, self.device, grid, self._form)
            self._launch(call, stream)
        except BaseException:
            self._words.drop(stream)
            raise

    def _new_word(self, stream: int, capture: int | None) -> int:
        """For the first launch on a stream, and for every captured one."""
        if self._constants is not None:  # made on another stream
            self.device.use_on_stream([self._constants])
        return self._words.add(stream) if capture is None else self._words.capture(capture)

    def _write(self, call: _Call, given: _Given) -> list[Tensor] | None:
        """Put the tensors' addresses into the block; returns the inputs if aligned copies replace some."""
        try:
            self._write_addresses(call.first, self._tensors, given.inputs, given.bound, given.outputs)
        except Exception:
            self.check_inputs(given.inputs)  # which knows what to say of a wrong number of them
            raise
        count = len(given.inputs)
        if reduce(or_, call.places[FIRST_TENSOR : FIRST_TENSOR + count], 0) % ALIGNMENT == 0:
            return None
        inputs = [t if _address(t) % ALIGNMENT == 0 else _aligned(t) for t in given.inputs]
        self._write_addresses(call.first, self._tensors, inputs, given.bound, given.outputs)
        return inputs

    def _write_back(self, inputs: Sequence[Tensor], aligned: Sequence[Tensor]) -> None:
        for position in self.image.written:
            if aligned[position] is not inputs[position]:
                inputs[position].copy_(aligned[position])

    def use_stages(self) -> None:
        """From now on launch a kernel for every stage, which needs no room for all blocks at once."""
        with self._changes:
            if self._form.name == "persistent":
                self._form = build_stages(self.image, self.device, self._build)

    def bind(self, tensors: Sequence[Tensor]) -> Bound:
        """The last inputs of launches to come; they must be ready on the current stream."""
        return Bound.of([t if _address(t) % ALIGNMENT == 0 else _aligned(t) for t in tensors], self.device)

    def is_captured(self) -> bool:
        """Whether a launch would now go into a graph."""
        return self.device.find_capture() is not None

    def launch_with(self, helpers: Helpers) -> None:
        """From now on write argument blocks in C."""
        self._write_addresses = helpers.write_addresses

    def keep_together(self, positions: Collection[int]) -> None:
        """Nothing: torch's allocator for GPUs is quick already."""

    def check_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Raise StaleKernelInput for the first input that this kernel was not compiled for."""
        expected = self.image.inputs
        if len(inputs) != len(expected):
            raise StaleKernelInput(
                kernel=self.name, expected=f"{len(expected)} tensors", which="inputs", found=len(inputs)
            )
        for index, (spec, tensor) in enumerate(zip(expected, inputs, strict=True)):
            if TensorSpec.of(tensor) != spec and not spec.is_met_by(tensor, tensor.device.type):
                found = f"{TensorSpec.of(tensor)} on {tensor.device}"
                raise StaleKernelInput(kernel=self.name, expected=spec, which=f"input {index}", found=found)

    def report(self) -> GpuKernelReport:
        """What a call launches at this moment."""
        form = self._form
        return GpuKernelReport(
            name=self.name,
            device=self.device.architecture.device,
            form=form.name,
            launches=form.launches,
            grid=form.grid,
            resident_blocks=form.resident,
            wanted_blocks=self.image.grid.blocks,
            registers=max((b.registers for b in form.binaries), default=0),
            spill_bytes=max((b.spill_bytes for b in form.binaries), default=0),
            shared_bytes=max((b.shared_bytes for b in form.binaries), default=0),
        )

    def __reduce__(self) -> tuple[Callable[..., GpuKernel], tuple[Any, ...]]:
        return load_gpu_kernel, (self.image, self.options, self.device, self._build)

    def __repr__(self) -> str:
        return f"GpuKernel({self.name!r}, {self._form.name}, {len(self.image.inputs)} inputs)"


class _Given(NamedTuple):
    """What a launch is given: tensors, addresses of those that stay, and the address of its word."""

    inputs: Sequence[Tensor]
    bound: Sequence[int]
    outputs: list[Tensor]
    word: int


class _Call:
    """The addresses of one launch at a time, and what launches with them."""

    __slots__ = ("block", "first", "form", "places", "run")

    def __init__(self, kernel: GpuKernel) -> None:
        self.block = AddressBlock(kernel._tensors, FIRST_TENSOR)
        self.places, self.first = self.block.places, self.block.address_of(FIRST_TENSOR)
        constants = kernel._constants
        self.places[CONSTANTS] = constants.data_ptr() if constants is not None else 0
        self.places[FAILURE] = kernel._failure.address
        self.bind(kernel._form)

    def bind(self, form: Form) -> None:
        self.form, self.run = form, form.bind(self.block)


def load_gpu_kernel(
    image: GpuImage, options: Options, device: Device, build: BuildBinary | None = None
) -> GpuKernel:
    """The kernel of `image` on a device: from the cache, or built now; staged where the grid has no room.

    Raises FirstCallInCapture, TritonFailed and DriverFailed.
    """
    build = build or partial(cached_binary, options=options)
    if not device.is_current():
        with device.selected():
            return load_gpu_kernel(image, options, device, build)
    if device.find_capture() is not None:
        raise FirstCallInCapture(kernel=image.name)
    try:
        form: Form = build_grid(image, device, build)
    except NoRoom:
        form = build_stages(image, device, build)
        tell_staged(image, device, None, form)
    return GpuKernel(image, options, device, build, form)


def tell_staged(image: GpuImage, device: Device, grid: Form | None, staged: Form) -> None:
    """Say once of a kernel that it runs in stages."""
    said = GridTooLarge(
        kernel=image.name,
        blocks=grid.grid if grid else min(image.grid.blocks, device.architecture.multiprocessors),
        device=device.architecture.device,
        resident=grid.resident if grid else 0,
        launches=staged.launches,
    )
    warn_once(str(said), str(said))


def _aligned(tensor: Tensor) -> Tensor:
    """A copy of a tensor that begins where kernels may load several elements at once."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)
