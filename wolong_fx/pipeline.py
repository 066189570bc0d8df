"""The way of one graph: the table of passes, read top to bottom, then a kernel for each partition.

Whatever goes wrong here is ours to survive: the graph then runs as it came, and one line in the log says so.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from wolong_fx import _torch_compat, codegen
from wolong_fx.assemble import assemble_executor
from wolong_fx.errors import WolongError
from wolong_fx.ledger import PASSES, TRACED, Ledger
from wolong_fx.options import Options
from wolong_fx.passes.absorb_updates import AbsorbUpdates
from wolong_fx.passes.base import Pass
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.cut_partitions import CutPartitions
from wolong_fx.passes.decompose import Decompose
from wolong_fx.passes.fold_constants import FoldConstants, is_constant
from wolong_fx.passes.free_fills import FreeFills
from wolong_fx.passes.loops.scan import bodies_in
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.merge_matmuls import MergeMatmuls
from wolong_fx.passes.remove_common_subexpressions import RemoveCommonSubexpressions
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.reroll.reroll import Reroll
from wolong_fx.passes.share_saved_values import ShareSavedValues
from wolong_fx.passes.simplify import Simplify
from wolong_fx.passes.split_loops import SplitLoops
from wolong_fx.passes.text import check_names
from wolong_fx.passes.unroll_loops import UnrollLoops
from wolong_fx.passes.values import (
    device_of,
    find_value_problem,
    has_symbolic_size,
    is_number_like,
    value_of,
)
from wolong_fx.toolchain import warn_once

logger = logging.getLogger("wolong_fx")

BoxedCallable = Callable[[list[Any]], Any]

_graph_numbers = itertools.count()


def pass_table(options: Options) -> tuple[Pass, ...]:
    """THE table: what is done to a graph, in this order."""
    return (
        Canonicalise(),
        Decompose(why_eager),
        FoldConstants(),
        SplitLoops(codegen.is_worth_steps),
        UnrollLoops(why_eager),
        MergeMatmuls(),
        Simplify(),
        RemoveCommonSubexpressions(),
        RemoveDeadCode(),
        CutPartitions(why_not_in_a_kernel, min_ops=options.min_ops),
        AbsorbUpdates(),
    )


def joint_table() -> tuple[Pass, ...]:
    """What is done to the joint graph of a training step before it is cut into forward and backward."""
    return (FreeFills(), ShareSavedValues())


def dynamo_table(*, is_differentiated: bool = False) -> tuple[Pass, ...]:
    """What is done to Dynamo's graph before AOTAutograd traces it."""
    return (Reroll(is_differentiated),)


def roll_loops(
    gm: GraphModule, example_inputs: Sequence[object], options: Options, ledger: Ledger
) -> GraphModule | None:
    """Dynamo's graph with its loops rolled; None when that changes nothing. `gm` stays as it is."""
    trained = any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs)
    (reroll,) = dynamo_table(is_differentiated=trained and torch.is_grad_enabled())
    if reroll.name in options.disable:
        return None
    with ledger.timed(reroll.name):
        rolled, is_rolled = reroll.apply(gm, partial(ledger.note, reroll.name))
    return rolled if is_rolled else None


def all_passes(options: Options) -> tuple[Pass, ...]:
    """The passes in the order in which graphs meet them: Dynamo's, the joint one, then each by itself."""
    return (*dynamo_table(), *joint_table(), *pass_table(options))


def step_names() -> tuple[str, ...]:
    """Every name that Options.disable may hold: the passes, then the steps of code generation."""
    return (*(a_pass.name for a_pass in all_passes(Options())), *codegen.STEP_DOCS)


def check_options(options: Options) -> None:
    """Raises UnknownPass, naming the nearest, when options.disable holds a name that no step has."""
    check_names(options.disable, step_names(), where="disable")


def compile_graph(
    gm: GraphModule,
    example_inputs: Sequence[object],
    options: Options,
    *,
    role: str,
    ledger: Ledger,
    static: Collection[int] = (),
) -> BoxedCallable:
    """A boxed callable that computes what `gm` does: takes one list of inputs, clears it, returns outputs.

    gm: functional core ATen with fake tensors in meta["val"]; it is not changed
    role: "inference", "forward" or "backward", for the log and the ledger
    static: positions of weights among the inputs; what is made of them alone is kept until they change
    Raises UnknownPass for a name in options.disable that nothing has. Never raises for the graph's sake.
    """
    check_options(options)
    try:
        because = find_graph_problem(gm, example_inputs)
        return (
            run_eagerly(gm, role, because, ledger) if because else _compile(gm, options, role, ledger, static)
        )
    except Exception as error:  # any defect of ours must cost the model speed, never its run
        because = f"{type(error).__name__}: {_first_line(error)}"
        logger.warning("the %s graph runs eagerly: %s", role, because)
        return run_eagerly(gm, role, because, ledger)


