"""Allocates the outputs of a kernel: each on its own, or, for the backward alone, many of a shape at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from wolong_fx import _torch_compat
from wolong_fx.runtime.image import TensorSpec

ALIGNMENT = 64
"""Bytes, as torch's own allocations have it: a part of a larger one must begin on it too."""

WORTHWHILE = 4
"""Outputs of a shape, from which on one allocation is quicker than several."""

MakeAllocator = Callable[[tuple[Tensor, ...]], Callable[[], list[Tensor]]]
"""From templates to a function that makes tensors of their dtypes, shapes and strides on the CPU."""


class Outputs:
    """Makes the tensors that `specs` describe, their content undefined.

    together: positions of outputs that live and die as one and that no user ever holds, such as what the
        forward of a training step keeps for its backward. Those of a shape are parts of one allocation: on
        the 80-step LSTM at batch 16, 481 outputs take 0.5 ms instead of 1.2. To autograd they are no views.
        A tensor of the user's must not be among them: it would keep its neighbours in memory.
    """

    def __init__(self, specs: Sequence[TensorSpec], together: Collection[int] = ()) -> None:
        rows = _rows(specs, together)
        in_rows = {position for positions in rows.values() for position in positions}
        self._count = len(specs)
        self._rows = [(positions, _row(spec, len(positions))) for spec, positions in rows.items()]
        self._positions = [i for i in range(len(specs)) if i not in in_rows]
        self._singles = [_single(specs[i]) for i in self._positions]
        self._specs = tuple(specs)
        self._allocate_singles: Callable[[], list[Tensor]] = self._in_python

    def allocate_by(self, make: MakeAllocator) -> None:
        """From now on make so the tensors that are no parts of others."""
        self._allocate_singles = make(tuple(_like(self._specs[i]) for i in self._positions))

    def _in_python(self) -> list[Tensor]:
        return [allocate() for allocate in self._singles]

    def allocate(self) -> list[Tensor]:
        """Fresh tensors in the order of the specs."""
        singles = self._allocate_singles()
        if not self._rows:
            return singles
        made = dict(zip(self._positions, singles, strict=True))
        for positions, allocate in self._rows:
            made.update(zip(positions, allocate(), strict=True))
        return [made[position] for position in range(self._count)]


def _rows(specs: Sequence[TensorSpec], together: Collection[int]) -> dict[TensorSpec, list[int]]:
    """The positions of each spec that are worth one allocation."""
    groups: defaultdict[TensorSpec, list[int]] = defaultdict(list)
    for position in sorted(together):
        if _can_be_part(specs[position]):
            groups[specs[position]].append(position)
    return {spec: positions for spec, positions in groups.items() if len(positions) >= WORTHWHILE}


def _can_be_part(spec: TensorSpec) -> bool:
    size = prod(spec.shape) * spec.dtype.itemsize
    contiguous = tuple(prod(spec.shape[d + 1 :]) for d in range(len(spec.shape)))
    return bool(spec.shape) and size > 0 and size % ALIGNMENT == 0 and spec.strides == contiguous


def _single(spec: TensorSpec) -> Callable[[], Tensor]:
    return partial(_torch_compat.find_empty_strided_cpu(), spec.shape, spec.strides, spec.dtype)


def _row(spec: TensorSpec, count: int) -> Callable[[], Sequence[Tensor]]:
    """`count` tensors along the first dimension of one; unsafe_split is safe: nobody writes to the whole."""
    template, length = _template(spec), spec.shape[0]
    shape = (count * length, *spec.shape[1:])
    return lambda: torch.unsafe_split(template.new_empty(shape), length)


def _like(spec: TensorSpec) -> Tensor:
    """A tensor of this description without memory."""
    return torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="meta")


def _template(spec: TensorSpec) -> Tensor:
    """A tensor to make others from: torch.empty would follow `with torch.device(...)`."""
    return torch.empty(0, dtype=spec.dtype, device="cpu")
