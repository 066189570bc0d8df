"""CUDA's driver by way of ctypes: the few entries that launches need, each with its types and its errors.

Names and numbers: CUDA Driver API, cuda.h of CUDA 12. Every entry here is in 12.0 and later.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from wolong_fx.errors import DriverFailed, NoGpu
from wolong_fx.runtime.gpu.device import KernelCall, NoRoom, Run

WARP = 32

INVALID_CONTEXT = 201
COOPERATIVE_LAUNCH_TOO_LARGE = 720

MULTIPROCESSORS = 16
MAJOR, MINOR = 75, 76
THREADS_OF_MULTIPROCESSOR = 39
BLOCKS_OF_MULTIPROCESSOR = 106
REGISTERS_OF_MULTIPROCESSOR = 82
SHARED_OF_MULTIPROCESSOR = 81
SHARED_OF_BLOCK_AT_MOST = 97
COOPERATIVE_LAUNCH = 95
"""CUdevice_attribute."""

_DYNAMIC_SHARED_BYTES = 8  # CUfunction_attribute
_STATIC_SHARED_LIMIT = 48 << 10  # above it a kernel must say how much it wants
_COOPERATIVE = 2  # CUlaunchAttributeID
_CAPTURING = 1  # CUstreamCaptureStatus
_RELAXED = 2  # CUstreamCaptureMode

# The types of each entry's arguments; all return a CUresult.
_ENTRIES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": (POINTER(c_int), c_void_p, c_int, c_size_t),
    "cuLaunchKernelEx": (c_void_p, c_void_p, c_void_p, c_void_p),
    "cuMemsetD32Async": (c_uint64, c_uint, c_size_t, c_void_p),
    "cuStreamGetCaptureInfo_v2": (c_void_p, POINTER(c_int), POINTER(c_uint64), c_void_p, c_void_p, c_void_p),
    "cuThreadExchangeStreamCaptureMode": (POINTER(c_int),),
}


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: its value is a union of 64 bytes, of which we use the first int."""

    _fields_ = (
        ("id", c_int),
        ("pad", ctypes.c_char * 4),
        ("value", c_int),
        ("rest", ctypes.c_char * 60),
    )


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(_LaunchAttribute)),
        ("attribute_count", c_uint),
    )


class LibCuda:
    """The driver. Methods raise DriverFailed; of a device they name its number."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, types in _ENTRIES.items():
            entry = getattr(library, name)
            entry.argtypes, entry.restype = types, c_int
        self._call("cuda", "cuInit", 0)

    def _call(self, device: str, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise DriverFailed(call=name, device=device, status=status, because=self.describe(status))

    def describe(self, status: int) -> str:
        """What an error means."""
        text = c_char_p()
        self._library.cuGetErrorString(status, byref(text))
        return (text.value or b"unknown error").decode()

    def device_name(self, device: int) -> str:
        name = ctypes.create_string_buffer(256)
        self._call(_cuda(device), "cuDeviceGetName", name, len(name), self._handle(device))
        return name.value.decode()

    def attribute(self, device: int, number: int) -> int:
        """What a device has of one of the attributes above."""
        value = c_int()
        self._call(_cuda(device), "cuDeviceGetAttribute", byref(value), number, self._handle(device))
        return value.value

    def enter_context(self, device: int) -> None:
        """Make torch's context of a device the current one of this thread."""
        context = c_void_p()
        self._call(_cuda(device), "cuDevicePrimaryCtxRetain", byref(context), self._handle(device))
        self._call(_cuda(device), "cuCtxSetCurrent", context)

    def load(self, device: int, code: bytes) -> int:
        """A module, loaded whatever this thread captures."""
        module, mode = c_void_p(), c_int(_RELAXED)
        self._call(_cuda(device), "cuThreadExchangeStreamCaptureMode", byref(mode))
        try:
            self._call(_cuda(device), "cuModuleLoadData", byref(module), code)
        finally:
            self._call(_cuda(device), "cuThreadExchangeStreamCaptureMode", byref(mode))
        return module.value or 0

    def find_function(self, device: int, module: int, name: str, shared_bytes: int) -> int:
        function = c_void_p()
        self._call(_cuda(device), "cuModuleGetFunction", byref(function), module, name.encode())
        if shared_bytes > _STATIC_SHARED_LIMIT:
            self._call(_cuda(device), "cuFuncSetAttribute", function, _DYNAMIC_SHARED_BYTES, shared_bytes)
        return function.value or 0

    def blocks_of_multiprocessor(self, device: int, function: int, threads: int, shared_bytes: int) -> int:
        """Blocks that one multiprocessor holds together."""
        blocks = c_int()
        name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        self._call(_cuda(device), name, byref(blocks), function, threads, shared_bytes)
        return blocks.value

    def zero(self, device: int, address: int, size: int, stream: int) -> None:
        self._call(_cuda(device), "cuMemsetD32Async", address, 0, size // 4, stream)

    def find_capture(self, device: int, stream: int) -> int | None:
        """The number of the capture that a stream takes part in."""
        status, number = c_int(), c_uint64()
        name = "cuStreamGetCaptureInfo_v2"
        self._call(_cuda(device), name, stream, byref(status), byref(number), None, None, None)
        return number.value if status.value == _CAPTURING else None

    def prepare(self, device: int, call: KernelCall) -> Run:
        """A launch with all arguments but the stream laid out: one call of C with four addresses."""
        attribute = _LaunchAttribute(id=_COOPERATIVE, value=int(call.cooperative))
        config = _LaunchConfig(
            grid=(call.blocks, 1, 1),
            block=(WARP * call.warps, 1, 1),
            shared_bytes=call.shared_bytes,
            attributes=ctypes.pointer(attribute),
            attribute_count=1,
        )
        launch, described = self._library.cuLaunchKernelEx, byref(config)
        function, parameters = c_void_p(call.function), call.parameters

        def run(stream: int) -> None:
            config.stream = stream
            status = launch(described, function, parameters, None)
            if status:
                self._recover(device, status, lambda: launch(described, function, parameters, None))

        return run

    def _recover(self, device: int, status: int, again: Callable[[], int]) -> None:
        """A thread that has done nothing with CUDA has no context; torch's allocator does without one."""
        if status == INVALID_CONTEXT:
            self.enter_context(device)
            status = again()
        if status == COOPERATIVE_LAUNCH_TOO_LARGE:
            raise NoRoom
        if status:
            because = self.describe(status)
            raise DriverFailed(call="cuLaunchKernelEx", device=_cuda(device), status=status, because=because)

    def _handle(self, device: int) -> int:
        handle = c_int()
        self._call(_cuda(device), "cuDeviceGet", byref(handle), device)
        return handle.value


@cache
def find_libcuda() -> LibCuda:
    """The driver of this machine; raises NoGpu."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return LibCuda(ctypes.CDLL(name))
    except (OSError, AttributeError) as error:  # not there, or without one of the entries
        raise NoGpu(device="cuda", because=f"{name} cannot be used ({error})") from error


def _cuda(device: int) -> str:
    return f"cuda:{device}"
