from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from wolong_fx.cli import main
from wolong_fx.emit import emission_screen, emit_model, find_model, make_input
from wolong_fx.errors import BadInputText, InputsNotTaken, ModelNotFound
from wolong_fx.runtime.gpu import ARCHITECTURES, build

H200 = ARCHITECTURES["sm_90"]
STEPS = 6


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = x.new_zeros(x.shape[1], 8)
        for t in range(STEPS):
            h = torch.tanh(self.of_input(x[t]) + self.of_state(h))
        return h


class Half(Recurrent):
    """Ends in an operator that we have no kernel for."""

    def forward(self, x):
        return torch.cumsum(super().forward(x), 0)


def inputs():
    return [torch.randn(STEPS, 2, 8)]


def test_a_recurrence_is_one_triton_kernel_with_what_it_takes_of_the_gpu():
    emission = emit_model(Recurrent(), inputs(), architecture=H200)
    (kernel,) = emission.kernels
    assert emission.fallbacks == []
    assert f"for t0 in range({STEPS})" in kernel.source and "@triton.jit" in kernel.source
    assert (kernel.registers or 0) > 0 and kernel.spill_bytes == 0
    assert (kernel.resident_blocks or 0) >= H200.multiprocessors
    # Blocks without work may meet the others in a loop of their own: then the text has a barrier twice.
    assert 1 <= kernel.barriers <= kernel.source.count("grid_barrier(word") <= 2 * kernel.barriers
    assert kernel.barriers < kernel.stages


def test_a_training_step_has_kernels_forward_and_backward():
    emission = emit_model(Recurrent(), inputs(), target="cpp", architecture=H200, trains=True)
    assert len(emission.kernels) >= 2 and all(k.registers is None for k in emission.kernels)


def test_what_has_no_kernel_is_listed_with_the_line_of_the_model():
    emission = emit_model(Half(), inputs(), target="reference", architecture=H200)
    assert len(emission.kernels) == 1
    (reason,) = emission.fallbacks
    assert "cumsum" in reason and "test_emit.py:" in reason
    assert "# without a kernel: " + reason in emission_screen(emission)


def test_the_command_prints_the_keys_that_programs_rely_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("from torch import nn\nNet = lambda: nn.Linear(8, 8)\n")
    monkeypatch.chdir(tmp_path)
    assert main(["emit", "mine:Net", "--input", "4x8", "--target", "reference", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    keys = "name source registers spill_bytes shared_bytes resident_blocks stages barriers"
    assert shown.keys() == {"kernels", "fallbacks"}
    assert [list(kernel) for kernel in shown["kernels"]] == [keys.split()]


@pytest.mark.parametrize("words", ["no.such:Net", "torch:nothing", "torch", "math:pi"])
def test_a_name_without_a_model_is_a_clear_error(words):
    with pytest.raises(ModelNotFound, match=words):
        find_model(words)


@pytest.mark.parametrize(
    ("shapes", "because"),
    [
        (["6x2x7"], "float32 6x2x7, eagerly too: RuntimeError: mat1 and mat2 shapes"),
        (["6x2x8:int64"], "int64 6x2x8, eagerly too: RuntimeError"),
        ([], "no input, eagerly too: TypeError"),
        (["6x2x8", "1"], "TypeError: .*forward.. takes 2 positional arguments"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_a_clear_error(shapes, because):
    with pytest.raises(InputsNotTaken, match=because):
        emit_model(Recurrent(), [make_input(s) for s in shapes], target="reference", architecture=H200)


def test_a_kernel_that_triton_cannot_compile_is_shown_without_figures_and_with_the_reason(
    tmp_path, monkeypatch
):
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys\nsys.stdin.read()\nos.abort()")
    monkeypatch.setattr(build, "WORKER", worker)
    emission = emit_model(Recurrent(), inputs(), architecture=H200)
    (kernel,) = emission.kernels
    assert "@triton.jit" in kernel.source and kernel.registers is None and kernel.resident_blocks is None
    (reason,) = emission.fallbacks
    assert "SIGABRT" in reason and re.search(r"wolong_fx-\w+\.py", reason)


@pytest.mark.parametrize("words", ["", "4*4", "4x-1", "4x4:text", "4x4:nn"])
def test_an_input_that_cannot_be_read_is_a_clear_error(words):
    with pytest.raises(BadInputText):
        make_input(words)


def test_an_input_has_the_shape_and_type_that_it_is_given():
    assert make_input("3x4").shape == (3, 4)
    assert make_input("5:int64").tolist() == [0] * 5
