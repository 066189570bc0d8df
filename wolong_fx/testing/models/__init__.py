"""Models that benchmarks, demo and tests share, written the slow way: operator by operator, as users do.

Every model has `example_inputs(batch, seed=...)`: the arguments of a call, the same for the same seed.
Weights are drawn from torch's global generator: seed it before making a model.
"""

from wolong_fx.testing.models.convolution import CellStack
from wolong_fx.testing.models.recommender import TowerRecommender
from wolong_fx.testing.models.recurrent import (
    GateGRUStack,
    GateLSTM,
    LiGRU,
    MergedGateLSTM,
    PeepholeLSTM,
    SequenceModel,
    same_as_nn_gru,
    same_as_nn_lstm,
)
from wolong_fx.testing.models.transformer import DecodeStep
from wolong_fx.testing.models.tree import Tree, TreeLSTM, balanced_tree, random_tree

__all__ = [
    "CellStack",
    "DecodeStep",
    "GateGRUStack",
    "GateLSTM",
    "LiGRU",
    "MergedGateLSTM",
    "PeepholeLSTM",
    "SequenceModel",
    "TowerRecommender",
    "Tree",
    "TreeLSTM",
    "balanced_tree",
    "random_tree",
    "same_as_nn_gru",
    "same_as_nn_lstm",
]
