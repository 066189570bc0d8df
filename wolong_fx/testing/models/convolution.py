"""Cells that architecture search found, stacked: many small convolutions on small maps.

B samples, C channels, maps of S x S.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn


class SeparableConv(nn.Module):
    """Twice: ReLU, depthwise convolution, 1x1 convolution, batch normalisation (Zoph et al. 2018)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.halves = nn.Sequential(*(_depthwise_block(channels, size) for _ in range(2)))

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """(B, C, S, S) to the same shape."""
        return self.halves(x_BCSS)


Make = Callable[[int], nn.Module]

# The normal cell of NASNet-A (Zoph et al. 2018, figure 4): each pair is added and gives the next
# state; states 0 and 1 are what the two cells before gave. (operation, state) as in the
# genotype "NASNet" of DARTS' code.
OPERATIONS: dict[str, Make] = {
    "separable 3x3": partial(SeparableConv, size=3),
    "separable 5x5": partial(SeparableConv, size=5),
    "average pool 3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "skip": lambda channels: nn.Identity(),
}
NASNET_A = (
    (("separable 5x5", 1), ("separable 3x3", 0)),
    (("separable 5x5", 0), ("separable 3x3", 0)),
    (("average pool 3x3", 1), ("skip", 0)),
    (("average pool 3x3", 0), ("average pool 3x3", 0)),
    (("separable 3x3", 1), ("skip", 1)),
)
Genotype = Sequence[Sequence[tuple[str, int]]]


class Cell(nn.Module):
    """A normal cell: every pair of the genotype is added; the sums side by side are the output's channels."""

    def __init__(self, genotype: Genotype, before: int, last: int, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.ModuleList(_pointwise_block(width, channels) for width in (before, last))
        self.sources = [source for pair in genotype for _, source in pair]
        self.operations = nn.ModuleList(OPERATIONS[name](channels) for pair in genotype for name, _ in pair)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """Outputs of the two cells before to this one's: (B, 5 C, S, S) with 5 pairs."""
        states = [block(x) for block, x in zip(self.squeeze, (before, last), strict=True)]
        for at in range(0, len(self.sources), 2):
            one, two = (self.operations[i](states[self.sources[i]]) for i in (at, at + 1))
            states.append(one + two)
        return torch.cat(states[2:], dim=1)


class CellStack(nn.Module):
    """A stem, a stack of equal cells, a mean over each map, a classifier.

    channels: C of each operation in a cell
    size: S, height and width of the maps
    """

    def __init__(
        self,
        cells: int = 6,
        *,
        channels: int = 16,
        size: int = 8,
        classes: int = 10,
        genotype: Genotype = NASNET_A,
    ) -> None:
        super().__init__()
        self.size, wide = size, len(genotype) * channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        widths = [channels, channels] + [wide] * cells
        self.cells = nn.ModuleList(
            Cell(genotype, before, last, channels) for before, last in pairwise(widths[: cells + 1])
        )
        self.head = nn.Linear(wide, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # so that values keep their size through the cells
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def example_inputs(self, batch: int = 1, *, seed: int = 0) -> tuple[Tensor, ...]:
        """(B, 3, S, S) normal values."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, 3, self.size, self.size, generator=generator),)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, classes) scores."""
        before = last = self.stem(images)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.head(last.mean(dim=(2, 3)))


def _depthwise_block(channels: int, size: int) -> nn.Sequential:
    depthwise = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels))


def _pointwise_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
