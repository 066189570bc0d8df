"""Triton's interpreter with a grid of our own: everything here that Triton calls private.

Tried on Triton 3.6, 3.7.1 and 3.9. Only imported where TRITON_INTERPRET is set.
"""

from __future__ import annotations

import ctypes
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle, interpreter_builder

from wolong_fx.testing.grid_simulator.ptx import Thread
from wolong_fx.testing.grid_simulator.scheduler import Scheduler
from wolong_fx.testing.grid_simulator.shadow import Shadow

ELEMENTARY: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(torch, name)
    for name in """exp exp2 expm1 log log2 log10 log1p tanh erf erfc sin cos tan asin acos atan sinh cosh
    asinh acosh atanh floor ceil trunc lgamma pow atan2 hypot copysign""".split()
} | {"rint": torch.round, "fmod": lambda a, b: torch.from_numpy(np.fmod(a.numpy(), b.numpy()))}
"""What the functions of libdevice mean; the interpreter has none of them. Torch's fmod of vectors gives up
on large quotients, numpy's does not."""


def mend_interpreter() -> None:
    """Give the interpreter the elementary functions, and mend what it has wrong: conversions to bfloat16 of
    subnormals, products of bfloat16 matrices, scalar comparisons that meet tensors, and (3.6, which numpy 2.4
    no longer converts for) scalars as bounds of loops.
    """
    for name, function in ELEMENTARY.items():
        setattr(libdevice, name, _interpreted(function))
    interpreter._convert_float = _converted(interpreter._convert_float)
    interpreter._patch_lang_tensor = _indexed(interpreter._patch_lang_tensor)
    mended = {"create_splat": _splat, "create_dot": _dot(interpreter_builder.create_dot)}
    for name, method in mended.items():
        setattr(interpreter_builder, name, method)


def _splat(result_type: Any, scalar: Any) -> TensorHandle:
    return TensorHandle(
        np.full(result_type.shape, scalar.data.item(), scalar.data.dtype), scalar.dtype.scalar
    )


