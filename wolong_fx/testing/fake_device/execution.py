"""One launch on the simulated grid, on memory that is there already."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

from wolong_fx.runtime.gpu.gpu_image import GpuImage
from wolong_fx.runtime.gpu.image import TritonImage
from wolong_fx.testing.fake_device.queues import Violation
from wolong_fx.testing.grid_simulator.client import run_launches
from wolong_fx.testing.grid_simulator.messages import Launch, Memory, Pointer, Request

ALIGNMENT = 16
WORD_BYTES = 4
SWITCHING = 0.01
"""Probability that a load or store lets another block go on."""

_TORCH = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "u8": "uint8"}
_TORCH |= {f"{kind}{bits}": f"{kind.replace('i', 'int')}{bits}" for kind in "i" for bits in (8, 16, 32, 64)}
_TORCH |= {"u32": "uint32"}


def spans_of(image: GpuImage) -> dict[str, int]:
    """Bytes behind each pointer of a program's kernels, by name."""
    specs = (*image.inputs, *image.outputs)
    spans = {f"tensor{i}": spec.span_bytes for i, spec in enumerate(specs)}
    words = {"word": WORD_BYTES, "failure": WORD_BYTES}
    return {**spans, **words, "arena": image.arena_bytes, "constants": len(image.constants)}


@dataclass(frozen=True)
class Frame:
    """The values of a launch's parameters, as they were when it was launched."""

    image: TritonImage
    values: Mapping[str, int]

    @classmethod
    def read(cls, image: TritonImage, parameters: ctypes.Array[ctypes.c_void_p]) -> Frame:
        """By the addresses at which the values stand."""
        values = {}
        for (name, kind), at in zip(image.signature.items(), parameters, strict=False):
            stored = ctypes.c_uint64 if kind.startswith("*") else ctypes.c_int32
            values[name] = stored.from_address(at or 0).value
        return cls(image, values)

    @property
    def pointers(self) -> dict[str, int]:
        return {n: v for n, v in self.values.items() if self.image.signature[n].startswith("*")}

    def check_alignment(self) -> None:
        """Kernels are compiled for pointers that are aligned."""
        wrong = [name for name, address in self.pointers.items() if address % ALIGNMENT]
        if wrong:
            raise Violation(f"misaligned address: {', '.join(wrong)} of {self.image.kernel}")

    def execute(self, spans: Mapping[str, int], seed: int) -> None:
        """Run all blocks, which leave memory as they do on a GPU; raises Violation for what is found."""
        names = {address: name.split("_")[0] for name, address in self.pointers.items() if address}
        numbers = {address: i for i, address in enumerate(names)}
        is_stage = self.image.loops is not None  # what it reads of the arena another launch has written
        memories = tuple(
            Memory(name, ctypes.string_at(address, spans[name]), name != "arena" or is_stage)
            for address, name in names.items()  # the arena and the constants have a pointer for each type
        )
        pointers = tuple(
            (name, Pointer(numbers[address], _TORCH[self.image.signature[name][1:]]))
            for name, address in self.pointers.items()
            if address
        )
        trips = tuple(self.values[f"t{depth}"] for depth in range(self.image.loops or 0))
        launch = Launch(self.image.kernel, self.image.blocks, trips)
        resident = self.image.blocks
        reply = run_launches(
            Request(self.image.text, memories, pointers, (launch,), resident, seed, SWITCHING)
        )
        if reply.fault:
            raise Violation(reply.fault)
        for address, content in zip(names, reply.memories, strict=True):
            ctypes.memmove(address, content, len(content))
