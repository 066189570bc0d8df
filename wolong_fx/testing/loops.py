"""Functions that run torch's scan: every shape of a rolled loop that code generation has to know, and random
ones.

Each takes the number of steps and a dtype and gives a function and its inputs; eager PyTorch runs it too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wolong_fx.passes.loops.scan import SCAN

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class LoopCase:
    """A function of tensors with a loop in it, and inputs for it."""

    function: Function
    inputs: tuple[Tensor, ...]


Family = Callable[[int, torch.dtype], LoopCase]


def _tensors(dtype: torch.dtype, *shapes: Sequence[int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(len(shapes))
    return tuple((torch.randn(*s, generator=generator, dtype=torch.float64) * 0.5).to(dtype) for s in shapes)


def _lstm_step(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = z.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h, c, h.clone()


def lstm(steps: int, dtype: torch.dtype) -> LoopCase:
    """The input projection stands before the loop, over all steps; the final states are results too."""

    def function(x: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        z = (x.reshape(-1, 5) @ w).reshape(steps, 3, 28)
        zeros = x.new_zeros(3, 7), x.new_zeros(3, 7)  # tracing takes one tensor in two places for one operand
        h, c, ys = SCAN(lambda h, c, z, u: _lstm_step(z + h @ u, c), zeros, (z,), (u,))
        return ys, h, c

    return LoopCase(function, _tensors(dtype, (steps, 3, 5), (5, 28), (7, 28)))


def lstm_whole(steps: int, dtype: torch.dtype) -> LoopCase:
    """The input projection is in the body; batch first, as a view of what is walked."""

    def function(x: Tensor, h: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        def step(h: Tensor, c: Tensor, x: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            return _lstm_step(x @ w + h @ u, c)

        _, c, ys = SCAN(step, (h, h * 0.5), (x.transpose(0, 1),), (w, u))
        return ys.transpose(0, 1), c

    return LoopCase(function, _tensors(dtype, (3, steps, 5), (3, 7), (5, 28), (7, 28)))


def gru(steps: int, dtype: torch.dtype) -> LoopCase:
    """A gate multiplies the state before a product: two stages a step, with a barrier between."""

    def function(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        def step(h: Tensor, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            r, z = (x + h @ u).sigmoid().chunk(2, 1)
            n = (x[:, :6] + (r * h) @ v).tanh()
            h = (1 - z) * n + z * h
            return h, h.clone()

        h, ys = SCAN(step, (x.new_zeros(2, 6),), (x,), (u, v))
        return ys, h

    return LoopCase(function, _tensors(dtype, (steps, 2, 12), (6, 12), (6, 6)))


def reversed_walk(steps: int, dtype: torch.dtype) -> LoopCase:
    """From the last step to the first, the results in the order of the input."""

    def function(x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        def step(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            h = (x + h @ u).tanh()
            return h, h * 2

        h, ys = SCAN(step, (x[0] * 0,), (x.flip(0),), (u,))
        return ys.flip(0), h

    return LoopCase(function, _tensors(dtype, (steps, 3, 6), (6, 6)))


def shift_register(steps: int, dtype: torch.dtype) -> LoopCase:
    """Carries that change places, one that stays, and shapes that differ."""

    def function(x: Tensor, a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        def step(a: Tensor, b: Tensor, s: Tensor, k: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            return b.clone(), a + x.sum() * s, s * 0.5 + x.mean(0)[:1], k, (a * b).t().contiguous()

        return SCAN(step, (a, b, s, s + 1), (x,), ())

    return LoopCase(function, _tensors(dtype, (steps, 4, 3), (5, 2), (5, 2), (1,)))


def history(steps: int, dtype: torch.dtype) -> LoopCase:
    """What training saves: states as a step found them, an invariant at every step, one result twice."""

    def function(x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        scale = u.exp()

        def step(h: Tensor, c: Tensor, x: Tensor, u: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
            c_new = c * 0.5 + x
            h_new = (c_new + h @ u).tanh()
            return h_new, c_new, h.clone(), c.clone(), scale.clone(), h_new * 1, (h_new * 1).t().contiguous()

        return (*SCAN(step, (x[0] * 0, x[0] * 2), (x,), (u, scale)), scale)

    return LoopCase(function, _tensors(dtype, (steps, 3, 4), (4, 4)))


def counters(steps: int, dtype: torch.dtype) -> LoopCase:
    """Integer state beside floats: a count, and the position of the largest value so far."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        def step(n: Tensor, best: Tensor, where: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            better = x > best
            return n + 1, torch.where(better, x, best), torch.where(better, n, where), x.argmax(0)

        start = torch.zeros(4, dtype=torch.int64)
        return SCAN(step, (start, x[0] - 1, start - 1), (x,), ())

    return LoopCase(function, _tensors(dtype, (steps, 4)))


