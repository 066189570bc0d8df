"""Loads and stores as Triton text: addresses, masks of ragged edges and padding, checks of gathered
positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from wolong_fx.codegen.signature import Bindings
from wolong_fx.codegen.triton.kept_text import LEAVES, KeptText
from wolong_fx.codegen.triton.names import Names, NumberCheck
from wolong_fx.codegen.triton.pointwise import STORAGE_TYPES, Value
from wolong_fx.codegen.triton.scope import Scope
from wolong_fx.ir.expr import Access, Gather, Load
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import Store
from wolong_fx.ir.types import DType

COMBINE = {"add": "{0} + {1}", "mul": "{0} * {1}", "max": "maximum({0}, {1})", "min": "minimum({0}, {1})"}


@dataclass(frozen=True)
class Place:
    """Where an access is.

    address: pointer text
    axes: along which the address varies
    masks: conditions for it to be inside the tile and the buffer
    """

    address: str
    axes: frozenset[Var]
    masks: tuple[str, ...]


class MemoryText:
    """Emits the accesses of one operator."""

    def __init__(self, bindings: Bindings, names: Names, number_check: NumberCheck, keep: KeptText) -> None:
        self.bindings, self.names, self.number_check, self.keep = bindings, names, number_check, keep

    def load(self, node: Load, scope: Scope) -> Value:
        """The element of every lane; where there is none, the load's fill, or else 0."""
        place = self._place(node.access, scope, is_padded=node.fill is not None)
        other = "" if not place.masks else f", mask={_all(place.masks)}, other={_fill(node)}"
        text = self.keep.loaded(node, f"tl.load({place.address}{other})", scope)
        return _in_register(text, node.dtype, place.axes, scope)

    def store(self, store: Store, value: Value, scope: Scope) -> list[str]:
        """Statements that store a value, or combine it with what is there, or keep it until the last trip."""
        place = self._place(store.access, scope, is_padded=False)
        axes = place.axes | {axis.at for axis in scope.axes if axis.mask}
        masks = tuple(dict.fromkeys((*scope.mask(axes), *place.masks)))
        mask = f", mask={_all(masks)}" if masks else ""
        dtype = store.access.buffer.dtype
        text = value.text
        if (name := self.keep.find_state(store)) is not None:
            spread = f"tl.broadcast_to({text}, {scope.shape(place.axes)})"
            text = text if value.axes == place.axes else spread
            kept = f"{name} = {text}.to({STORAGE_TYPES[dtype]})"
            return [kept, f"if {LEAVES}:", f"    tl.store({place.address}, {name}{mask})"]
        if store.accumulate:
            other = ", other=0" if masks else ""
            old = _in_register(f"tl.load({place.address}{mask}{other})", dtype, place.axes, scope)
            text = COMBINE[store.accumulate].format(old.text, text)
            text = f"({text})"
        return [f"tl.store({place.address}, {text}.to({STORAGE_TYPES[dtype]}){mask})"]

    def _place(self, access: Access, scope: Scope, is_padded: bool) -> Place:
        offset = self.bindings.offset_of[id(access)].substitute(scope.env)
        axes = scope.axes_of(offset)
        parts = [scope.index_text(offset)] if offset != Index() or not access.gathers else []
        conditions: list[Value] = self._padding(access, scope) if is_padded else []
        for index, extent, stride in zip(
            access.index, access.buffer.shape, access.buffer.strides, strict=True
        ):
            if isinstance(index, Gather):
                position, inside = self._gathered(index, extent, scope)
                conditions.append(inside)
                parts.append(f"{position.text}.to(tl.int64) * {stride}")
                axes |= position.axes
        pointer = f"p{self.bindings.pointer_of[id(access)]}"
        address = pointer if parts == ["0"] else f"{pointer} + {' + '.join(parts)}"
        wide = axes.union(*(c.axes for c in conditions))
        if wide - axes:
            address = f"tl.broadcast_to({address}, {scope.shape(wide)})"
        masks = (*scope.mask(wide), *(c.text for c in conditions))
        return Place(address, wide, masks)

    def _padding(self, access: Access, scope: Scope) -> list[Value]:
        """Conditions, where they are not certain, for coordinates to lie inside the buffer."""
        found = []
        for index, extent in zip(access.index, access.buffer.shape, strict=True):
            if not isinstance(index, Index):
                continue
            at = index.substitute(scope.env)
            low, high = at.bounds()
            text, axes = scope.index_text(at), scope.axes_of(at)
            tests = [f"({text} >= 0)"] * (low < 0) + [f"({text} < {extent})"] * (high >= extent)
            found += [Value(t, DType.BOOL, axes, len(scope.axes) if axes else 0) for t in tests]
        return found

    def _gathered(self, gather: Gather, extent: int, scope: Scope) -> tuple[Value, Value]:
        """A position read from memory, and the condition that it lies inside; if it does not, that is
        noted."""
        position = scope.find(id(gather.value))
        assert position is not None
        inside = self.names.fresh("g")
        scope.lines.append(f"{inside} = ({position.text} >= 0) & ({position.text} < {extent})")
        self.note_failure(f"{inside} == 0", gather.check, position, scope)
        return position, Value(inside, DType.BOOL, position.axes, position.rank)

    def note_failure(self, condition: str, message: str, at: Value, scope: Scope) -> None:
        """Leave the number of a check's message in the failure word wherever a condition holds."""
        masks = [f"({condition})", *scope.mask(at.axes)]
        number = self.number_check(message) + 1
        word = f"failure + {at.text}.to(tl.int32) * 0" if at.rank else "failure"
        scope.lines.append(f'tl.atomic_max({word}, {number}, mask={_all(masks)}, sem="relaxed")')


def _in_register(text: str, dtype: DType, axes: frozenset[Var], scope: Scope) -> Value:
    if dtype is DType.BOOL:
        text = f"({text} != 0)"
    elif dtype in (DType.BF16, DType.F16):
        text = f"{text}.to(tl.float32)"
    return Value(text, dtype, axes, len(scope.axes) if axes else 0)


def _fill(node: Load) -> str:
    if not node.fill:
        return "0"
    return f'float("{node.fill}")' if node.dtype.is_float else str(int(node.fill))


def _all(conditions: Sequence[str]) -> str:
    return reduce("{} & {}".format, conditions)
