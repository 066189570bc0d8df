"""The walk over an FX partition: values by node, buffers where memory is needed, operators that fill them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from wolong_fx.codegen.loops import Element
from wolong_fx.codegen.lower.registry import LOWERINGS
from wolong_fx.codegen.lower.uses import count_heavy_depth, count_uses, find_results_of_weights
from wolong_fx.codegen.lower.value import DTYPES, TensorValue, broadcast, cast, of_buffer, reindexed
from wolong_fx.errors import UnsupportedOperator
from wolong_fx.ir.expr import Access, Load, walk
from wolong_fx.ir.index import Index, Var, contiguous_strides
from wolong_fx.ir.program import Dim, OpInst, Store
from wolong_fx.ir.types import Buffer, BufferKind, DType
from wolong_fx.passes.values import is_update

INLINE_COST = 0  # a value used more than once is recomputed only if it costs no more operations than this
LEAST_CHANNELS = 8  # channels that it pays to run vectors along


@dataclass
class Lowering:
    """State of the walk; what the lowerings of the table may use.

    nesting: how many loops are around the graph
    """

    gm: GraphModule
    ops: list[Element] = field(default_factory=list)
    inputs: list[Buffer] = field(default_factory=list)
    outputs: list[Buffer] = field(default_factory=list)
    others: list[Buffer] = field(default_factory=list)
    values: dict[Node, Any] = field(default_factory=dict)
    node: Node | None = None
    kept: dict[TensorValue, Buffer] = field(default_factory=dict)
    copies: dict[tuple[TensorValue, Hashable], TensorValue] = field(default_factory=dict)
    means: dict[tuple[TensorValue, tuple[int, ...], DType], TensorValue] = field(default_factory=dict)
    channels_last: set[Buffer] = field(default_factory=set)
    updates: list[tuple[Buffer, TensorValue]] = field(default_factory=list)
    nesting: int = 0

    def __post_init__(self) -> None:
        self.uses = count_uses(self.gm.graph)
        self.depth = count_heavy_depth(self.gm.graph)
        self.of_weights = find_results_of_weights(self.gm.graph)

    def visit(self, node: Node) -> None:
        """Lower one node."""
        self.node = node
        match node.op:
            case "placeholder":
                kind = BufferKind.STATE if any(map(is_update, node.users)) else BufferKind.INPUT
                self.inputs.append(_buffer_like(node.name, node.meta["val"], kind))
                self.values[node] = of_buffer(self.inputs[-1])
            case "get_attr":
                self.values[node] = self._attribute(node)
            case "call_function" if is_update(node):
                target, source = (self.values[operand] for operand in node.args[:2])  # type: ignore[index]
                self.updates.append((target.buffer, source))
            case "call_function":
                self.values[node] = self._settle(node, self._call(node))
            case "output":
                self._finish(node.args[0])  # type: ignore[arg-type]

    def inside(self, body: GraphModule) -> Lowering:
        """The walk over the body of a loop in this graph: operators of its own, names of buffers apart."""
        return Lowering(body, others=self.others, nesting=self.nesting + 1)

    def _attribute(self, node: Node) -> Any:
        """A constant tensor, or the body of a loop."""
        attribute = operator.attrgetter(str(node.target))(self.gm)
        if not isinstance(attribute, torch.Tensor):
            return attribute
        name = f"{node.name}_{len(self.others)}" if self.nesting else node.name
        return of_buffer(self.constant_buffer(name, attribute))

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        lowering = LOWERINGS.get(node.target)
        if lowering is None:
            raise UnsupportedOperator(operator=str(node.target), because="it has no lowering")
        self._settle_early_operands(node)
        args = map_aggregate(node.args, self._operand)
        kwargs = map_aggregate(node.kwargs, self._operand)
        return lowering(self, node, *args, **kwargs)

    def _operand(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, Node) else arg

    def _settle(self, node: Node, value: Any) -> Any:
        """Give a value memory if several users, or every call, would otherwise compute it again."""
        is_read_again = self.uses[node] > 1 or node in self.of_weights
        if not isinstance(value, TensorValue) or value.cost <= INLINE_COST or not is_read_again:
            return value
        return of_buffer(self.as_buffer(value))

    def _settle_early_operands(self, node: Node) -> None:
        """Keep in memory what is ready long before the other operands: its work must not wait for them.

        Of a sum of MatMuls that come one a time step, each partial sum is then taken as soon as it can be.
        """
        latest = max((self.depth[n] for n in node.all_input_nodes), default=0)
        for operand in node.all_input_nodes:
            value = self.values[operand]
            if (
                0 < self.depth[operand] < latest
                and isinstance(value, TensorValue)
                and value.cost > INLINE_COST
            ):
                self.values[operand] = of_buffer(self.as_buffer(value))

    def _update_states(self) -> None:
        """Write what the caller's tensors are to hold, after all that reads what they held."""
        states = {buffer for buffer, _ in self.updates}
        ready = [(buffer, self._apart(value, buffer, states)) for buffer, value in self.updates]
        for buffer, value in ready:
            if value.buffer is not buffer:
                self.store_whole(buffer, broadcast(value, buffer.shape))

    def _apart(self, value: TensorValue, buffer: Buffer, states: Collection[Buffer]) -> TensorValue:
        """A value in a buffer's dtype that no other update changes: copied if it reads what they write."""
        if value.buffer is buffer:
            return value
        reads = {n.access.buffer for n in walk([value.at(domain_of(value.shape)[1])]) if isinstance(n, Load)}
        apart = TensorValue(value.shape, buffer.dtype, lambda at: cast(value.at(at), buffer.dtype))
        return of_buffer(self.as_buffer(apart)) if reads & set(states) else apart

    # ---- services for the lowerings

    def as_buffer(self, value: TensorValue, *, channels_last: bool = False) -> Buffer:
        """A buffer that holds exactly this value: its own, or a new temporary filled by a new operator."""
        if value.buffer is not None:
            return value.buffer
        if value not in self.kept:
            channels_last = channels_last or self.runs_along_channels(value)
            self.kept[value] = self.temporary(value.shape, value.dtype, channels_last=channels_last)
            self.store_whole(self.kept[value], value)
        return self.kept[value]

    def realised(self, value: TensorValue) -> TensorValue:
        """`value`, in memory if reading it would compute anything."""
        return value if value.is_load else of_buffer(self.as_buffer(value))

    def in_memory(self, value: TensorValue, *, channels_last: bool = False) -> TensorValue:
        """`value` realised; with `channels_last`, where a step along its many channels is one element."""
        if not value.elements:
            return value
        channels_last = channels_last and value.shape[1] >= LEAST_CHANNELS
        return self.once(value, channels_last, lambda: self._laid_out(value, channels_last))

    def once(self, value: TensorValue, form: Hashable, make: Callable[[], TensorValue]) -> TensorValue:
        """A value in another form, made for the first who asks: those who read one image share its copy."""
        if (value, form) not in self.copies:
            self.copies[value, form] = make()
        return self.copies[value, form]

    def _laid_out(self, value: TensorValue, channels_last: bool) -> TensorValue:
        if value.is_load and channels_last and not _steps_along_channels(value):
            value = reindexed(value, value.shape, lambda at, of=value: at)
            return of_buffer(self.as_buffer(value, channels_last=True))
        return value if value.is_load else of_buffer(self.as_buffer(value, channels_last=channels_last))

    def runs_along_channels(self, value: TensorValue) -> bool:
        """Whether a value is computed from memory that is laid out channels last: it then is so itself."""
        return (
            bool(self.channels_last) and value.rank > 2 and _steps_along_channels(value, self.channels_last)
        )

    def temporary(self, shape: tuple[int, ...], dtype: DType, *, channels_last: bool = False) -> Buffer:
        """New memory for a tensor, row-major or with its second dimension fastest."""
        assert self.node is not None
        name = f"{self.node.name}_{len(self.others)}"
        buffer = Buffer.contiguous(name, dtype, shape, BufferKind.TEMPORARY)
        if channels_last:
            buffer = replace(buffer, strides=_channels_last_strides(shape))
            self.channels_last.add(buffer)
        self.others.append(buffer)
        return buffer

    def constant_buffer(self, name: str, tensor: torch.Tensor) -> Buffer:
        """A buffer with the bytes of a tensor that nobody can change."""
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        buffer = Buffer.contiguous(name, DTYPES[tensor.dtype], tuple(tensor.shape), BufferKind.CONSTANT, flat)
        self.others.append(buffer)
        return buffer

    def store_whole(
        self,
        buffer: Buffer,
        value: TensorValue,
        start: Sequence[int] | None = None,
        lead: tuple[Index, ...] = (),
    ) -> None:
        """Add the operator that writes `value` into `buffer`, at an offset of `start` in each dimension.

        lead: coordinates of the buffer's dimensions in front of the value's
        """
        if not value.elements:
            return
        dims, at = domain_of(value.shape)
        where = tuple(i + s for i, s in zip(at, start or (0,) * len(at), strict=True))
        self.add_op(dims, (Store(Access(buffer, (*lead, *where)), value.at(at)),))

    def add_op(self, dims: tuple[Dim, ...], stores: tuple[Store, ...]) -> None:
        """Add an operator instance made from the current node; an empty domain adds none."""
        assert self.node is not None
        if all(d.extent for d in dims):
            name = f"{self.node.name}_{len(self.ops)}"
            self.ops.append(OpInst(name, dims, stores, made_from=(self.node.name,)))

    def _finish(self, results: Sequence[Node | None]) -> None:
        for position, result in enumerate(results):
            if not isinstance(result, Node):
                raise UnsupportedOperator(operator="output", because=f"output {position} is no tensor")
            buffer = _buffer_like(f"out{position}", result.meta["val"], BufferKind.OUTPUT)
            self.outputs.append(buffer)
            self.store_whole(buffer, _distinct_elements(self.values[result], buffer))
        self._update_states()

    def may_change(self, x: TensorValue) -> bool:
        """Whether the current node may write its first operand where it is: an input that is to hold the
        result, and whose old values nobody else reads.
        """
        assert self.node is not None
        node, source = self.node, self.node.args[0]
        if x.buffer is None or x.buffer.kind is not BufferKind.STATE or not isinstance(source, Node):
            return False
        others = [user for user in source.users if user is not node]
        return x is self.values[source] and all(
            is_update(user) and user.args[:2] == (source, node) for user in others
        )


