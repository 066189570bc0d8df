"""Recurrent operators written out step by step, for graphs that are to become one kernel.

`torch.lstm`, `gru`, `rnn_tanh`, `rnn_relu` and their cells arrive as one opaque call each. Here they are the
same functions in plain tensor operators, shaped for a compiler: one matmul projects the inputs of ALL steps
outside of the recurrence (of a loop without gradients, its passes choose where), a step has one matmul for
all its gates, and the state stays (B, H).

Shapes: T steps, B batch, I inputs, H hidden, P = projection size or H, G = gates * H, L layers, D directions.
The recurrences are those documented at torch.nn.LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]  # (h,) or (h, c); h is (B, P), c is (B, H)


class Weights(NamedTuple):
    """Parameters of one layer in one direction. What steps share is transposed once, not at every step."""

    ih_GI: Tensor
    hh_PG: Tensor
    b_ih_G: Tensor | None = None
    b_hh_G: Tensor | None = None
    hr_HP: Tensor | None = None


FEWEST_ROLLED = 4  # steps; fewer are written out
_steps_are_rolled: ContextVar[bool] = ContextVar("steps_are_rolled", default=False)


@contextmanager
def steps_rolled() -> Iterator[None]:
    """Inside of it, the steps of a sequence are traced as one `scan` in place of one after the other."""
    token = _steps_are_rolled.set(True)
    try:
        yield
    finally:
        _steps_are_rolled.reset(token)


Step = Callable[[Tensor, State, Weights], State]


class Recurrence(NamedTuple):
    """What tells the recurrent operators apart.

    step: one step from the projected input (B, G), the state and the weights to the next state
    is_hidden_bias_inside: the hidden bias is added within the step; otherwise it joins the input projection
    """

    step: Step
    is_hidden_bias_inside: bool = False


def step_lstm(x_BG: Tensor, state: State, w: Weights) -> State:
    """Gates in torch's order: input, forget, cell, output. The hidden bias is already in x."""
    h, c = state
    i, f, g, o = torch.addmm(x_BG, h, w.hh_PG).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.hr_HP is None else h @ w.hr_HP), c