def _dot(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def dot(a: Any, b: Any, *rest: Any) -> TensorHandle:
        return original(_widened(a), _widened(b), *rest)

    return dot


def _widened(operand: Any) -> Any:
    """A bfloat16 tensor, whose bits the interpreter would take for integers, in float32."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    data = interpreter._convert_float(operand.data, tl.bfloat16, tl.float32, None).view(np.float32)
    return TensorHandle(data.reshape(operand.data.shape), tl.float32)


def _converted(original: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def convert(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return torch.from_numpy(data.view(np.uint16).copy()).view(torch.bfloat16).float().numpy()
        return original(data, source, target, rounding)

    return convert


def _indexed(original: Callable[..., None]) -> Callable[..., None]:
    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch


def _interpreted(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def call(*operands: Any) -> Any:
        arrays = np.broadcast_arrays(*(x.handle.data for x in operands))
        result = function(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)).numpy()
        widest = max(operands, key=lambda x: x.handle.data.size)
        return tl.core.tensor(TensorHandle(result.reshape(arrays[0].shape), widest.handle.dtype), widest.type)

    return call


class Hooks:
    """What happens at every access, atomic and barrier of a kernel."""

    def __init__(self, shadow: Shadow, scheduler: Scheduler, switching: float) -> None:
        self.shadow, self.scheduler, self.switching = shadow, scheduler, switching
        self.counts: Counter[str] = Counter()
        self.original: dict[str, Callable[..., Any]] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The interpreter with these hooks in it."""
        ours = {
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_atomic_rmw": self._atomic,
            "create_barrier": self._barrier,
            "create_inline_asm": self._asm,
        }
        self.original = {name: getattr(interpreter_builder, name) for name in ours}
        for name, hook in ours.items():
            setattr(interpreter_builder, name, hook)
        try:
            yield
        finally:
            for name in ours:
                delattr(interpreter_builder, name)

    def _load(self, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        self.counts["loads"] += 1
        self.shadow.read(self.scheduler.current, *_addresses(pointers, mask))
        result = self.original["create_masked_load"](pointers, mask, other, *rest)
        self.scheduler.maybe_switch(self.switching)
        return result

    def _store(self, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        self.counts["stores"] += 1
        self.shadow.write(self.scheduler.current, *_addresses(pointers, mask))
        result = self.original["create_masked_store"](pointers, value, mask, *rest)
        self.scheduler.maybe_switch(self.switching)
        return result

    def _barrier(self, *_rest: Any) -> None:
        self.counts["block barriers"] += 1
        self.shadow.clocks.block_barrier(self.scheduler.current)

    def _atomic(self, op: Any, pointers: Any, value: Any, mask: Any, order: Any, scope: Any) -> Any:
        self.scheduler.switch()
        self.counts["atomics"] += 1
        block, (addresses, size) = self.scheduler.current, _addresses(pointers, mask)
        self.shadow.check_inside(block, addresses, size)
        result = self.original["create_atomic_rmw"](op, pointers, value, mask, order, scope)
        self._synchronise(map(int, addresses), str(order).lower(), str(scope).lower())
        self.scheduler.note_progress(bool(np.any(value.data)))
        return result

    def _asm(self, text: str, _constraints: str, operands: Any, *_rest: Any) -> _Results:
        """One thread runs it; the others of its block do nothing."""
        thread = Thread(self, [0, *(int(x.data.item()) for x in operands)])
        thread.run(text)
        return _Results(thread.registers["$0"])

    def add(self, address: int, value: int, order: str, scope: str) -> int:
        """An atomic addition of inline PTX."""
        word = self._meet_at(address)
        before = word.value
        word.value = before + value
        self._synchronise([address], order, scope)
        self.scheduler.note_progress(value != 0)
        return before

    def load(self, address: int, order: str, scope: str) -> int:
        """A load of inline PTX that sees what other blocks do."""
        now = self._meet_at(address).value
        self._synchronise([address], order, scope)
        self.scheduler.note_progress(False)
        return now

    def _meet_at(self, address: int) -> ctypes.c_uint32:
        self.scheduler.switch()
        self.counts["atomics"] += 1
        self.shadow.check_inside(self.scheduler.current, np.array([address], np.uint64), 4)
        return ctypes.c_uint32.from_address(address)

    def _synchronise(self, words: Iterable[int], order: str, scope: str) -> None:
        """What an atomic of this order and scope makes visible to its block, and of it."""
        if "relaxed" in order or "cta" in scope:
            return
        for word in words:
            if "acq" in order:
                self.shadow.clocks.acquire(self.scheduler.current, word)
            if "rel" in order:
                self.shadow.clocks.release(self.scheduler.current, word)


class _Results:
    """What the interpreter takes for the results of an operation: one number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def get_result(self, _number: int) -> TensorHandle:
        return TensorHandle(np.array([self.value], np.int32), tl.int32)


def _addresses(pointers: Any, mask: Any) -> tuple[np.ndarray, int]:
    """Addresses of the lanes that are there, and bytes of an element."""
    is_there = np.broadcast_to(mask.data, pointers.data.shape).ravel().astype(bool)
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    return pointers.data.ravel()[is_there].astype(np.uint64), size


@contextmanager
def bound_arguments(kernel: Any, arguments: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """A function that runs the kernel as the block that is current."""
    function = kernel.rewrite()
    patches = interpreter._patch_lang(function)
    constants = [
        p.name for p in inspect.signature(kernel.fn).parameters.values() if p.annotation is not p.empty
    ]
    converted = {n: a if n in constants else interpreter._implicit_cvt(a) for n, a in arguments.items()}
    try:
        yield lambda: function(**converted)
    finally:
        patches.restore()


def set_block(block: int, blocks: int) -> None:
    """Which block of how many `tl.program_id` says."""
    interpreter_builder.set_grid_dim(blocks, 1, 1)
    interpreter_builder.set_grid_idx(block, 0, 0)


def original_error(error: BaseException) -> BaseException:
    """What the interpreter's own error is about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
