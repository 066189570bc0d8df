"""From the `optim` group to an optimiser of torch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from wolong_fx.train.config import OptimConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser a config describes, over the given parameters."""
    lr, decay = config.lr, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay)
    first, second = config.betas
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(parameters, lr=lr, betas=(first, second), weight_decay=decay)