def step_gru(x_BG: Tensor, state: State, w: Weights) -> State:
    """Gates in torch's order: reset, update, new. The reset gate also scales the hidden bias, added here."""
    (h,) = state
    x_r, x_z, x_n = x_BG.chunk(3, 1)
    h_BG = h @ w.hh_PG if w.b_hh_G is None else torch.addmm(w.b_hh_G, h, w.hh_PG)
    h_r, h_z, h_n = h_BG.chunk(3, 1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((h - n) * z + n,)


def step_tanh(x_BG: Tensor, state: State, w: Weights) -> State:
    """Elman's step with tanh."""
    return (torch.tanh(torch.addmm(x_BG, state[0], w.hh_PG)),)


def step_relu(x_BG: Tensor, state: State, w: Weights) -> State:
    """Elman's step with the rectifier."""
    return (torch.relu(torch.addmm(x_BG, state[0], w.hh_PG)),)


LSTM = Recurrence(step_lstm)
GRU = Recurrence(step_gru, is_hidden_bias_inside=True)
RNN_TANH = Recurrence(step_tanh)
RNN_RELU = Recurrence(step_relu)


def project_inputs(kind: Recurrence, x: Tensor, w: Weights) -> Tensor:
    """W_ih x + b_ih over the last axis, with b_hh where the step does not add it."""
    bias = w.b_ih_G
    if bias is not None and w.b_hh_G is not None and not kind.is_hidden_bias_inside:
        bias = bias + w.b_hh_G
    return F.linear(x, w.ih_GI, bias)


def run_direction(
    kind: Recurrence, x_TBI: Tensor, state: State, w: Weights, *, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: hidden states (T, B, P) in the order of the input, and the last state."""
    if _steps_are_rolled.get() and len(x_TBI) >= FEWEST_ROLLED:
        if torch.is_grad_enabled():
            return _scan_direction(kind.step, project_inputs(kind, x_TBI, w), state, w, reverse=reverse)
        return _scan_direction(_projecting(kind), x_TBI, state, w, reverse=reverse)
    projected = project_inputs(kind, x_TBI, w).unbind(0)
    hidden = []
    for x_BG in reversed(projected) if reverse else projected:
        state = kind.step(x_BG, state, w)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), state


def _projecting(kind: Recurrence) -> Step:
    """A step from the input (B, I): what leaves the loop, and whether that pays, is for the loop's passes."""

    def step(x_BI: Tensor, state: State, w: Weights) -> State:
        return kind.step(project_inputs(kind, x_BI, w), state, w)

    return step


def _scan_direction(
    take: Step, x_T: Tensor, state: State, w: Weights, *, reverse: bool
) -> tuple[Tensor, State]:
    """The same as one `scan`. It wants what a step returns, and what it starts with, in memory of its own."""

    def step(*given: Tensor) -> list[Tensor]:
        carried, x, tensors = given[: len(state)], given[len(state)], given[len(state) + 1 :]
        following = take(x, carried, w._replace(**dict(zip(weights, tensors, strict=True))))
        return [t.clone() for t in (*following, following[0])]

    initial = [t.clone(memory_format=torch.contiguous_format) for t in state]
    weights = {name: t for name, t in w._asdict().items() if t is not None}
    *last, hidden_TBP = torch.ops.higher_order.scan(
        step, initial, [x_T.flip(0) if reverse else x_T], list(weights.values())
    )
    return hidden_TBP.flip(0) if reverse else hidden_TBP, tuple(last)


def run_layers(
    kind: Recurrence,
    x_TBI: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    *,
    directions: int,
    dropout: float,
) -> tuple[Tensor, list[State]]:
    """All layers; `states` and `weights` run layer by layer, both directions of a layer side by side.

    dropout: probability between layers; 0 outside of training
    """
    last: list[State] = []
    for first in range(0, len(weights), directions):
        if first and dropout:
            x_TBI = F.dropout(x_TBI, dropout)
        ways = [
            run_direction(kind, x_TBI, states[first + d], weights[first + d], reverse=d == 1)
            for d in range(directions)
        ]
        x_TBI = torch.cat([y for y, _ in ways], 2) if directions == 2 else ways[0][0]
        last += [state for _, state in ways]
    return x_TBI, last


def run_recurrence(
    kind: Recurrence,
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    *,
    has_biases: bool,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
    has_projections: bool = False,
) -> tuple[Tensor, ...]:
    """(output, h_n[, c_n]) as torch.lstm and its siblings return them; `states` are (L*D, B, .) each."""
    y_TBP, last = run_layers(
        kind,
        x.transpose(0, 1) if batch_first else x,
        list(zip(*(s.unbind(0) for s in states), strict=True)),
        gather_weights(params, has_biases=has_biases, has_projections=has_projections),
        directions=2 if bidirectional else 1,
        dropout=dropout,
    )
    y = y_TBP.transpose(0, 1) if batch_first else y_TBP
    return y, *(torch.stack(s) for s in zip(*last, strict=True))


def gather_weights(params: Sequence[Tensor], *, has_biases: bool, has_projections: bool) -> list[Weights]:
    """torch's flat list of parameters, cut into the directions of the layers."""
    each = 2 + 2 * has_biases + has_projections
    groups = [tuple(params[i : i + each]) for i in range(0, len(params), each)]
    return [
        Weights(
            *(g[0], g[1].t()),
            *(g[2:4] if has_biases else (None, None)),
            hr_HP=g[-1].t() if has_projections else None,
        )
        for g in groups
    ]


def lstm(
    x: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """torch.lstm(input, ...) of an unpacked sequence: (output, h_n, c_n)."""
    return run_recurrence(
        LSTM,
        x,
        hx,
        params,
        has_biases=has_biases,
        dropout=dropout if train else 0.0,
        bidirectional=bidirectional,
        batch_first=batch_first,
        has_projections=hx[0].shape[2] != hx[1].shape[2],
    )


def one_state_rnn(kind: Recurrence) -> Callable[..., tuple[Tensor, ...]]:
    """torch.gru, torch.rnn_tanh or torch.rnn_relu of an unpacked sequence: (output, h_n)."""

    def run(
        x: Tensor,
        hx: Tensor,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        return run_recurrence(
            kind,
            x,
            [hx],
            params,
            has_biases=has_biases,
            dropout=dropout if train else 0.0,
            bidirectional=bidirectional,
            batch_first=batch_first,
        )

    return run


def lstm_cell(
    x: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """torch.lstm_cell: (h, c)."""
    weights = Weights(w_ih, w_hh.t(), b_ih, b_hh)
    return step_lstm(project_inputs(LSTM, x, weights), tuple(hx), weights)


def one_state_cell(kind: Recurrence) -> Callable[..., Tensor]:
    """torch.gru_cell, torch.rnn_tanh_cell or torch.rnn_relu_cell: h."""

    def run(
        x: Tensor,
        hx: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor:
        weights = Weights(w_ih, w_hh.t(), b_ih, b_hh)
        return kind.step(project_inputs(kind, x, weights), (hx,), weights)[0]

    return run
