"""Says whether tensors are still what they were: the objects, their memory, their version counters.

Every in-place operator of torch moves the version counter of its tensor (`Tensor._version`), on every alias
that shares it. `p.data = other` does not, but changes the address; so the old memory is held until then, or
another tensor could come to lie there. Beyond that promise a few words of each tensor are compared, since
`p.data.mul_()` moves nothing at all: an optimiser, or an average over weights, changes nearly all of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import is_

import torch
from torch import Tensor

from wolong_fx import _torch_compat
from wolong_fx.errors import WolongError
from wolong_fx.options import Options
from wolong_fx.toolchain.cache import KernelCache, cache_key
from wolong_fx.toolchain.compiler import build_library

SAMPLES = 4
"""Words compared of each tensor, spread over it."""

_address = Tensor.data_ptr
_version: Callable[[Tensor], int] = Tensor._version.__get__  # type: ignore[attr-defined]

_SOURCE = """\
// Whether watched tensors moved. Called with the interpreter's lock held; header-free, as kernels are.
typedef long long i64;
typedef unsigned u32;
struct Tensor { i64 position; void* object; void** tensor; void* implementation; void* data; i64 version; };
struct Sample { const char* at; u32 was; };
struct Watch { const Tensor* tensors; i64 count, least; const Sample* samples; i64 words; };
typedef i64 (*VersionOf)(void*);
typedef int (*DataOf)(void*, void**);
static VersionOf version_of;
static DataOf data_of;

extern "C" void* PyList_GetItem(void* list, i64 index);  // of the limited API; borrows
extern "C" i64 PyList_Size(void* list);
extern "C" void* PyTuple_GetItem(void* tuple, i64 index);
extern "C" void* PyLong_AsVoidPtr(void* number);
extern "C" void* PyBool_FromLong(long value);

