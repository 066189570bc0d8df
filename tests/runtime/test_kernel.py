from __future__ import annotations

import copy
import ctypes
import gc
import logging
import mmap
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from wolong_fx.errors import (
    KernelCheckFailed,
    KernelNotLoadable,
    NoCompiler,
    StaleKernelInput,
    WrongKernelAbi,
)
from wolong_fx.options import Options
from wolong_fx.runtime import ABI_VERSION, TensorSpec, kernel, load_kernel
from wolong_fx.runtime.arena import ALIGNMENT, Arena
from wolong_fx.runtime.openmp import find_openmp
from wolong_fx.testing.handwritten import add_then_reverse, report_team, table_lookup

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def options() -> Options:
    """Options of the run: these kernels are the same in every test, so the shared cache may keep them."""
    return Options.of()


@pytest.fixture(params=[1, 2], ids=["one thread", "a team"])
def add(request, options):
    return load_kernel(add_then_reverse(1000, threads=request.param), options)


def pair(n: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n), torch.randn(n)


# ---- numbers


def test_a_team_with_barriers_computes_what_one_thread_does(add):
    for _ in range(200):
        a, b = pair()
        (out,) = add(a, b)
        assert torch.equal(out, (a + b).flip(0))


def test_outputs_are_never_overwritten_by_later_calls(add):
    inputs = [pair() for _ in range(5)]
    outputs = [add(a, b)[0] for a, b in inputs]
    assert all(torch.equal(out, (a + b).flip(0)) for (a, b), out in zip(inputs, outputs, strict=True))
    assert len({out.data_ptr() for out in outputs}) == 5


def test_calls_from_many_threads_at_once_all_compute_right(add):
    start = threading.Barrier(6)

    def many(_: int) -> bool:
        start.wait()
        good = True
        for _ in range(150):
            a, b = pair()
            good = good and torch.equal(add(a, b)[0], (a + b).flip(0))
        return good

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, range(6)))


def test_a_call_made_while_another_one_runs_has_an_arena_of_its_own(options):
    kernel_ = load_kernel(add_then_reverse(100, threads=1), options)
    run, seen = kernel_._run, []

    def run_twice(block: ctypes.Array) -> int:
        seen.append(block[0])
        if len(seen) == 1:
            kernel_(*pair(100))
        return run(block)

    kernel_._run = run_twice
    a, b = pair(100)
    assert torch.equal(kernel_(a, b)[0], (a + b).flip(0))
    assert len(set(seen)) == 2
    kernel_(a, b)
    assert len(set(seen)) == 2  # arenas are used again


def test_an_empty_tensor_goes_in_and_comes_out(options):
    (out,) = load_kernel(add_then_reverse(0, threads=1), options)(torch.empty(0), torch.empty(0))
    assert out.shape == (0,)


def test_an_output_has_exactly_the_strides_of_its_spec(options):
    image = add_then_reverse(6, threads=1)
    for strides in ((1, 2), (3, 1)):
        transposed = replace(image, outputs=(TensorSpec(torch.float32, (2, 3), strides),))
        (out,) = load_kernel(transposed, options)(torch.arange(6.0), torch.zeros(6))
        assert out.stride() == strides
        assert torch.as_strided(out, (6,), (1,)).tolist() == [5, 4, 3, 2, 1, 0]


def test_a_default_device_does_not_move_outputs(options):
    kernel_ = load_kernel(add_then_reverse(4, threads=1), options)
    a, b = pair(4)
    with torch.device("meta"):
        (out,) = kernel_(a, b)
    assert out.device.type == "cpu"


def test_constants_are_found_aligned_and_whole(options):
    table = torch.randn(50)
    kernel_ = load_kernel(table_lookup(7, table), options)
    index = torch.tensor([0, 49, 3, 3, 20, 1, 48])
    assert torch.equal(kernel_(index)[0], table[index])
    assert kernel_._constants.address % ALIGNMENT == 0


# ---- checks


@pytest.mark.parametrize(("bad", "message"), [(-1, "index is negative"), (50, "index out of range in self")])
def test_a_failed_bounds_check_names_the_check_and_may_be_caught_as_eagers_errors(bad, message, options):
    kernel_ = load_kernel(table_lookup(3, torch.randn(50)), options)
    for eager_error in (KernelCheckFailed, IndexError, RuntimeError):
        with pytest.raises(eager_error, match=rf"{message} \(in kernel 'table_lookup'\)"):
            kernel_(torch.tensor([0, bad, 0]))
    assert kernel_(torch.tensor([0, 1, 2]))[0].shape == (3,)


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (torch.zeros(1000, dtype=torch.float64), r"float64\[1000\] with strides \[1\] on cpu"),
        (torch.zeros(999), r"float32\[999\]"),
        (torch.zeros(2000)[::2], r"with strides \[2\]"),
        (torch.zeros(1000, device="meta"), "on meta"),
    ],
    ids=["dtype", "shape", "strides", "device"],
)
def test_a_stale_input_is_named_with_what_was_expected_when_asked(second, found, add):
    expected = rf"wants float32\[1000\] with strides \[1\] as input 1, not .*{found}"
    with pytest.raises(StaleKernelInput, match=expected):
        add.launch([torch.zeros(1000), second], check=True)


def test_a_wrong_number_of_inputs_is_always_refused(add):
    for inputs in ([], [torch.zeros(1000)], [torch.zeros(1000)] * 3):
        with pytest.raises(StaleKernelInput, match=f"wants 2 tensors as inputs, not {len(inputs)}"):
            add.launch(inputs)
    add.launch([torch.zeros(1000)] * 2, check=True)


