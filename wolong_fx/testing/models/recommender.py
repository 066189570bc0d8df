"""A recommender of many small towers, in the manner of DLRM (Naumov et al. 2019).

B samples, F categorical features, D dense features, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Distinct values of the 26 categorical features in Criteo's Kaggle data, the set that DLRM is usually trained
# on, cut to a thousand by hashing.
CRITEO_ROWS = (
    *(1000, 583, 1000, 1000, 305, 24, 1000, 633, 3, 1000, 1000, 1000, 1000),
    *(27, 1000, 1000, 10, 1000, 1000, 4, 1000, 18, 15, 1000, 105, 1000),
)


class Tower(nn.Module):
    """An embedding and a small MLP of its own for one categorical feature."""

    def __init__(self, rows: int, embed: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, embed)
        self.mlp = _mlp(embed, hidden, embed)

    def forward(self, index_B: Tensor) -> Tensor:
        """(B,) int64 to (B, E)."""
        return self.mlp(self.embedding(index_B))


class TowerRecommender(nn.Module):
    """Dense features through an MLP, each categorical one through its tower, all pairs' dot products, an MLP.

    rows: of each tower's embedding; as many towers as entries
    dense: number D of dense features
    embed: width E of what is compared
    hidden: width of the inner layers of towers and MLPs
    """

    first: Tensor
    second: Tensor

    def __init__(
        self, rows: Sequence[int] = CRITEO_ROWS, *, dense: int = 13, embed: int = 16, hidden: int = 32
    ) -> None:
        super().__init__()
        self.rows, self.dense_features = tuple(rows), dense
        self.bottom = _mlp(dense, 2 * hidden, embed)
        self.towers = nn.ModuleList(Tower(count, embed, hidden) for count in rows)
        pairs = torch.triu_indices(len(rows) + 1, len(rows) + 1, offset=1)
        self.register_buffer("first", pairs[0])
        self.register_buffer("second", pairs[1])
        self.top = nn.Sequential(
            nn.Linear(embed + pairs.shape[1], 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 1), nn.Sigmoid()
        )

    def example_inputs(self, batch: int = 1, *, seed: int = 0) -> tuple[Tensor, ...]:
        """(B, D) normal values and (B, F) indices, uniform over each tower's rows."""
        generator = torch.Generator().manual_seed(seed)
        dense_BD = torch.randn(batch, self.dense_features, generator=generator)
        columns = [torch.randint(rows, (batch,), generator=generator) for rows in self.rows]
        return dense_BD, torch.stack(columns, dim=1)

    def forward(self, dense_BD: Tensor, indices_BF: Tensor) -> Tensor:
        """(B, 1) probabilities of a click."""
        dense_BE = self.bottom(dense_BD)
        columns = zip(self.towers, indices_BF.unbind(1), strict=True)
        features_BNE = torch.stack([dense_BE, *(tower(index) for tower, index in columns)], dim=1)
        products_BNN = features_BNE @ features_BNE.transpose(1, 2)
        pairs_BP = products_BNN[:, self.first, self.second]
        return self.top(torch.cat([dense_BE, pairs_BP], dim=1))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), nn.ReLU())
