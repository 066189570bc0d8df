"""The driver's entries are called as its header has them: on a stub that is compiled against that header."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from triton.backends.nvidia import driver as nvidia

from wolong_fx.errors import DriverFailed, NoGpu
from wolong_fx.runtime.gpu import libcuda
from wolong_fx.runtime.gpu.device import KernelCall, NoRoom
from wolong_fx.runtime.gpu.libcuda import LibCuda
from wolong_fx.toolchain.compiler import get_compiler

pytestmark = pytest.mark.cpu

SOURCE = Path(__file__).with_name("stub_driver.cpp")


class Seen(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid", "block", "shared", "cooperative", "attributes")),
        ("stream", ctypes.c_void_p),
        ("function", ctypes.c_void_p),
        ("first", ctypes.c_ulonglong),
        ("second", ctypes.c_int),
        *((name, ctypes.c_int) for name in ("launches", "contexts", "current", "relaxed")),
        *((name, ctypes.c_int) for name in ("largest_shared", "value", "count")),
        ("address", ctypes.c_ulonglong),
        ("code", ctypes.c_ubyte * 4),
    )


class Stub:
    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.seen = Seen.in_dll(self.library, "seen")
        self.next_status = (ctypes.c_int * 4).in_dll(self.library, "next_status")
        self.capture_number = ctypes.c_int.in_dll(self.library, "capture_number")
        self.driver = LibCuda(self.library)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    headers = nvidia.include_dirs
    path = tmp_path_factory.mktemp("stub") / "libcuda.so"
    includes = [f"-I{folder}" for folder in headers]
    command = [*get_compiler().command, "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def stub(built, tmp_path) -> Stub:
    own = tmp_path / "libcuda.so"  # the loader knows a library by its file: each test gets another
    own.write_bytes(built.read_bytes())
    return Stub(own)


def call(cooperative: bool = True) -> tuple[KernelCall, list[object]]:
    values = [ctypes.c_uint64(0x7F0011223344), ctypes.c_int32(-5)]
    parameters = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
    return KernelCall(11, 132, 4, 41000, parameters, cooperative), values


@pytest.mark.parametrize("cooperative", [True, False])
def test_a_launch_says_grid_block_memory_stream_and_parameters(stub, cooperative):
    described, _held = call(cooperative)
    run = stub.driver.prepare(0, described)
    for stream in (0, 0xABCD):
        run(stream)
        seen = stub.seen
        assert (seen.grid, seen.block, seen.shared, seen.cooperative) == (132, 128, 41000, cooperative)
        assert (seen.stream or 0, seen.function, seen.attributes) == (stream, 11, 1)
        assert (seen.first, seen.second) == (0x7F0011223344, -5)


def test_parameters_are_read_when_it_is_launched(stub):
    described, values = call()
    run = stub.driver.prepare(0, described)
    values[1].value = 9
    run(0)
    assert stub.seen.second == 9


def test_a_thread_without_a_context_enters_torchs_and_launches_again(stub):
    stub.next_status[0] = libcuda.INVALID_CONTEXT
    stub.driver.prepare(1, call()[0])(0)
    assert (stub.seen.launches, stub.seen.contexts, stub.seen.current) == (2, 1, 101)


def test_a_cooperative_launch_without_room_is_told_from_other_failures(stub):
    run = stub.driver.prepare(0, call()[0])
    stub.next_status[0] = libcuda.COOPERATIVE_LAUNCH_TOO_LARGE
    with pytest.raises(NoRoom):
        run(0)
    stub.next_status[0] = 716
    with pytest.raises(
        DriverFailed, match="cuLaunchKernelEx failed on 'cuda:0' with 716: misaligned address"
    ):
        run(0)
    run(0)


def test_a_module_is_loaded_whatever_is_captured_and_the_mode_is_put_back(stub):
    assert stub.driver.load(0, b"\x7fELF\0\0") == 7
    assert bytes(stub.seen.code) == b"\x7fELF" and stub.seen.value == 1 and stub.seen.relaxed == 0


@pytest.mark.parametrize(("shared", "told"), [(48 << 10, 0), (100_000, 100_000)])
def test_a_kernel_says_that_it_wants_more_shared_memory_than_every_block_may_have(stub, shared, told):
    assert stub.driver.find_function(0, 7, "wolong", shared) == 11
    assert stub.seen.largest_shared == told


def test_a_kernel_that_is_not_there_is_an_error_with_its_device(stub):
    with pytest.raises(DriverFailed, match="cuModuleGetFunction failed on 'cuda:1' with 500"):
        stub.driver.find_function(1, 7, "other", 0)


def test_occupancy_asks_about_threads_and_shared_memory(stub):
    assert stub.driver.blocks_of_multiprocessor(0, 11, 128, 1280) == 10


def test_memory_is_zeroed_in_words_on_the_stream(stub):
    stub.driver.zero(0, 0x7F0000000200, 128, 77)
    seen = stub.seen
    assert (seen.address, seen.value, seen.count, seen.stream) == (0x7F0000000200, 0, 32, 77)


def test_a_capture_is_known_by_its_number(stub):
    assert stub.driver.find_capture(0, 5) is None
    stub.capture_number.value = 42
    assert stub.driver.find_capture(0, 5) == 42


def test_attributes_and_names_are_those_of_the_device(stub):
    assert stub.driver.attribute(1, libcuda.MULTIPROCESSORS) == 1016
    assert stub.driver.device_name(0) == "Stub"
    with pytest.raises(DriverFailed, match="cuDeviceGet failed on 'cuda:5'"):
        stub.driver.device_name(5)


def test_numbers_are_those_of_the_header(built, tmp_path):
    names = {
        "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": libcuda.MULTIPROCESSORS,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": libcuda.MAJOR,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": libcuda.MINOR,
        "CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR": libcuda.THREADS_OF_MULTIPROCESSOR,
        "CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR": libcuda.BLOCKS_OF_MULTIPROCESSOR,
        "CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR": libcuda.REGISTERS_OF_MULTIPROCESSOR,
        "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": libcuda.SHARED_OF_MULTIPROCESSOR,
        "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": libcuda.SHARED_OF_BLOCK_AT_MOST,
        "CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH": libcuda.COOPERATIVE_LAUNCH,
        "CUDA_ERROR_INVALID_CONTEXT": libcuda.INVALID_CONTEXT,
        "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": libcuda.COOPERATIVE_LAUNCH_TOO_LARGE,
    }
    headers = nvidia.include_dirs
    checks = "".join(f"static_assert({name} == {number});\n" for name, number in names.items())
    source = tmp_path / "numbers.cpp"
    source.write_text(f"#include <cuda.h>\n{checks}")
    includes = [f"-I{folder}" for folder in headers]
    command = [*get_compiler().command, "-std=c++17", "-fsyntax-only", *includes, str(source)]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_library_that_lacks_an_entry_is_no_gpu(monkeypatch):
    libcuda.find_libcuda.cache_clear()
    monkeypatch.setattr(libcuda.ctypes, "CDLL", lambda name: object())
    with pytest.raises(NoGpu, match="cannot be used"):
        libcuda.find_libcuda()
    libcuda.find_libcuda.cache_clear()
