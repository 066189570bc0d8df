"""What depends on weights alone is a program of its own; the two together compute what one did."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from wolong_fx.codegen import compile_partition, why_unsupported
from wolong_fx.codegen.compile import SPLIT, SplitProgram, build_programs
from wolong_fx.ir.program import Program
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.runtime import Kernel, ResidentKernel
from wolong_fx.testing.graphs import has_same_bits, random_graph, trace_graph


def with_weights(
    function: Callable[..., object], inputs: Sequence[Tensor], weights: Sequence[int]
) -> GraphModule:
    """The graph of a function; `weights` are the positions of inputs that are weights."""
    gm = trace_graph(function, *inputs)
    return marked(gm, weights)


def marked(gm: GraphModule, weights: Sequence[int]) -> GraphModule:
    for position, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        node.meta["static"] = position in weights
    return gm


def split(gm: GraphModule, **options: Any) -> SplitProgram:
    return build_programs(gm, Options.of(**options), Ledger(), lambda op: op.domain)


def names(program: Program | None) -> set[str]:
    return {name for op in (program.ops() if program else ()) for name in op.made_from}


def linear(x: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor]:
    """Weights side by side, biases added, a row scaled: all of it known before x is."""
    return (torch.relu(x @ torch.cat([w * 2, v], 1) + (b + c)),)


INPUTS = [torch.randn(3, 4), torch.randn(4, 5), torch.randn(4, 2), torch.randn(7), torch.randn(7)]


def test_what_is_made_of_weights_alone_is_prepared():
    programs = split(with_weights(linear, INPUTS, (1, 2, 3, 4)))
    assert names(programs.prepare) == {"cat", "add"}
    assert not names(programs.run) & {"cat", "add"}
    assert programs.wiring.run == (0,)
    assert set(programs.wiring.prepare) == {1, 2, 3, 4}
    assert programs.kept_bytes == (4 * 7 + 7) * 4


def test_without_weights_there_is_one_program():
    assert split(with_weights(linear, INPUTS, ())).prepare is None
    assert split(with_weights(linear, INPUTS, (1, 2, 3, 4)), disable=(SPLIT,)).prepare is None


def test_what_also_depends_on_an_input_stays():
    programs = split(with_weights(linear, INPUTS, (1, 3, 4)))
    assert "cat" in names(programs.run)
    assert "add" in names(programs.prepare)


def test_a_result_of_the_graph_is_computed_at_every_call():
    """The caller owns it: kept, a write to it would be there in the next call."""

    def scaled(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return x + w.exp(), w.exp() * 2

    inputs = [torch.randn(4), torch.randn(4)]
    kernel = compile_partition(with_weights(scaled, inputs, (1,)), Options.of(), Ledger())
    kernel.launch(inputs)[1].zero_()
    torch.testing.assert_close(kernel.launch(inputs), list(scaled(*inputs)))


def test_what_would_be_larger_than_the_weights_is_computed_where_it_is_read():
    def outer(x: Tensor, w: Tensor) -> tuple[Tensor]:
        return (x + w[:, None] * w.exp(),)

    programs = split(with_weights(outer, [torch.randn(64, 64), torch.randn(64)], (1,)))
    assert programs.kept_bytes <= 2 * 64 * 4


@pytest.mark.cpu
@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_both_targets_run_the_two_parts(target):
    gm = with_weights(linear, INPUTS, (1, 2, 3, 4))
    kernel = compile_partition(gm, Options.of(target=target), Ledger())
    assert isinstance(kernel, ResidentKernel)
    for _ in range(2):
        torch.testing.assert_close(kernel.launch(list(INPUTS)), list(linear(*INPUTS)))
        INPUTS[3].add_(1)


def test_the_ledger_says_what_is_kept():
    ledger = Ledger()
    compile_partition(with_weights(linear, INPUTS, (1, 2, 3, 4)), Options.of(), ledger)
    assert ledger.memory["kept"] >= (4 * 7 + 7) * 4


def lowered(gm: GraphModule) -> bool:
    calls = [node for node in gm.graph.nodes if node.op == "call_function"]
    (results,) = gm.graph.output_node().args
    return not any(map(why_unsupported, calls)) and all(hasattr(r, "meta") for r in results)  # type: ignore[union-attr]


def test_random_graphs_give_the_same_bits_whatever_is_a_weight():
    """On the reference machine: moving an operator changes no number."""
    options, in_two_parts = Options.of(target="reference"), 0
    for seed in range(80):
        rng = random.Random(seed)
        gm, inputs = random_graph(rng, 10)
        if not lowered(gm):
            continue
        weights = [i for i in range(len(inputs)) if rng.random() < 0.6]
        whole = compile_partition(marked(gm, ()), options, Ledger())
        parts = compile_partition(marked(gm, weights), options, Ledger())
        in_two_parts += isinstance(parts, ResidentKernel)
        for _ in range(2):
            pairs = zip(whole.launch(inputs), parts.launch(inputs), strict=True)
            assert all(has_same_bits(a, b) for a, b in pairs), f"seed {seed}"
    assert in_two_parts > 5


def test_a_kernel_without_weights_is_no_resident_one():
    assert isinstance(compile_partition(with_weights(linear, INPUTS, ()), Options.of(), Ledger()), Kernel)
