"""Copies that torch would make and we do not, counted by hand on small models."""

import pytest
import torch
from torch import nn

import wolong_fx
from wolong_fx.ledger import Copies

ROWS = 4 * 4 * 8  # bytes of float32[4, 8]
STEPS = 12


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def total(model, *inputs):
    """All copies removed in a call of a model, or of a function of tensors."""
    compiled = wolong_fx.optimize(model if isinstance(model, nn.Module) else Function(model))
    with torch.no_grad():
        compiled(*inputs)
    return sum(wolong_fx.stats(compiled).copies_removed.values(), Copies())


def inputs(*shapes):
    return [torch.randn(shape) for shape in shapes]


def test_producers_write_both_halves_of_a_concat():
    removed = total(lambda x, y: torch.cat([x.exp(), y.tanh()], 1), *inputs((4, 8), (4, 8)))
    assert removed == Copies(2, 2 * ROWS)


def test_a_half_that_is_an_input_stays_a_copy():
    assert total(lambda x, y: torch.cat([x, y.tanh()], 1), *inputs((4, 8), (4, 8))) == Copies(1, ROWS)


def test_a_concat_of_inputs_that_is_returned_is_no_copy_less():
    assert total(lambda x, y: (torch.cat([x, y], 1), x + y), *inputs((4, 8), (4, 8))) == Copies()


def test_views_are_no_copies_of_torchs():
    def gated(x):
        a, b = x.chunk(2, 1)
        return torch.sigmoid(a) * b[:, :4].T.split(1, 1)[0].exp().sum()

    assert total(gated, *inputs((4, 16))) == Copies()


def test_a_clone_that_is_read_elsewhere_costs_nothing():
    assert total(lambda x: x.permute(1, 0).contiguous().exp(), *inputs((4, 8))) == Copies(1, ROWS)


def test_a_clone_that_is_returned_stays():
    assert total(lambda x: (x.permute(1, 0).contiguous(), x.exp()), *inputs((4, 8))) == Copies()


def recurrence(collect):
    def run(x, w, h):
        states = []
        for step in x:
            h = torch.tanh(step @ w + h)
            states.append(h)
        return collect(states)

    return run


def written_by_row(states):
    whole = torch.zeros(len(states), *states[0].shape)
    for row, state in enumerate(states):
        whole[row] = state
    return whole


@pytest.mark.parametrize("collect", [torch.stack, written_by_row])
def test_the_states_of_a_loop_are_stored_in_their_stack(collect):
    """All but one copy: the loop's first state, which an unrolled program reads where it is."""
    removed = total(recurrence(collect), *inputs((STEPS, 4, 8), (8, 8), (4, 8)))
    assert removed == Copies(STEPS - 1, (STEPS - 1) * ROWS)


def test_states_that_nobody_stacks_are_no_copies():
    removed = total(recurrence(lambda states: states[-1] + states[3]), *inputs((STEPS, 4, 8), (8, 8), (4, 8)))
    assert removed == Copies()


def test_values_saved_for_a_backward_are_no_copies():
    compiled = wolong_fx.optimize(Function(recurrence(lambda states: states[-1])))
    x, w, h = inputs((STEPS, 4, 8), (8, 8), (4, 8))
    compiled(x, w.requires_grad_(), h).sum().backward()
    assert wolong_fx.stats(compiled).copies_removed == {}


def test_three_steps_of_an_lstm():
    """Its output is a stack of three states, and each last state a stack of one."""
    assert total(nn.LSTM(8, 8), *inputs((3, 4, 8))) == Copies(5, 5 * ROWS)


def test_the_summary_says_it_in_a_line():
    compiled = wolong_fx.optimize(Function(lambda x, y: torch.cat([x.exp(), y.tanh()], 1)))
    with torch.no_grad():
        compiled(*inputs((4, 8), (4, 8)))
    assert f"copies removed: 2 of {2 * ROWS} bytes (" in str(wolong_fx.stats(compiled))