def test_strides_that_are_never_stepped_do_not_matter():
    spec = TensorSpec(torch.float32, (1, 4), (4, 1))
    assert spec.is_met_by(torch.zeros(3, 4).t().contiguous().t()[:1].contiguous())
    assert spec.is_met_by(torch.empty(8).as_strided((1, 4), (99, 1)))
    assert not spec.is_met_by(torch.empty(8).as_strided((1, 4), (1, 2)))
    assert TensorSpec(torch.float32, (0, 4), (4, 1)).is_met_by(torch.empty(8).as_strided((0, 4), (1, 2)))


# ---- loading


def test_without_a_compiler_loading_says_so(options, unseen, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler):
        load_kernel(unseen(add_then_reverse(3)), options)


def test_a_kernel_is_built_once_in_a_process_even_without_a_cache(tmp_path, compiler, unseen):
    (tmp_path / "file").write_text("")
    nowhere, image = Options(cache_dir=str(tmp_path / "file")), unseen(add_then_reverse(3, threads=1))
    for _ in range(3):
        assert load_kernel(image, nowhere)(torch.ones(3), torch.ones(3))[0].tolist() == [2, 2, 2]
    assert compiler.runs() == 1


def test_a_library_that_the_system_refuses_is_an_error_that_names_the_kernel(tmp_path, unseen):
    image = unseen(add_then_reverse(3))
    unlinked = 'extern "C" void nowhere(); struct S { S() { nowhere(); } } s;\n'
    with pytest.raises(KernelNotLoadable, match=r"'add_then_reverse': .*undefined symbol: nowhere"):
        load_kernel(
            replace(image, source=unlinked + image.source), Options(cache_dir=str(tmp_path / "cache"))
        )


def test_a_kernel_of_another_abi_is_refused(options, unseen):
    image = unseen(add_then_reverse(3))
    with pytest.raises(WrongKernelAbi, match=f"has ABI 7 but this runtime {ABI_VERSION}"):
        source = image.source.replace(f"wolong_abi = {ABI_VERSION}", "wolong_abi = 7")
        load_kernel(replace(image, source=source), options)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda k: pickle.loads(pickle.dumps(k))])
def test_a_copy_of_a_kernel_is_a_kernel(add, duplicate):
    twin = duplicate(add)
    a, b = pair()
    assert twin is not add
    assert torch.equal(twin(a, b)[0], add(a, b)[0])


# ---- teams


@pytest.fixture
def team_of_two(options):
    return load_kernel(report_team(2), options)


@pytest.mark.two_cores
def test_a_team_comes_whole_from_torchs_own_runtime(team_of_two):
    assert team_of_two()[0].tolist() == [2, 2]


@pytest.mark.two_cores
def test_inside_an_openmp_parallel_region_a_kernel_runs_on_one_thread(team_of_two):
    openmp, seen = find_openmp(), []
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def body(_: int | None) -> None:
        if openmp.library.omp_get_thread_num() == 0:
            seen.append(team_of_two()[0].tolist())

    openmp.library.GOMP_parallel(body_type(body), None, 2, 0)
    assert seen == [[1, 1]]


@pytest.mark.two_cores
def test_a_forked_child_computes_on_one_thread_and_the_parent_keeps_its_team(child, add, team_of_two):
    a, b = pair()
    add(a, b)
    team_of_two()

    def works() -> bool:
        right = all(torch.equal(add(a, b)[0], (a + b).flip(0)) for _ in range(50))
        return right and team_of_two()[0].tolist() == [1, 1]

    children = [child(works) for _ in range(3)]
    assert all(torch.equal(add(a, b)[0], (a + b).flip(0)) for _ in range(50))
    assert all(process.succeeds() for process in children)


def test_without_openmp_a_team_kernel_runs_on_one_thread_and_it_is_said_once(options, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="wolong_fx")
    monkeypatch.setattr(kernel, "find_openmp", lambda: None)
    for _ in range(2):
        alone = load_kernel(report_team(2), options)
        assert alone()[0].tolist() == [1, 1]
    assert ["without an OpenMP runtime" in r.getMessage() for r in caplog.records] == [True]


def test_the_user_limiting_torch_to_one_thread_is_obeyed_at_once(team_of_two):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert team_of_two()[0].tolist() == [1, 1]
    finally:
        torch.set_num_threads(before)


# ---- arenas


@pytest.mark.parametrize("size", [1, 4096, (4 << 20) - 1, 4 << 20, 9 << 20])
def test_an_arena_is_zeroed_aligned_and_all_there(size):
    arena = Arena(size)
    memory = (ctypes.c_char * size).from_address(arena.address)
    assert arena.address % (2 << 20 if size >= 4 << 20 and hasattr(mmap, "MADV_HUGEPAGE") else ALIGNMENT) == 0
    assert not any(memory[i] != b"\0" for i in range(0, size, 4096))
    memory[0] = memory[size - 1] = b"x"


def test_after_a_fork_an_arena_is_not_shared(child):
    arena = Arena(4096)

    def write() -> bool:
        ctypes.memset(arena.address, 7, 4096)
        return True

    assert child(write).succeeds()
    assert ctypes.string_at(arena.address, 4096) == bytes(4096)


def test_arenas_are_freed_with_their_kernel(options):
    size = 256 << 20
    gc.collect()
    before = virtual_bytes()
    kernel_ = load_kernel(replace(add_then_reverse(10, threads=1), arena_bytes=size), options)
    assert virtual_bytes() - before >= size
    del kernel_
    gc.collect()
    assert virtual_bytes() - before < size // 2


def virtual_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
