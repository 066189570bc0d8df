from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import wolong_fx.configs
from wolong_fx.errors import BadConfig, BadOptionValue, UnknownOption
from wolong_fx.options import Options
from wolong_fx.train.config import TrainConfig, leave_compile_open, read_config
from wolong_fx.train.doors import check_compile_config
from wolong_fx.train.main import one_line

CONFIGS = Path(wolong_fx.configs.__file__).parent
GROUPS = [(f.parent.name, f.stem) for f in sorted(CONFIGS.glob("*/*.yaml"))]


def composed(*overrides: str) -> DictConfig:
    leave_compile_open()
    with initialize_config_module("wolong_fx.configs", version_base="1.3"):
        return compose("train", overrides=list(overrides))


def read(*overrides: str) -> TrainConfig:
    return read_config(composed(*overrides))


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_choice_of_every_group_is_a_right_config(group, choice):
    check_compile_config(read(f"{group}={choice}").compile)


def test_the_groups_offer_what_the_main_job_promises():
    offered = {group: {c for g, c in GROUPS if g == group} for group, _ in GROUPS}
    assert offered["model"] == {"cell", "lstm", "gru", "mlp", "transformer"}
    assert offered["optim"] >= {"adam", "sgd"}
    assert offered["compile"] >= {"wolong", "eager", "inductor"}


@pytest.mark.parametrize(("group", "choice"), [pair for pair in GROUPS if pair[0] in ("model", "optim")])
def test_a_choice_is_named_as_its_file(group, choice):
    assert composed(f"{group}={choice}")[group].name == choice


def test_the_yaml_defaults_are_those_of_the_dataclasses():
    plain, own = dataclasses.asdict(TrainConfig()), dataclasses.asdict(read())
    assert {key for key in plain if plain[key] != own[key]} == {"run_dir"}


def test_every_option_of_the_compiler_is_a_key_of_the_compile_group():
    values = {"target": "reference", "isa": "avx2", "disable": "[fuse-ops,batch-ops]", "dump": "[graph]"}
    values["verify"] = "always"
    for field in dataclasses.fields(Options):
        config = read(f"compile.{field.name}={values.get(field.name, 3)}").compile
        if isinstance(field.default, str) and field.name not in values:
            config[field.name] = str(config[field.name])
        check_compile_config(config)
        assert Options.of(**{field.name: config[field.name]}) != Options()


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model=foo", HydraException, "Could not find 'model/foo' Available options in 'model': cell gru"),
        ("sed=1", HydraException, "Could not override 'sed'. Key 'sed' is not in struct at sed"),
        ("+sed=1", OmegaConfBaseException, "Key 'sed' not in 'TrainConfig' at sed"),
        ("x=[1", HydraException, "no viable alternative at input '[1'"),
        ("trainer.steps=many", OmegaConfBaseException, "'many' of type 'str' could not be converted to Int"),
        ("model.hidden=[1,2]", OmegaConfBaseException, "model.hidden"),
        ("data.batch=null", OmegaConfBaseException, "Incompatible value 'None' for field of type 'int'"),
        ("trainer.steps=0", BadConfig, "'trainer.steps' cannot be 0: expected a whole number, 1 or more"),
        ("trainer.clip=-1", BadConfig, "'trainer.clip' cannot be -1.0: expected 0 or more"),
        ("trainer.temperature=-1", BadConfig, "'trainer.temperature' cannot be -1.0"),
        ("trainer.prompt=''", BadConfig, "'trainer.prompt' cannot be ''"),
        ("data.validation=1", BadConfig, "'data.validation' cannot be 1.0: expected a share between 0 and 1"),
        ("data.length=0", BadConfig, "'data.length' cannot be 0"),
        ("optim.lr=0", BadConfig, "'optim.lr' cannot be 0.0: expected a number above 0"),
        ("optim.lr=inf", BadConfig, "'optim.lr' cannot be inf"),
        ("optim.betas=[0.9,1]", BadConfig, "'optim.betas' cannot be [0.9, 1.0]"),
        ("optim.betas=[0.9]", BadConfig, "'optim.betas' cannot be [0.9]: expected two numbers"),
        ("optim.weight_decay=-1", BadConfig, "'optim.weight_decay' cannot be -1.0"),
        ("model.name=blob", BadConfig, "'model.name' cannot be 'blob': expected one of cell, lstm, gru"),
        ("model.dropout=1", BadConfig, "'model.dropout' cannot be 1.0"),
        ("compile.backend=tvm", BadConfig, "'compile.backend' cannot be 'tvm': expected one of wolong"),
        ("seed=-1", BadConfig, "'seed' cannot be -1: expected a whole number, 0 or more"),
        ("compile.tragte=cpu", UnknownOption, "'tragte' in the compile group; did you mean 'target'?"),
        ("compile.threads=two", BadOptionValue, "'threads' cannot be 'two' in the compile group"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(override, error, message):
    with pytest.raises(error) as raised:
        check_compile_config(read(override).compile)
    line = one_line(raised.value)
    assert message in line
    assert "\n" not in line
    assert len(line) < 200


def test_heads_divide_the_width_of_a_transformer():
    with pytest.raises(BadConfig, match=r"'model.heads' cannot be 3: expected a divisor of model.hidden=128"):
        read("model=transformer", "model.heads=3")
