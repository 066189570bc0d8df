"""The manager: runs a list of passes, and does everything that is the same for each of them in one hook."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.base import Pass
from wolong_fx.passes.values import describe, value_of
from wolong_fx.passes.verify import Promise, verify


@dataclass
class _Run:
    """One pass being run: what the hook knows of it before, and what the pass answers."""

    graph_module: GraphModule
    is_modified: bool = False


class PassManager:
    """Runs passes in order over one graph; see `hook` for what happens around each."""

    def __init__(self, passes: Sequence[Pass], options: Options, ledger: Ledger, label: str = "") -> None:
        """label: the folder below Options.dump_dir that gets this graph's dumps."""
        self.passes = passes
        self._options = options
        self._ledger = ledger
        self._dump_folder = Path(options.dump_dir, label)

    def __call__(self, graph_module: GraphModule) -> PassResult:
        """The graph after all passes that are not disabled; the module given may be changed in place.

        Raises BrokenRule, naming the pass, when a pass leaves a graph that is not equivalent on its face.
        """
        is_modified = False
        for row, a_pass in enumerate(self.passes):
            if a_pass.name in self._options.disable:
                continue
            with self.hook(row, a_pass, graph_module) as run:
                result = a_pass.apply(graph_module, partial(self._ledger.note, a_pass.name))
                run.graph_module, run.is_modified = result
            graph_module = run.graph_module
            is_modified |= run.is_modified
        graph_module.recompile()
        return PassResult(graph_module, is_modified)

    @contextmanager
    def hook(self, row: int, a_pass: Pass, graph_module: GraphModule) -> Iterator[_Run]:
        """Around every pass: time it, count operators, verify the graph it leaves, dump it."""
        promise, operators = Promise.of(graph_module), count_operators(graph_module)
        run = _Run(graph_module)
        with self._ledger.timed(a_pass.name):
            yield run
        first = self._ledger.op_counts.get(a_pass.name, (operators, 0))[0]
        self._ledger.op_counts[a_pass.name] = (first, count_operators(run.graph_module))
        with self._ledger.timed("verify"):
            verify(promise, run.graph_module, a_pass.name)
        if "graph" in self._options.dump:
            self._dump(f"{row:02d}-{a_pass.name}.txt", run.graph_module)

    def _dump(self, file_name: str, graph_module: GraphModule) -> None:
        self._dump_folder.mkdir(parents=True, exist_ok=True)
        (self._dump_folder / file_name).write_text(graph_to_text(graph_module), encoding="utf-8")


def count_operators(graph_module: GraphModule) -> int:
    """Operator calls, those inside partitions included."""
    parts = [child for child in graph_module.children() if isinstance(child, GraphModule)]
    calls = (node for node in graph_module.graph.nodes if node.op == "call_function")
    own = sum(node.target is not operator.getitem for node in calls)
    return own + sum(map(count_operators, parts))


def graph_to_text(graph_module: GraphModule) -> str:
    """The graph as people read it: a node a line with its value, partitions below."""
    lines = [_node_text(node) for node in graph_module.graph.nodes]
    for name, child in graph_module.named_children():
        if isinstance(child, GraphModule):
            lines += [f"{name}:", *(f"    {line}" for line in graph_to_text(child).splitlines())]
    return "\n".join(lines) + "\n"


def _node_text(node: Node) -> str:
    value = describe(value_of(node)) if "val" in node.meta else ""
    match node.op:
        case "placeholder":
            return f"%{node} = input : {value}"
        case "output":
            return f"return {_argument_text(node.args[0])}"
        case "get_attr":
            return f"%{node} = constant {node.target} : {value}"
    arguments = [_argument_text(a) for a in node.args]
    arguments += [f"{name}={_argument_text(a)}" for name, a in node.kwargs.items()]
    return f"%{node} = {_target_text(node)}({', '.join(arguments)}) : {value}"


def _target_text(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _argument_text(argument: object) -> str:
    if isinstance(argument, Node):
        return f"%{argument}"
    if isinstance(argument, tuple | list):
        return f"[{', '.join(map(_argument_text, argument))}]"
    return str(argument)
