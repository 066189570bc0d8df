"""What Wolong FX did with a model, operator by operator: what it fused, what it left to torch, and why.

python examples/why_eager.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import wolong_fx


class Median(nn.Module):
    """Pointwise operators around one that is left to torch: a sort."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, x_BI: Tensor) -> Tensor:
        scores = torch.tanh(self.project(x_BI)) + x_BI
        middle = torch.sort(scores, dim=-1).values[:, 8:9]
        return torch.relu(scores - middle) * 2.0


def main() -> None:
    """Compile the model by its first call and print its ledger."""
    model = wolong_fx.optimize(Median())
    with torch.no_grad():
        model(torch.randn(4, 16))
    stats = wolong_fx.stats(model)
    print(stats)
    for ledger in stats.ledgers:
        for decision in ledger.decisions:
            print(f"  {decision}")


if __name__ == "__main__":
    main()