extern "C" void wolong_watch_init(VersionOf version, DataOf data) { version_of = version; data_of = data; }
// Whether the tensors in `list`, which has at least `least`, are not those, or not as they were.
static int has_moved(const Watch* watch, void* list) {
  if (PyList_Size(list) < watch->least) return 1;
  for (i64 i = 0; i < watch->count; i++) {
    const Tensor& t = watch->tensors[i];
    void* data;
    // After torch.utils.swap_tensors an object has another implementation, of which we know nothing.
    if (PyList_GetItem(list, t.position) != t.object || *t.tensor != t.implementation) return 1;
    if (version_of(t.tensor) != t.version || data_of(t.tensor, &data) || data != t.data) return 1;
  }
  for (i64 i = 0; i < watch->words; i++) {
    u32 now;
    __builtin_memcpy(&now, watch->samples[i].at, sizeof now);
    if (now != watch->samples[i].was) return 1;
  }
  return 0;
}
// The same as a function of Python; `self` is a tuple that holds the watch and begins with its address.
extern "C" void* wolong_has_moved(void* self, void* list) {
  return PyBool_FromLong(has_moved((const Watch*)PyLong_AsVoidPtr(PyTuple_GetItem(self, 0)), list));
}
"""


class _CTensor(ctypes.Structure):
    _fields_ = (
        ("position", ctypes.c_longlong),
        ("object", ctypes.c_void_p),
        ("tensor", ctypes.c_void_p),
        ("implementation", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("version", ctypes.c_longlong),
    )


class _CSample(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("was", ctypes.c_uint32))


class _CMethod(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_ONE_ARGUMENT = 8  # METH_O


class _CWatch(ctypes.Structure):
    _fields_ = (
        ("tensors", ctypes.POINTER(_CTensor)),
        ("count", ctypes.c_longlong),
        ("least", ctypes.c_longlong),
        ("samples", ctypes.POINTER(_CSample)),
        ("words", ctypes.c_longlong),
    )


class Watch:
    """What some tensors of a list are at this moment; holds them and their memory.

    positions: where they stand in the list; without it, they are all of it
    has_moved: whether the tensors there in another list are not these, or not as they were

    Nothing can be said of tensors without a version counter (made in inference mode), or in memory that
    others may write to with a counter of their own (a part of a vector, say by `vector_to_parameters`):
    `is_blind` then, and `has_moved` always.
    """

    __slots__ = ("_addresses", "_memory", "_positions", "_versions", "has_moved", "is_blind", "tensors")

    def __init__(
        self, inputs: Sequence[Tensor], options: Options, positions: Sequence[int] | None = None
    ) -> None:
        self._positions = tuple(range(len(inputs)) if positions is None else positions)
        self.tensors = tuple(inputs[i] for i in self._positions)
        self.is_blind = not all(map(is_watchable, self.tensors))
        self.has_moved: Callable[[list[Tensor]], bool] = self._cannot_know
        if not self.is_blind:
            self._versions = tuple(map(_version, self.tensors))
            self._memory = tuple(t.untyped_storage() for t in self.tensors)
            self._addresses = tuple(map(_address, self.tensors))
            self.has_moved = self._check_in_c(options) or self._check_in_python

    def _cannot_know(self, inputs: list[Tensor]) -> bool:
        return True

    def _check_in_python(self, inputs: list[Tensor]) -> bool:
        if len(inputs) <= max(self._positions, default=-1):
            return True
        found = [inputs[i] for i in self._positions]
        return not (
            all(map(is_, found, self.tensors))
            and tuple(map(_version, found)) == self._versions
            and tuple(map(_address, found)) == self._addresses
        )

    def _check_in_c(self, options: Options) -> Callable[[list[Tensor]], bool] | None:
        library = _find_library(options)
        if library is None:
            return None
        rows = zip(self._positions, self.tensors, self._addresses, self._versions, strict=True)
        entries = [
            _CTensor(position, id(t), id(t) + library.offset, t._cdata, address, version)  # type: ignore[attr-defined]
            for position, t, address, version in rows
        ]
        places = [at for t in self.tensors for at in _places(t)]
        words = [_CSample(at, ctypes.c_uint32.from_address(at).value) for at in places]
        tensors, samples = (_CTensor * len(entries))(*entries), (_CSample * len(words))(*words)
        least = max(self._positions, default=-1) + 1
        return library.has_moved(_CWatch(tensors, len(entries), least, samples, len(words)))


def is_watchable(tensor: Tensor) -> bool:
    """Whether every ordinary write to `tensor` moves a counter that can be read."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_inference():
        return False
    if tensor.device.type not in ("cpu", "cuda") or tensor.layout is not torch.strided:
        return False
    return tensor.untyped_storage().nbytes() == _span(tensor) and tensor.storage_offset() == 0


def _span(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _places(tensor: Tensor) -> Iterator[int]:
    """Addresses of the words to compare: the first, the last, and some between."""
    words = _span(tensor) // 4 if tensor.device.type == "cpu" else 0  # to look at a GPU's is to wait for it
    for position in sorted({i * (words - 1) // (SAMPLES - 1) for i in range(SAMPLES)} if words else ()):
        yield tensor.data_ptr() + 4 * position


class _Library:
    """The check in C; `offset` of the at::Tensor in the object that Python sees."""

    def __init__(self, library: ctypes.PyDLL, access: _torch_compat.TensorAccess) -> None:
        function = ctypes.cast(library.wolong_has_moved, ctypes.c_void_p).value
        self._method = _CMethod(b"has_moved", function, _ONE_ARGUMENT, None)
        self.offset = access.offset
        library.wolong_watch_init(ctypes.c_void_p(access.version), ctypes.c_void_p(access.data_pointer))

    def has_moved(self, watch: _CWatch) -> Callable[[list[Tensor]], bool]:
        """A builtin function: to call one costs 0.2 us less than to call through ctypes."""
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        held = (ctypes.addressof(watch), watch, self._method)
        return make(ctypes.addressof(self._method), held, None)


@cache
def _find_library(options: Options) -> _Library | None:
    """None where torch hides what the check needs, or nothing can be built: Python then checks."""
    access = _torch_compat.find_tensor_access()
    if access is None:
        return None
    key = cache_key(_SOURCE, ())
    try:
        library = KernelCache.of(options).fetch(key, lambda d: build_library(_SOURCE, (), d), ctypes.PyDLL)
    except (OSError, WolongError):
        return None
    return _Library(library, access)
