from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wolong_fx.codegen.reference import run_program
from wolong_fx.codegen.triton.image import gpu_image_of
from wolong_fx.ir.program import Program
from wolong_fx.options import Options
from wolong_fx.runtime.gpu.kernel import GpuKernel, load_gpu_kernel
from wolong_fx.testing.fake_device import FakeDevice
from wolong_fx.testing.programs import inputs_of
from wolong_fx.toolchain import notices

Load = Callable[[Program, FakeDevice], GpuKernel]


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_said", set())


@pytest.fixture
def load() -> Load:
    """Builds the kernel of a program for a fake device."""

    def load(program: Program, device: FakeDevice) -> GpuKernel:
        image = gpu_image_of(program, "ieee")
        device.know(image)
        return load_gpu_kernel(image, Options(), device, device.build)

    return load


@pytest.fixture
def is_right() -> Callable[[Program, list[Tensor], int], bool]:
    """Whether outputs are what the reference machine gives for the inputs of a seed."""

    def is_right(program: Program, outputs: list[Tensor], seed: int = 0) -> bool:
        expected = run_program(program, inputs_of(program, seed))
        return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(outputs, expected, strict=True))

    return is_right