def _compile(
    gm: GraphModule, options: Options, role: str, ledger: Ledger, static: Collection[int]
) -> BoxedCallable:
    label = f"{role}-{next(_graph_numbers)}" if options.dump else role
    manager = PassManager(pass_table(options), options, ledger, label)
    copied = copy_graph(gm)
    for position, node in enumerate(copied.graph.find_nodes(op="placeholder")):
        # Partitions' placeholders take it over.
        node.meta["static"] = position in static and options.verify != "always"
    cut = manager(copied).graph_module

    def find_kernel(name: str, partition: GraphModule) -> Any:
        return _find_kernel(name, partition, options, ledger)

    with ledger.timed("assemble"):
        results = _torch_compat.count_forward_results() if role == "forward" else None
        executor = assemble_executor(cut, find_kernel, results=results)
    if not executor.launches:
        return run_eagerly(gm, role, "no part of it became a kernel", ledger)
    ledger.count_copies(PASSES, codegen.copies_of_torch(cut))
    ledger.count_copies(TRACED, codegen.copies_of_torch(gm, role=role, results=results))
    return executor


def _find_kernel(name: str, partition: GraphModule, options: Options, ledger: Ledger) -> Any:
    """The partition's kernel; None, said in log and ledger, where it could not be made."""
    try:
        with ledger.copies_of_part():
            return codegen.compile_partition(partition, options, ledger)
    except Exception as error:
        because = f"{type(error).__name__}: {_first_line(error)}"
        warn_once(because, f"{name} runs eagerly: {error if isinstance(error, WolongError) else because}")
        ledger.note("codegen", name, "fell-back", because)
        return None


def run_eagerly(gm: GraphModule, role: str, because: str, ledger: Ledger) -> BoxedCallable:
    """The graph as it came, called the boxed way; the ledger hears why."""
    ledger.note("pipeline", f"{role} graph", "fell-back", because)

    def run(inputs: list[Any]) -> Any:
        values = list(inputs)
        inputs.clear()
        return gm.forward(*values)

    run._boxed_call = True  # type: ignore[attr-defined]  # how AOTAutograd tells such a callable
    return run


def find_graph_problem(gm: GraphModule, example_inputs: Sequence[object]) -> str | None:
    """Why no part of the graph can be compiled; None if some may."""
    inputs = [value_of(node) for node in gm.graph.nodes if node.op == "placeholder"]
    if any(has_symbolic_size(value) for value in (*example_inputs, *inputs)):
        return "a size is known only at run time (dynamic shapes)"
    foreign = (node for node in gm.graph.nodes if node.op in ("call_method", "call_module"))
    return next((f"{node.op} {node.target} is not an ATen operator" for node in foreign), None)


def why_eager(node: Node) -> str | None:
    """None for a node that becomes part of a kernel, else the reason it is left to torch."""
    for value in (value_of(node), *map(value_of, node.all_input_nodes)):
        if because := find_value_problem(value):
            return because
    return why_on_several_devices(node) or codegen.why_unsupported(node)


def why_on_several_devices(node: Node) -> str | None:
    """Why a kernel cannot compute a node that moves data between devices; None if it does not.

    A constant number, which torch takes from anywhere, is no data.
    """
    operands = (n for n in node.all_input_nodes if not (is_constant(n) and is_number_like(value_of(n))))
    values = (value_of(node), *map(value_of, operands))
    devices = {device for value in values if (device := device_of(value)) is not None}
    return None if len(devices) < 2 else f"it moves between {' and '.join(sorted(map(str, devices)))}"


def why_not_in_a_kernel(node: Node) -> str | None:
    """As why_eager, and of a node that could be part of a kernel but is faster without."""
    return why_eager(node) or codegen.why_left_to_library(node)


def copy_graph(gm: GraphModule) -> GraphModule:
    """A module with a graph and bodies of loops of its own; parameters and buffers are shared."""
    graph, copies = Graph(), {}
    returned = graph.graph_copy(gm.graph, copies)
    graph.output(returned).meta = dict(gm.graph.output_node().meta)
    copied = _torch_compat.lazy_graph_module(gm, graph)
    for name, body in bodies_in(gm).items():
        copied.set_submodule(name, copy_graph(body))
    return copied


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