def two_walks(steps: int, dtype: torch.dtype) -> LoopCase:
    """Two loops that need nothing of each other, forwards and backwards, side by side in one result."""

    def function(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        def step(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            h = (x + h @ u).tanh()
            return h, h.clone()

        _, there = SCAN(step, (x[0] * 0,), (x,), (u,))
        _, back = SCAN(step, (x[0] * 0,), (x.flip(0),), (v,))
        return (torch.cat([there, back.flip(0)], 2),)

    return LoopCase(function, _tensors(dtype, (steps, 2, 6), (6, 6), (6, 6)))


def encoder_decoder(steps: int, dtype: torch.dtype) -> LoopCase:
    """A loop fed by a loop: it starts from the last state, and looks at all earlier ones at every step."""

    def function(x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        def encode(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            h = (x + h @ u).tanh()
            return h, h.clone()

        def decode(h: Tensor, x: Tensor, memory: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            scores = (memory @ h.reshape(6, 1)).reshape(steps, 1).softmax(0)
            h = (x + h @ v + (scores * memory).sum(0, keepdim=True)).tanh()
            return h, h.clone()

        h, memory = SCAN(encode, (x[0] * 0,), (x,), (u,))
        return SCAN(decode, (h,), (x * 0.5,), (memory.reshape(steps, 6), v))

    return LoopCase(function, _tensors(dtype, (steps, 1, 6), (6, 6), (6, 6)))


def nested(steps: int, dtype: torch.dtype) -> LoopCase:
    """A loop in a loop: rows by columns, the outer state starting the inner one."""

    def function(x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        def column(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            h = (x + h @ u).tanh()
            return h, h.clone()

        def row(s: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            h, ys = SCAN(column, (s * 0.5,), (x,), (u,))
            return h + s, ys.sum(0), ys

        return SCAN(row, (x[0, 0],), (x,), (u,))

    return LoopCase(function, _tensors(dtype, (steps, 3, 2, 5), (5, 5)))


def scatter(steps: int, dtype: torch.dtype) -> LoopCase:
    """A step writes its state at positions that are data, one operator after another in order."""

    def function(x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        def step(h: Tensor, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            h = (h * 0.5).index_add(0, at, x)
            return h, h[at] * 2

        return SCAN(step, (x[0, :1].expand(4, 3) * 1,), (x, at), ())

    places = (torch.arange(steps * 5) * 7 % 4).reshape(steps, 5)
    return LoopCase(function, (*_tensors(dtype, (steps, 5, 3)), places))


def cumulative(steps: int, dtype: torch.dtype) -> LoopCase:
    """Nothing but sums: weight gradients of a recurrence, with nothing stacked but a scalar a step."""

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        def step(s: Tensor, n: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return s + x.t() @ y, n + 1, x.sum()

        return SCAN(step, (torch.zeros(5, 4, dtype=x.dtype), torch.zeros((), dtype=x.dtype)), (x, y), ())

    return LoopCase(function, _tensors(dtype, (steps, 3, 5), (steps, 3, 4)))


def backward(steps: int, dtype: torch.dtype) -> LoopCase:
    """Gradients of a gated recurrence: pointwise work, then a product of it for the step before."""

    def function(dy: Tensor, saved: Tensor, dh: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        def step(dh: Tensor, dy: Tensor, gate: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            d = dh + dy
            dz = d * gate.sigmoid() * (1 - gate)
            return dz @ u.t() + d * gate, dz.clone()

        dh, dz = SCAN(step, (dh,), (dy.flip(0), saved.flip(0)), (u,))
        return dh, saved.reshape(-1, 6).t() @ dz.flip(0).reshape(-1, 6)

    return LoopCase(function, _tensors(dtype, (steps, 3, 6), (steps, 3, 6), (3, 6), (6, 6)))


def differentiated(case: LoopCase) -> LoopCase:
    """What a training step computes: the results, and the gradients of their sum for the inputs."""

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        results = case.function(*leaves)
        sought = [r for r in results if r.requires_grad]
        gradients = torch.autograd.grad([r.sum() for r in sought], leaves, allow_unused=True)
        return (*(r.detach() for r in results), *(g for g in gradients if g is not None))

    return LoopCase(function, case.inputs)


FAMILIES: Mapping[str, Family] = {
    f.__name__: f
    for f in (
        *(lstm, lstm_whole, gru, reversed_walk, shift_register, history, counters, two_walks),
        *(encoder_decoder, nested, scatter, cumulative, backward),
    )
}
"""Every kind of loop, by name."""


def random_loop(rng: random.Random, steps: int = 0) -> LoopCase:
    """A recurrence over two states of one width that mixes products, views and pointwise work at random.

    steps: 0 = a random number
    """
    steps, rows, width = steps or rng.choice((1, 2, 3, 7)), rng.randint(1, 4), rng.choice((3, 8))
    choices = [rng.randrange(len(_MIXES)) for _ in range(rng.randint(2, 5))]
    picks = [[rng.randrange(4) for _ in range(2)] for _ in choices]
    ends = [rng.randrange(len(choices) + 3) for _ in range(4)]

    def step(h: Tensor, c: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        known = [h, c, x]
        for choice, (a, b) in zip(choices, picks, strict=True):
            known.append(_MIXES[choice](known[-1 - a % len(known)], known[-1 - b % len(known)], u))
        return tuple((known[end] * scale).clone() for end, scale in zip(ends, (0.5, 1, 1, 2), strict=True))

    def function(h: Tensor, c: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        return SCAN(step, (h, c), (x.flip(0) if picks[0][0] else x,), (u,))

    shapes = ((rows, width), (rows, width), (steps, rows, width), (width, width))
    return LoopCase(function, _tensors(torch.float32, *shapes))


def random_loops(rng: random.Random) -> LoopCase:
    """Two or three random recurrences; some start from what another one left, so they have to wait for it."""
    steps = rng.choice((1, 2, 3, 7))
    cases = [random_loop(rng, steps if rng.random() < 0.8 else 0) for _ in range(rng.randint(2, 3))]
    fed_by = [rng.choice((None, *range(n))) for n in range(len(cases))]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        done: list[tuple[Tensor, ...]] = []
        for case, source in zip(cases, fed_by, strict=True):
            h, *others = values[: len(case.inputs)]
            values = values[len(case.inputs) :]
            start = h if source is None else h + done[source][0].mean()
            done.append(case.function(start, *others))
        return tuple(result for results in done for result in results)

    return LoopCase(function, tuple(x for case in cases for x in case.inputs))


_MIXES: tuple[Callable[[Tensor, Tensor, Tensor], Any], ...] = (
    lambda a, b, u: (a @ u + b).tanh(),
    lambda a, b, u: a.sigmoid() * b,
    lambda a, b, u: a - b.mean(1, keepdim=True),
    lambda a, b, u: torch.where(a > b, a, b * 0.5),
    lambda a, b, u: (a.flip(1) + b).sin(),
    lambda a, b, u: torch.cat([a[:, 1:], b[:, :1]], 1),
    lambda a, b, u: a.softmax(1) + b @ u.t(),
)
