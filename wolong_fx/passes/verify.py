"""What holds of a graph after every pass: rules as data, each with the words that name its breach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from wolong_fx.errors import BrokenRule
from wolong_fx.passes.loops.scan import bodies_in
from wolong_fx.passes.storage import Storage
from wolong_fx.passes.values import (
    describe,
    is_effectful,
    is_random,
    returns_something,
    same_strides,
    same_value,
    tensors_in,
    value_of,
)


@dataclass(frozen=True)
class Promise:
    """What a graph promises its caller: no pass may change it. So does a loop's body its loop."""

    placeholders: tuple[str, ...]
    outputs: tuple[Any, ...]
    aliases: tuple[object, ...]
    effects: tuple[str, ...]
    bodies: dict[str, Promise]

    @classmethod
    def of(cls, graph_module: GraphModule) -> Promise:
        nodes = graph_module.graph.nodes
        return cls(
            placeholders=tuple(str(node.target) for node in nodes if node.op == "placeholder"),
            outputs=tuple(value_of(o) if isinstance(o, Node) else o for o in returned(graph_module)),
            aliases=_aliases(graph_module),
            effects=tuple(_effects(graph_module)),
            bodies={name: cls.of(body) for name, body in bodies_in(graph_module).items()},
        )


@dataclass(frozen=True)
class Case:
    """What a rule looks at: the promise before the pass, the promise after it, and the graph it left."""

    before: Promise
    after: Promise
    graph_module: GraphModule


Finding = str | None


@dataclass(frozen=True)
class Rule:
    """A sentence that is true of every good graph, and how to find a breach of it."""

    says: str
    find_breach: Callable[[Case], Finding]


def find_breach(before: Promise, graph_module: GraphModule) -> tuple[str, str] | None:
    """The first rule that the graph breaks, and where; None for a good graph. Linear in the graph."""
    if culprit := _malformed(graph_module):
        return WELL_FORMED, culprit
    case = Case(before, Promise.of(graph_module), graph_module)
    for rule in RULES:
        if culprit := rule.find_breach(case):
            return rule.says, culprit
    bodies = bodies_in(graph_module)
    kept = (name for name in before.bodies if name in bodies)
    return next(filter(None, (find_breach(before.bodies[name], bodies[name]) for name in kept)), None)


def verify(before: Promise, graph_module: GraphModule, step: str) -> None:
    """Raises BrokenRule, naming the pass `step`, when the graph breaks a rule."""
    if breach := find_breach(before, graph_module):
        raise BrokenRule(step=step, rule=breach[0], culprit=breach[1])


def returned(graph_module: GraphModule) -> tuple[Any, ...]:
    """What the graph returns, one entry an output."""
    outputs = graph_module.graph.output_node().args[0]
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _malformed(graph_module: GraphModule) -> Finding:
    try:
        graph_module.graph.lint()
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return str(error)
    return None


def _without_value(case: Case) -> Finding:
    nodes = (n for n in case.graph_module.graph.nodes if n.op in ("placeholder", "call_function"))
    nameless = (n for n in nodes if "val" not in n.meta and returns_something(n.target))
    return next((str(node.format_node()) for node in nameless), None)


def _other_placeholders(case: Case) -> Finding:
    return _difference(case.before.placeholders, case.after.placeholders)


def _other_output_count(case: Case) -> Finding:
    return _difference(len(case.before.outputs), len(case.after.outputs))


def _other_output(case: Case) -> Finding:
    for index, (old, new) in enumerate(zip(case.before.outputs, case.after.outputs, strict=True)):
        if not (same_value(old, new) and same_strides(old, new)):
            return f"output {index}: " + str(_difference(_layout(old), _layout(new)))
    return None


def _other_aliases(case: Case) -> Finding:
    return _difference(case.before.aliases, case.after.aliases)


def _other_effects(case: Case) -> Finding:
    return _difference(case.before.effects, case.after.effects)


def _difference(old: object, new: object) -> Finding:
    return None if old == new else f"{old} became {new}"


def _layout(value: object) -> str:
    strides = [tensor.stride() for tensor in tensors_in(value)]
    return f"{describe(value)} with strides {strides}"


WELL_FORMED = "operands come before their users and every name exists"  # asked first: the others rely on it
RULES: tuple[Rule, ...] = (
    Rule("every value has metadata", _without_value),
    Rule("placeholders stay, in their order", _other_placeholders),
    Rule("outputs keep their number", _other_output_count),
    Rule("outputs keep their dtype, shape and strides", _other_output),
    Rule("outputs share memory with inputs and each other exactly as before", _other_aliases),
    Rule("random draws and writes keep their number and order", _other_effects),
)


def _aliases(graph_module: GraphModule) -> tuple[object, ...]:
    """For each output the input whose memory it is or the first output of that memory; and of that object."""
    storage = Storage(graph_module.graph)
    outputs = returned(graph_module)
    first_of_memory: dict[Node, int] = {}
    first_of_object: dict[Node, int] = {}
    signature: list[object] = []
    for index, output in enumerate(outputs):
        if not isinstance(output, Node):
            signature.append(repr(output))
            continue
        root = storage.root(output)
        is_made_here = root.op == "call_function"
        owner = first_of_memory.setdefault(root, index) if is_made_here else str(root.target)
        signature.append((owner, first_of_object.setdefault(output, index)))
    return tuple(signature)


def _effects(graph_module: GraphModule) -> list[str]:
    graphs = [
        graph_module.graph,
        *(part.graph for _, part in graph_module.named_children() if isinstance(part, GraphModule)),
    ]
    calls = (
        node for graph in graphs for node in graph.nodes if node.op == "call_function" and is_effectful(node)
    )
    return ["random" if is_random(node.target) else str(node.target) for node in calls]