def domain_of(shape: Sequence[int], prefix: str = "d") -> tuple[tuple[Dim, ...], tuple[Index, ...]]:
    """Dimensions and coordinates of a domain of `shape`; extents of 1 get no dimension, their coordinate is
    0.
    """
    variables = [Var(f"{prefix}{i}", n) for i, n in enumerate(shape)]
    dims = tuple(Dim(v) for v in variables if v.extent != 1)
    return dims, tuple(Index.of(v) for v in variables)


def _channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    batch, channel, *rest = contiguous_strides((shape[0], *shape[2:], shape[1]))
    *image, channel = (channel, *rest)
    return batch, channel, *image


def _steps_along_channels(value: TensorValue, among: Collection[Buffer] | None = None) -> bool:
    """Whether the element after one of a buffer (of `among`) is that of the next channel."""
    dims, at = domain_of(value.shape)
    channel = next((d.var for d in dims if Index.of(d.var) == at[1]), None)
    loads = (node.access for node in walk([value.at(at)]) if isinstance(node, Load))
    return any(
        channel is not None and access.offset().coefficient(channel) == 1
        for access in loads
        if among is None or access.buffer in among
    )


def _buffer_like(name: str, tensor: torch.Tensor, kind: BufferKind) -> Buffer:
    shape = tuple(int(n) for n in tensor.shape)
    strides = tuple(int(s) for s in tensor.stride())
    return Buffer(name, DTYPES[tensor.dtype], shape, kind, strides)


def _distinct_elements(value: TensorValue, buffer: Buffer) -> TensorValue:
    """The part of `value` that fills an expanded buffer: one element along dimensions of stride 0."""
    shape = tuple(1 if n and s == 0 else n for n, s in zip(value.shape, buffer.strides, strict=True))
    return value if shape == value.shape else reindexed(value, shape, lambda at: at)
