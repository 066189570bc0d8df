"""A recursive network over a binary tree: the shape of the graph is the shape of the tree.

B samples, N leaves, I inputs, H hidden units.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

Tree = int | tuple["Tree", "Tree"]
"""A leaf's position, or two sub-trees."""

State = tuple[Tensor, Tensor]
"""(h, c), each (B, H)."""


def balanced_tree(leaves: int, first: int = 0) -> Tree:
    """The tree over `leaves` leaves from position `first` on whose sub-trees differ by at most one leaf."""
    if leaves == 1:
        return first
    left = leaves // 2
    return balanced_tree(left, first), balanced_tree(leaves - left, first + left)


def random_tree(leaves: int, seed: int = 0) -> Tree:
    """A tree made by joining random neighbours, as a parser might find it."""
    generator = random.Random(seed)
    trees: list[Tree] = list(range(leaves))
    while len(trees) > 1:
        at = generator.randrange(len(trees) - 1)
        trees[at : at + 2] = [(trees[at], trees[at + 1])]
    return trees[0]


class TreeLSTM(nn.Module):
    """The binary Tree-LSTM of Tai et al. (2015, section 3.2): leaves see words, inner nodes their children.

    An inner node has five gates with a matrix for each child: 10 matmuls; a leaf has three.

    tree: over the leaves 0, 1, ...; None = balanced over 32
    """

    def __init__(self, hidden: int = 128, tree: Tree | None = None, *, inputs: int = 0) -> None:
        super().__init__()
        self.tree = balanced_tree(32) if tree is None else tree
        self.leaves = _count_leaves(self.tree)
        self.inputs = inputs or hidden
        self.at_leaf = nn.ModuleList(nn.Linear(self.inputs, hidden) for _ in range(3))  # i, u, o
        self.of_left = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(5))  # i, f left, f right, u, o
        self.of_right = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(5))

    def example_inputs(self, batch: int = 1, *, seed: int = 0) -> tuple[Tensor, ...]:
        """(N, B, I) normal values."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(self.leaves, batch, self.inputs, generator=generator),)

    def forward(self, words_NBI: Tensor) -> State:
        """The root's (h, c), each (B, H)."""
        return self._state(self.tree, words_NBI)

    def _state(self, tree: Tree, words_NBI: Tensor) -> State:
        if isinstance(tree, int):
            return self._leaf(words_NBI[tree])
        left, right = tree
        return self._join(self._state(left, words_NBI), self._state(right, words_NBI))

    def _leaf(self, word_BI: Tensor) -> State:
        i, u, o = (gate(word_BI) for gate in self.at_leaf)
        c_BH = torch.sigmoid(i) * torch.tanh(u)
        return torch.sigmoid(o) * torch.tanh(c_BH), c_BH

    def _join(self, left: State, right: State) -> State:
        (h_left, c_left), (h_right, c_right) = left, right
        gates = zip(self.of_left, self.of_right, strict=True)
        i, f_left, f_right, u, o = (ours(h_left) + theirs(h_right) for ours, theirs in gates)
        kept = torch.sigmoid(f_left) * c_left + torch.sigmoid(f_right) * c_right
        c_BH = torch.sigmoid(i) * torch.tanh(u) + kept
        return torch.sigmoid(o) * torch.tanh(c_BH), c_BH


def _count_leaves(tree: Tree) -> int:
    return 1 if isinstance(tree, int) else sum(map(_count_leaves, tree))
