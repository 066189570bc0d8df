"""Element types and buffers of the program IR."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

from wolong_fx.ir.index import contiguous_strides


class DType(Enum):
    """An element type; the value is its name in program text."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"

    @property
    def bytes(self) -> int:
        return _BYTES[self]

    @property
    def is_float(self) -> bool:
        return self in (DType.F64, DType.F32, DType.BF16, DType.F16)

    @property
    def is_integer(self) -> bool:
        return not self.is_float and self is not DType.BOOL

    @property
    def compute(self) -> DType:
        """The type that arithmetic on this one is done in: half precisions in float32."""
        return DType.F32 if self in (DType.BF16, DType.F16) else self

    def __str__(self) -> str:
        return self.value


_BYTES = {
    DType.F64: 8,
    DType.F32: 4,
    DType.BF16: 2,
    DType.F16: 2,
    DType.I64: 8,
    DType.I32: 4,
    DType.I16: 2,
    DType.I8: 1,
    DType.U8: 1,
    DType.BOOL: 1,
}


class BufferKind(Enum):
    """Who owns a buffer's memory."""

    INPUT = "input"  # the caller; read only
    STATE = "state"  # the caller, an input that is changed in place; holds something from the start
    OUTPUT = "output"  # the caller, fresh for every call; never holds anything before it is written
    CONSTANT = "constant"  # the compiled kernel; read only
    TEMPORARY = "temporary"  # the arena; poison between calls

    @property
    def is_given(self) -> bool:
        """Whether the caller passes a tensor that has values."""
        return self in (BufferKind.INPUT, BufferKind.STATE)


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory with a shape. Two buffers are the same only if they are the same object; names are unique in a
    program.

    strides: in elements; a negative or overlapping stride is not allowed except 0 in an INPUT (an expanded
        tensor)
    data: the bytes of a CONSTANT, row-major and contiguous
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    kind: BufferKind
    strides: tuple[int, ...]
    data: bytes | None = None

    @classmethod
    def contiguous(
        cls, name: str, dtype: DType, shape: tuple[int, ...], kind: BufferKind, data: bytes | None = None
    ) -> Buffer:
        return cls(name, dtype, shape, kind, contiguous_strides(shape), data)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def span_bytes(self) -> int:
        """Bytes from the first to one past the last element."""
        if not self.elements:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.bytes

    def __str__(self) -> str:
        return self.name
