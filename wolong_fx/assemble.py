"""From a cut graph to what runs it: a launch for each partition, an ATen call for each operator between."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from wolong_fx.passes.cut_partitions import is_partition
from wolong_fx.runtime import CallStep, Executor, KernelStep, Slot, slots_in

FindKernel = Callable[[str, GraphModule], Any]


def assemble_executor(
    graph_module: GraphModule, find_kernel: FindKernel, *, results: int | None = None
) -> Executor:
    """The executor of a graph that cut-partitions made.

    find_kernel: the kernel of the partition of that name, or None: its operators then run one by one
    results: how many outputs are the caller's own, if those behind them are kept for a backward alone
    """
    executor = _Assembler(graph_module, find_kernel).assemble()
    if results is not None:
        _keep_together(executor, results)
    return executor


def _keep_together(executor: Executor, results: int) -> None:
    """Tell kernels which outputs only the backward will see: no caller, no operator that may return views."""
    calls = [(step.args, dict(step.kwargs)) for step in executor.steps if isinstance(step, CallStep)]
    seen = set(slots_in([*executor.outputs[:results], *calls]))
    kept = set(slots_in(executor.outputs[results:])) - seen
    for step in executor.steps:
        if isinstance(step, KernelStep):
            step.kernel.keep_together([i for i, slot in enumerate(step.outs) if slot in kept])


class _Assembler:
    """Walks the graph once; `known` holds for each node its Slot, a constant, or the Slots of a partition."""

    def __init__(self, graph_module: GraphModule, find_kernel: FindKernel) -> None:
        self._graph_module = graph_module
        self._find_kernel = find_kernel
        self._steps: list[KernelStep | CallStep] = []
        self._inputs: list[int] = []
        self._slots = 0

    def assemble(self) -> Executor:
        outputs = self._walk(self._graph_module, {})
        return Executor(self._steps, self._inputs, outputs)

    def _walk(self, graph_module: GraphModule, known: dict[Node, Any]) -> Sequence[object]:
        """Add the steps of a graph whose placeholders may be known already; returns what it returns."""
        for node in graph_module.graph.nodes:
            if node not in known and node.op != "output":
                known[node] = self._visit(node, graph_module, known)
        returned = map_arg(graph_module.graph.output_node().args[0], known.__getitem__)
        return returned if isinstance(returned, tuple | list) else (returned,)

    def _visit(self, node: Node, graph_module: GraphModule, known: dict[Node, Any]) -> Any:
        match node.op:
            case "placeholder":
                self._inputs.append(self._new_slot().index)
                return Slot(self._inputs[-1])
            case "get_attr":
                return operator.attrgetter(str(node.target))(graph_module)
            case "call_module":
                return self._partition(node, graph_module, known)
        if node.target is operator.getitem and is_partition(node.args[0]):
            return known[node.args[0]][node.args[1]]  # type: ignore[index]
        args, kwargs = map_arg((node.args, dict(node.kwargs)), known.__getitem__)
        return self._call(node.target, args, kwargs)

    def _partition(self, node: Node, graph_module: GraphModule, known: dict[Node, Any]) -> Sequence[object]:
        part = graph_module.get_submodule(str(node.target))
        assert isinstance(part, GraphModule)
        operands = [known[operand] for operand in node.args]  # type: ignore[index]
        kernel = self._find_kernel(str(node.target), part)
        if kernel is None:
            return self._walk(part, dict(zip(_placeholders(part), operands, strict=True)))
        ins = tuple(self._slot_of(operand).index for operand in operands)
        outs = tuple(self._new_slot() for _ in node.meta["val"])
        self._steps.append(KernelStep(kernel, ins, tuple(slot.index for slot in outs)))
        return outs

    def _call(self, function: Any, args: Any, kwargs: Any) -> Slot:
        slot = self._new_slot()
        self._steps.append(CallStep(function, tuple(args), (slot.index,), kwargs))
        return slot

    def _slot_of(self, operand: object) -> Slot:
        """A kernel takes slots alone: a constant gets one."""
        return operand if isinstance(operand, Slot) else self._call(lambda: operand, (), {})

    def _new_slot(self) -> Slot:
        self._slots += 1
        return Slot(self._slots - 1)


def _placeholders(graph_module: GraphModule) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]
