"""What the forward of a loop keeps for its backward: each value once, invariants not at all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._higher_order_ops.scan import scan

import wolong_fx
from wolong_fx import _torch_compat
from wolong_fx.backend import partition_joint_graph
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.loops.scan import scans_in
from wolong_fx.passes.manager import PassManager
from wolong_fx.passes.share_saved_values import ShareSavedValues
from wolong_fx.passes.values import aten, byte_size
from wolong_fx.passes.verify import returned
from wolong_fx.pipeline import joint_table

STEPS, ROWS, WIDTH = 6, 3, 5


class Recurrence(torch.nn.Module):
    """tanh(x w + h u) over the steps, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.u = (torch.nn.Parameter(torch.randn(WIDTH, WIDTH).double() / 3) for _ in range(2))

    def forward(self, x):
        def step(h, x):
            h = torch.tanh(x @ self.w + h @ self.u)
            return h, h.clone()

        return scan(step, x.new_zeros(ROWS, WIDTH), x)[1]


class Training:
    """One step of training, its forward graph, and what the passes said of the joint graph."""

    def __init__(self, passes):
        torch._dynamo.reset()
        model, x = Recurrence(), torch.linspace(-1, 1, STEPS * ROWS * WIDTH, dtype=torch.float64)
        x = x.view(STEPS, ROWS, WIDTH).requires_grad_()
        self.ledger, self.forward = Ledger(), torch.fx.GraphModule({}, torch.fx.Graph())
        self._prepare = PassManager(passes, Options(), self.ledger)
        self.result = torch.compile(model, backend=self._compile)(x)
        self.result.square().sum().backward()
        self.gradients = [x.grad, *(p.grad for p in model.parameters())]

    def _compile(self, graph_module, inputs):
        def keep_forward(graph_module, inputs):
            self.forward = graph_module
            return boxed(graph_module, inputs)

        def partition(joint, inputs, **kwargs):
            return partition_joint_graph(joint, inputs, prepare=self._prepare, **kwargs)

        return _torch_compat.run_aot_autograd(
            graph_module, inputs, fw_compiler=keep_forward, bw_compiler=boxed, partition_fn=partition
        )

    @property
    def saved_bytes(self):
        """Bytes of what the forward returns besides its result and its own inputs."""
        outputs = returned(self.forward)[1:]
        return sum(byte_size(node) for node in outputs if node.op != "placeholder")


def boxed(graph_module, inputs):
    def run(values):
        return graph_module.forward(*values)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def with_and_without():
    return Training(joint_table()), Training(())


def test_the_gradients_have_the_same_bits(with_and_without):
    one, other = with_and_without
    assert torch.equal(one.result, other.result)
    assert all(map(torch.equal, one.gradients, other.gradients))


def test_no_weight_is_saved_once_a_step(with_and_without):
    shared, plain = with_and_without
    row = ROWS * WIDTH * 8
    assert plain.saved_bytes >= STEPS * WIDTH * WIDTH * 8, "torch saves no weights any more"
    assert shared.saved_bytes <= (2 * STEPS + 1) * row, "the states, once before and once after a step"


def test_what_was_walked_is_saved_as_it_came(with_and_without):
    shared, _ = with_and_without
    assert not [node for node in shared.forward.graph.nodes if node.target is aten.flip.default]


@pytest.mark.scan_gradients
def test_the_backward_reads_weights_as_invariants(with_and_without):
    shared, _ = with_and_without
    reasons = [d.because for d in shared.ledger.decisions if d.step == ShareSavedValues.name]
    assert sum("is the same in every step" in because for because in reasons) == 2
    (loop,) = scans_in(shared.forward)
    assert not [y for y in loop.ys if tuple(y.meta["val"].shape) == (WIDTH, WIDTH)]


@pytest.mark.scan_gradients
def test_the_gradient_of_a_weight_that_no_step_uses_is_not_saved():
    """A recurrent module's loop is shown the weights of the projection before it. Their gradient is zero in
    every step; torch has the forward keep these zeros a step, and the backward add them up.
    """
    torch.manual_seed(0)
    steps, model = 64, torch.nn.LSTM(WIDTH, WIDTH)
    twin, x = copy.deepcopy(model), torch.randn(steps, ROWS, WIDTH)
    wolong_fx.optimize(model, target="reference")
    for each in (model, twin):
        each(x)[0].square().sum().backward()
    for ours, eager in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, eager.grad)
    stats = wolong_fx.stats(model)
    reasons = [d.because for ledger in stats.ledgers for d in ledger.decisions]
    assert sum(because.startswith("it is one number") for because in reasons) == 3
    assert stats.memory["arena"] < steps * 4 * WIDTH * WIDTH * 4, (
        "no product of a weight's shape a step either"
    )
