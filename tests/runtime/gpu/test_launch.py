"""A call of a kernel on a fake device: its grid, its form, what goes wrong, and what it says of itself."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch

from wolong_fx.errors import DriverFailed, FirstCallInCapture, KernelCheckFailed, StaleKernelInput
from wolong_fx.ir.happens_before import remove_redundant_barriers
from wolong_fx.ir.index import Var
from wolong_fx.ir.program import Store
from wolong_fx.runtime.gpu.failures import raise_failures
from wolong_fx.testing.fake_device import FakeDevice, Violation
from wolong_fx.testing.programs import (
    ProgramBuilder,
    at,
    embedding,
    f32,
    inputs_of,
    mixed_types,
    mlp,
    mul,
    operator,
    recurrence,
)
from wolong_fx.testing.programs import load as gpu_load

CHAIN = recurrence(steps=3, width=8, tile=(2,))  # four virtual blocks a stage
STAGES = 1 + 3


def test_a_program_is_one_cooperative_launch(load, is_right):
    device = FakeDevice()
    kernel = load(CHAIN, device)
    assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
    (launch,) = device.launches
    assert launch.cooperative and launch.kernel == "wolong" and launch.word


@pytest.mark.parametrize(
    ("multiprocessors", "fit", "blocks"),
    [(3, 1, 3), (4, 1, 4), (2, 2, 4), (8, 4, 4), (1, 3, 3)],
)
def test_the_grid_is_what_has_work_and_is_resident(load, is_right, multiprocessors, fit, blocks):
    device = FakeDevice(multiprocessors=multiprocessors, blocks_of_multiprocessor=fit)
    kernel = load(CHAIN, device)
    assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
    assert device.launches[0].blocks == blocks == device.built[-1].blocks
    report = kernel.report()
    assert (report.grid, report.resident_blocks, report.wanted_blocks) == (blocks, multiprocessors * fit, 4)


def test_a_grid_that_fits_only_as_another_grid_is_given_up(load, is_right, monkeypatch):
    device, answers = FakeDevice(), itertools.cycle([4, 3])  # a kernel for 4 blocks fits 3 times, and back
    monkeypatch.setattr(device, "resident_blocks", lambda *_: next(answers))
    kernel = load(CHAIN, device)
    assert kernel.report().form == "staged"
    assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))


def test_a_program_whose_blocks_never_meet_is_no_cooperative_launch(load, is_right):
    program, device = remove_redundant_barriers(mixed_types()), FakeDevice(can_cooperate=False)
    assert is_right(program, load(program, device).launch(inputs_of(program)))
    assert [launch.cooperative for launch in device.launches] == [False]


@pytest.mark.parametrize(
    "device", [FakeDevice(blocks_of_multiprocessor=0), FakeDevice(can_cooperate=False)], ids=["room", "kind"]
)
def test_where_the_grid_has_no_room_there_is_a_launch_for_every_stage_and_one_line(
    load, is_right, device, caplog
):
    kernel = load(CHAIN, device)
    for _ in range(2):
        assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
    assert [launch.cooperative for launch in device.launches] == [False] * 2 * STAGES
    assert kernel.report().form == "staged" and kernel.report().launches == STAGES
    assert [r.message for r in caplog.records if "launches instead of one" in r.message] == [
        r.message for r in caplog.records
    ]
    assert len(caplog.records) == 1


def test_a_launch_that_finds_the_device_busy_goes_on_in_stages(load, is_right, caplog):
    device = FakeDevice()
    kernel = load(CHAIN, device)
    assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
    device.room = 1
    assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
    assert len(device.launches) == 1 + STAGES
    assert "wants 3 blocks at once and 'fake' has room for 3" in caplog.records[0].message
    device.room = None  # it stays there: whoever had the rest may come back
    assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
    assert len(device.launches) == 1 + 2 * STAGES and len(caplog.records) == 1


def test_both_forms_give_the_same_bits(load):
    device = FakeDevice()
    persistent, staged = load(CHAIN, device), load(CHAIN, device)
    staged.use_stages()
    inputs = inputs_of(CHAIN)
    assert all(map(torch.equal, persistent.launch(inputs), staged.launch(inputs)))


def test_a_failed_launch_is_an_error_and_the_next_one_has_a_fresh_word(load, is_right):
    device, inputs = FakeDevice(is_lazy=True), inputs_of(CHAIN)
    kernel = load(CHAIN, device)
    kernel.launch(inputs)
    device.synchronize()
    spoil = kernel._words._of_stream[0]
    device.failing["launch"] = 0
    with pytest.raises(DriverFailed, match="the test says so"):
        kernel.launch(inputs)
    spoil.fill_(7)  # as a kernel that was stopped half-way leaves it
    del spoil
    outputs = kernel.launch(inputs)
    device.synchronize()
    assert is_right(CHAIN, outputs)


@pytest.mark.parametrize("call", ["build", "load"])
def test_what_cannot_be_built_or_loaded_raises_and_leaves_nothing_behind(load, is_right, call):
    device = FakeDevice(failing={call: 0})
    with pytest.raises(DriverFailed):
        load(CHAIN, device)
    assert is_right(CHAIN, load(CHAIN, device).launch(inputs_of(CHAIN)))


def test_a_failed_check_is_told_by_the_next_call_and_then_forgotten(load, is_right):
    program, device = embedding(), FakeDevice()
    kernel = load(program, device)
    good, bad = inputs_of(program), inputs_of(program)
    index = next(i for i, x in enumerate(bad) if not x.is_floating_point())
    bad[index] = torch.full_like(bad[index], 1000)
    kernel.launch(bad)
    with pytest.raises(KernelCheckFailed) as found:
        kernel.launch(good)
    assert isinstance(found.value, IndexError)
    assert is_right(program, kernel.launch(good))


def test_after_a_failed_check_words_are_fresh(load, is_right):
    program, device = embedding(), FakeDevice()
    kernel, good = load(program, device), inputs_of(program)
    kernel.launch([x if x.is_floating_point() else torch.full_like(x, 1000) for x in good])
    kernel._words._of_stream[0].fill_(7)
    with pytest.raises(KernelCheckFailed):
        kernel.launch(good)
    assert is_right(program, kernel.launch(good))


def test_a_failed_check_can_be_asked_for_once_the_device_is_done(load):
    program, device = embedding(), FakeDevice(is_lazy=True)
    kernel = load(program, device)
    bad = [x if x.is_floating_point() else torch.full_like(x, 1000) for x in inputs_of(program)]
    kernel.launch(bad)
    raise_failures()  # nothing has happened yet
    device.synchronize()
    with pytest.raises(KernelCheckFailed):
        raise_failures()
    raise_failures()


def test_inputs_that_begin_anywhere_are_read_right(load, is_right):
    program, device = mlp(), FakeDevice()
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in inputs_of(program)]
    assert any(x.data_ptr() % 16 for x in shifted)
    assert is_right(program, load(program, device).launch(shifted))


def test_what_is_written_in_place_is_written_wherever_it_begins(load):
    p, i = ProgramBuilder("update"), Var("i", 12)
    x = p.state("x", 12)
    p.stage(operator("double", (i,), Store(at(x, i), mul(gpu_load(x, i), f32(2.0))), tile=(4,)))
    kernel, given = load(p.build(), FakeDevice()), torch.arange(13.0)[1:]
    assert given.data_ptr() % 16
    kernel.launch([given])
    assert torch.equal(given, 2 * torch.arange(1.0, 13.0))


def test_the_fake_refuses_pointers_that_kernels_were_not_compiled_for(load, monkeypatch):
    program, device = mlp(), FakeDevice()
    kernel = load(program, device)
    monkeypatch.setattr("wolong_fx.runtime.gpu.kernel.ALIGNMENT", 1)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in inputs_of(program)]
    with pytest.raises(Violation, match="misaligned"):
        kernel.launch(shifted)


def test_a_kernel_runs_on_its_own_device_whatever_is_current(load, is_right):
    device = FakeDevice()
    with device.another_is_current():
        kernel = load(CHAIN, device)
        assert is_right(CHAIN, kernel.launch(inputs_of(CHAIN)))
        assert not device.is_current()


def test_a_kernel_is_not_made_during_a_capture(load):
    device = FakeDevice()
    with device.capturing(), pytest.raises(FirstCallInCapture, match="before the capture"):
        load(CHAIN, device)


def test_a_wrong_number_of_inputs_and_wrong_metadata_are_named(load):
    kernel = load(CHAIN, FakeDevice())
    inputs = inputs_of(CHAIN)
    with pytest.raises(StaleKernelInput):
        kernel.launch(inputs[:-1])
    with pytest.raises(StaleKernelInput):
        kernel.launch([inputs[0].double(), *inputs[1:]], check=True)


def test_a_copy_is_a_kernel_of_its_own(load, is_right):
    kernel = load(CHAIN, FakeDevice())
    copied = copy.deepcopy(kernel)
    assert copied is not kernel and copied._words is not kernel._words
    assert is_right(CHAIN, copied.launch(inputs_of(CHAIN)))


def test_an_image_can_be_sent_to_another_process(load):
    image = load(CHAIN, FakeDevice()).image
    again = pickle.loads(pickle.dumps(image))
    assert again.grid == image.grid and again.stages() == image.stages()


def test_an_empty_output_is_launched_for_and_comes_out(load):
    program, device = mlp(), FakeDevice()
    outputs = load(program, device).launch(inputs_of(program))
    assert [y.shape for y in outputs] == [spec.shape for spec in load(program, device).image.outputs]
