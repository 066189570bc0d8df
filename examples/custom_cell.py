"""A recurrent cell that no library has, made fast: all a user adds is one line.

    python examples/custom_cell.py

The minimal gated unit of Zhou et al. (2016), one forget gate, learns to add up a sequence of numbers.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor, nn

import wolong_fx


class MinimalGatedUnit(nn.Module):
    """x (T, B, I) -> prediction (B,): the running sum, read from the last state (B, H)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.forget = nn.Linear(inputs + hidden, hidden)
        self.candidate = nn.Linear(inputs + hidden, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x_TBI: Tensor) -> Tensor:
        h_BH = x_TBI.new_zeros(x_TBI.shape[1], self.hidden)
        for x_BI in x_TBI:
            f = torch.sigmoid(self.forget(torch.cat([x_BI, h_BH], -1)))
            c = torch.tanh(self.candidate(torch.cat([x_BI, f * h_BH], -1)))
            h_BH = (1 - f) * h_BH + f * c
        return self.head(h_BH)[:, 0]


def fit(model: nn.Module, steps: int) -> tuple[list[float], float]:
    """The losses, and the milliseconds of the median step."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses, times = [], []
    for _ in range(steps):
        x_TBI = torch.rand(12, 16, 1) - 0.5
        start = perf_counter()
        loss = ((model(x_TBI) - x_TBI.sum((0, 2))) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(1e3 * (perf_counter() - start))
        losses.append(loss.item())
    return losses, sorted(times)[len(times) // 2]


def main() -> None:
    """Train the same model twice, and show what the compiler did."""
    results = {}
    for name in ("eager", "wolong"):
        torch.manual_seed(0)
        model = MinimalGatedUnit(inputs=1, hidden=48)
        if name == "wolong":
            wolong_fx.optimize(model)  # the one line
        results[name], step_ms = fit(model, steps=100)
        print(f"{name:7} loss {results[name][0]:.4f} -> {results[name][-1]:.4f}, {step_ms:.2f} ms a step")
        if name == "wolong":
            print(wolong_fx.stats(model))
    pairs = zip(results["eager"], results["wolong"], strict=True)
    print(f"largest difference of the losses: {max(abs(a - b) for a, b in pairs):.1e}")


if __name__ == "__main__":
    main()
