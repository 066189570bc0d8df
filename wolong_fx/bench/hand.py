"""What a person would write: programs for one machine and one set of sizes, built when a benchmark starts."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from wolong_fx.bench.job import Contender, ContenderMissing
from wolong_fx.errors import WolongError
from wolong_fx.testing.models import GateLSTM
from wolong_fx.toolchain.compiler import build_library

FLAGS = ("-O3", "-march=native", "-fopenmp")


class Tensors(ctypes.Structure):
    """Those of lstm.cpp, in its order."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in "x W U b projected out h c".split())


def make_lstm(source: Path, model: GateLSTM, x_TBI: Tensor) -> Contender:
    """The hand-written LSTM; its weights are packed once, before it is timed."""
    steps, batch, hidden = *x_TBI.shape[:2], model.hidden
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        raise ContenderMissing("it is written for AVX-512")
    if hidden % 16:
        raise ContenderMissing("it is written for a hidden size that 16 divides")
    library = build(source, (f"-DHIDDEN={hidden}", f"-DBATCH={batch}", f"-DSTEPS={steps}"))
    W, U, b = (_packed(library, list(gates)) for gates in (model.W, model.U, model.b))
    out_TBH, projected = _aligned(steps, batch, hidden), _aligned(steps, batch, 4 * hidden)
    h_BH, c_BH = _aligned(batch, hidden), _aligned(batch, hidden)
    held = (_copied(x_TBI), W, U, b, projected, out_TBH, h_BH, c_BH)
    tensors, threads = Tensors(*(t.data_ptr() for t in held)), torch.get_num_threads()

    def call() -> Sequence[Tensor]:
        library.lstm_run(ctypes.byref(tensors), threads)
        return held[-3:]

    return Contender(call, call)


def make_floor(source: Path, flops: float) -> Contender:
    """As many floating-point operations as the job has, at the peak of all threads."""
    library = build(source, ())
    amount, threads = ctypes.c_double(flops), torch.get_num_threads()
    return Contender(lambda: library.floor_spend(amount, threads))


@cache
def build(source: Path, definitions: tuple[str, ...]) -> ctypes.CDLL:
    """The program as a library. Its OpenMP is torch's where that has the same name, as it has here."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            made = build_library(source.read_text(), (*FLAGS, *definitions), Path(directory))
        except WolongError as error:
            raise ContenderMissing(str(error)) from error
        return ctypes.CDLL(str(made))


def _packed(library: ctypes.CDLL, gates: Sequence[Tensor]) -> Tensor:
    rows = gates[0].shape[0] if gates[0].dim() == 2 else 1
    held = [_copied(gate) for gate in gates]
    packed = _aligned(len(gates) * gates[0].numel())
    pointers = (ctypes.c_void_p * len(held))(*(gate.data_ptr() for gate in held))
    library.lstm_pack(pointers, ctypes.c_long(rows), ctypes.c_void_p(packed.data_ptr()))
    return packed


def _copied(tensor: Tensor) -> Tensor:
    return _aligned(*tensor.shape).copy_(tensor.detach())


def _aligned(*shape: int) -> Tensor:
    """Float32 zeros; torch aligns what it allocates to 64 bytes, which the kernel relies on."""
    made = torch.zeros(shape)
    assert made.data_ptr() % 64 == 0
    return made
