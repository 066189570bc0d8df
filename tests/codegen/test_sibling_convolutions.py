"""Convolutions of one image, or with one weight: what they share, and that sharing changes no result."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wolong_fx.codegen import build_programs
from wolong_fx.codegen.fuse_ops import is_heavy
from wolong_fx.codegen.reference.machine import run_program
from wolong_fx.ir.expr import Reduce
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.testing.tracing import trace_core


def small_tiles(op):
    return tuple(d.extent if d.sequential else min(d.extent, 5) for d in op.dims)


def program_of(function, *inputs, static=()):
    """The programs (run, prepare), after the results were compared with eager's in float64.

    static: positions of the inputs that are weights
    """
    gm = trace_core(function, *inputs)
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    split_with = [placeholders[at] for at in static]
    whole = build_programs(gm, Options(), Ledger(), small_tiles).run
    exact = function(*(x.double() for x in inputs))
    for ours, wanted in zip(run_program(whole, list(inputs), seed=0), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
    for node in split_with:
        node.meta["static"] = True
    split = build_programs(gm, Options(), Ledger(), small_tiles)
    return split.run, split.prepare


def sums(program):
    """How many sums each heavy operator has."""
    return sorted(
        sum(isinstance(e, Reduce) for e in op.expressions()) for op in program.ops() if is_heavy(op)
    )


def bordered(program):
    """Shapes of the images with a border that are made."""
    return sorted(
        b.shape[2:] for op in program.ops() if not is_heavy(op) for b in op.writes() if len(b.shape) == 4
    )


def image(*shape):
    return torch.randn(1, 8, *shape)


def weights(count, size=3):
    return [torch.randn(8, 8, size, size) for _ in range(count)]


def branches(x, *kernels):
    return (torch.cat([F.relu(F.conv2d(x, k, padding=k.shape[-1] // 2)) for k in kernels], 1).sum((2, 3)),)


def test_siblings_of_one_image_are_one_operator_over_one_copy():
    run, _ = program_of(branches, image(6, 5), *weights(4), static=(1, 2, 3, 4))
    assert max(sums(run)) == 4
    assert bordered(run).count((8, 7)) == 1


def test_windows_of_other_sizes_have_a_border_each():
    run, _ = program_of(branches, image(6, 5), *weights(2), *weights(2, 5), static=(1, 2, 3, 4))
    assert (bordered(run).count((8, 7)), bordered(run).count((10, 9))) == (1, 1)


def test_siblings_with_one_weight_have_it_ordered_once():
    def siamese(x, y, k):
        return (F.relu(F.conv2d(x, k, padding=1)) * F.relu(F.conv2d(y, k, padding=1)),)

    _, prepare = program_of(siamese, image(5, 5), image(5, 5), *weights(1), static=(2,))
    assert prepare is not None
    assert len([op for op in prepare.ops() if op.reads()[0].kind.is_given]) == 1


def test_siblings_of_several_images_share_a_stage():
    def apart(x, y, a, b):
        return F.conv2d(x, a).relu().sum((2, 3)), F.conv2d(y, b).relu().sum((2, 3))

    run, _ = program_of(apart, image(4, 4), image(4, 4), *weights(2), static=(2, 3))
    heavy = [sum(map(is_heavy, stage.ops)) for stage in run.stages()]
    assert max(heavy) == 2 or max(sums(run)) >= 2


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_random_siblings_equal_float64(data):
    """Convolutions of random earlier images with random weights, windows and groups; one image has an
    infinity and one a NaN at times.
    """
    count = data.draw(st.integers(2, 4))
    choices = [
        (data.draw(st.integers(0, 1 + n)), data.draw(st.sampled_from((1, 3))), data.draw(st.integers(0, 1)))
        for n in range(count)
    ]
    stride, groups = data.draw(st.sampled_from(((1, 1), (1, 8), (2, 1))))
    special = data.draw(st.sampled_from((0.0, float("inf"), float("nan"))))

    def graph(x, y, *kernels):
        images = [x, y]
        for source, size, which in choices:
            k = kernels[which][:, ::groups, :size, :size]
            padding = size // 2 if stride == 1 else 0
            source = source % 2 if stride == 2 else source
            images.append(torch.tanh(F.conv2d(images[source], k, None, stride, padding, 1, groups)))
        return tuple(i.sum((2, 3)) for i in images[2:])

    x, y = image(4, 5), image(4, 5)
    y[0, 1, 2, 3] = special
    program_of(graph, x, y, *weights(2))


class Twice(nn.Module):
    """One image, changed in place between two convolutions."""

    state: torch.Tensor

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("state", torch.zeros(1, 8, 4, 4))

    def forward(self, x):
        before = self.layer(self.state)
        self.state.add_(x)
        return before, self.layer(self.state)


@pytest.mark.cpu
def test_an_image_that_changes_between_two_convolutions_is_copied_twice():
    import wolong_fx

    model, x = Twice().eval(), torch.randn(1, 8, 4, 4)
    ours = wolong_fx.optimize(Twice().eval())
    ours.load_state_dict(model.state_dict())
    with torch.no_grad():
        for _ in range(3):
            for found, wanted in zip(ours(x), model(x), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_shared_copy_trains_every_weight():
    def graph(x, a, b):
        return branches(x, a, b)[0].square().sum()

    def gradients(x, a, b):
        return torch.func.grad(graph, argnums=(0, 1, 2))(x, a, b)

    program_of(gradients, image(4, 4), *weights(2))
