"""The `compile` group: by which door a model goes to a compiler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from wolong_fx import optimize
from wolong_fx.errors import BadConfig
from wolong_fx.options import Options
from wolong_fx.passes.text import check_names
from wolong_fx.pipeline import step_names


def check_compile_config(config: Mapping[str, Any]) -> None:
    """Refuse what the backend would not understand.

    Raises UnknownOption, BadOptionValue, UnknownPass; BadConfig for an option of a backend without any.
    """
    options = _options(config)
    if config["backend"] == "wolong":
        chosen = Options.of(where="the compile group", **options)
        check_names(chosen.disable, step_names(), where="compile.disable")
    for name, value in options.items() if config["backend"] != "wolong" else ():
        raise BadConfig(key=f"compile.{name}", value=value, expected=f"no option with {config['backend']}")


def open_door(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """What to call instead of `model`; the parameters stay the model's own."""
    if config["backend"] == "inductor":
        compiled = torch.compile(model)
        assert isinstance(compiled, nn.Module)
        return compiled
    if config["backend"] == "wolong":
        return optimize(model, **_options(config))
    return model


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in config.items() if name != "backend"}
