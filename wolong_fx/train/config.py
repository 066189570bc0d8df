"""What a training run may be told: one dataclass for each Hydra group, typed and checked in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from wolong_fx.errors import BadConfig

MODELS = ("cell", "lstm", "gru", "mlp", "transformer")
OPTIMIZERS = ("adam", "adamw", "sgd")
BACKENDS = ("wolong", "eager", "inductor")


@dataclass
class DataConfig:
    """The text and the windows cut from it.

    path: a file or a folder; "" = the standard-library sources of the running interpreter
    pattern: which files of a folder; "" = *.py of the standard library, every text file of another folder
    validation: share of each file, at its end, that is kept for validation
    length, batch: a batch is (length, batch) bytes
    """

    path: str = ""
    pattern: str = ""
    validation: float = 0.05
    length: int = 64
    batch: int = 16

    def __post_init__(self) -> None:
        _at_least_one("data", length=self.length, batch=self.batch)
        _check("data.validation", self.validation, 0 < self.validation < 1, "a share between 0 and 1")


@dataclass
class ModelConfig:
    """The language model; a kind of model reads the fields that its file in configs/model lists.

    embed: width of a byte's embedding
    hidden: width of the state
    heads: attention heads (transformer)
    context: bytes seen at once (mlp)
    """

    name: str = "cell"
    embed: int = 64
    hidden: int = 128
    layers: int = 1
    dropout: float = 0.0
    heads: int = 4
    context: int = 8

    def __post_init__(self) -> None:
        _one_of("model.name", self.name, MODELS)
        sizes = ("embed", "hidden", "layers", "heads", "context")
        _at_least_one("model", **{name: getattr(self, name) for name in sizes})
        _check("model.dropout", self.dropout, 0 <= self.dropout < 1, "a share from 0 to below 1")
        divides = self.name != "transformer" or self.hidden % self.heads == 0
        _check("model.heads", self.heads, divides, f"a divisor of model.hidden={self.hidden}")


@dataclass
class OptimConfig:
    """The optimiser; names and meanings are those of torch.optim."""

    name: str = "adam"
    lr: float = 3e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])

    def __post_init__(self) -> None:
        _one_of("optim.name", self.name, OPTIMIZERS)
        _check("optim.lr", self.lr, 0 < self.lr < math.inf, "a number above 0")
        for name in ("weight_decay", "momentum"):
            _check(f"optim.{name}", getattr(self, name), getattr(self, name) >= 0, "a number, 0 or more")
        are_decays = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        _check("optim.betas", self.betas, are_decays, "two numbers from 0 to below 1")


@dataclass
class TrainerConfig:
    """The loop. `*_every` count steps; 0 = never.

    clip: largest norm of the gradient; 0 = not clipped
    sample_bytes, prompt, temperature: the text generated at the end; temperature 0 = the likeliest byte
    """

    steps: int = 800
    log_every: int = 1
    validate_every: int = 100
    validate_batches: int = 8
    checkpoint_every: int = 100
    clip: float = 1.0
    progress: bool = True
    tensorboard: bool = True
    prompt: str = "def "
    sample_bytes: int = 300
    temperature: float = 0.7

    def __post_init__(self) -> None:
        _at_least_one("trainer", steps=self.steps, validate_batches=self.validate_batches)
        for name in (
            "log_every",
            "validate_every",
            "checkpoint_every",
            "sample_bytes",
            "clip",
            "temperature",
        ):
            _check(f"trainer.{name}", getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check("trainer.prompt", self.prompt, self.prompt != "", "some text to begin with")


@dataclass
class TrainConfig:
    """A whole run.

    run_dir: where its files go; the same directory again continues the run
    resume: "auto" = from the newest checkpoint in run_dir, "never", or a checkpoint file
    compile: `backend` and, for wolong, any field of wolong_fx.options.Options
    """

    run_dir: str = "runs/default"
    seed: int = 0
    resume: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compile: dict[str, Any] = field(default_factory=lambda: {"backend": "wolong"})
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        _one_of("compile.backend", self.compile.get("backend"), BACKENDS)
        _check("seed", self.seed, self.seed >= 0, "a whole number, 0 or more")


def read_config(composed: DictConfig) -> TrainConfig:
    """The composed Hydra config as a checked TrainConfig; raises OmegaConf's errors and BadConfig."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), composed))
    assert isinstance(config, TrainConfig)
    return config


def leave_compile_open() -> None:
    """Let `compile.<any key>` through Hydra: Options knows the right keys and names the nearest one."""
    node = {"compile": OmegaConf.create({}, flags={"struct": False})}
    ConfigStore.instance().store(name="open_compile", node=node)


def _check(key: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise BadConfig(key=key, value=value, expected=expected)


def _one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    _check(key, value, value in choices, "one of " + ", ".join(choices))


def _at_least_one(group: str, **sizes: int) -> None:
    for name, size in sizes.items():
        _check(f"{group}.{name}", size, size >= 1, "a whole number, 1 or more")
