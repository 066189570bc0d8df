from __future__ import annotations

import torch

from wolong_fx.train.config import ModelConfig
from wolong_fx.train.models import LanguageModel, build_model
from wolong_fx.train.sample import generate_text


def model() -> LanguageModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(name="mlp", embed=8, hidden=16, context=4, dropout=0.5), length=8)


def text(net: LanguageModel, **values: float) -> str:
    settings = {"size": 20, "context": 8, "temperature": 1.0, "seed": 1} | values
    return generate_text(net, "def ", **settings)


def test_the_same_seed_writes_the_same_text():
    net = model()
    assert text(net) == text(net)
    assert text(net) != text(net, seed=2)


def test_text_begins_with_the_prompt_and_has_the_size_asked_for():
    net = model()
    with torch.no_grad():
        net.head.bias[128:] = -1e9  # plain ASCII: a byte is a letter
    assert text(net).startswith("def ")
    assert len(text(net)) == 24


def test_temperature_zero_takes_the_likeliest_byte():
    net = model()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
        net.head.bias[ord("x")] = 0.1
    assert text(net, temperature=0) == "def " + "x" * 20
    assert text(net, temperature=0.001) == "def " + "x" * 20
    assert set(text(net, temperature=1)) - set("def x")


def test_sampling_disturbs_neither_the_mode_nor_the_global_generator():
    net = model().train()
    before = torch.get_rng_state()
    text(net)
    assert net.training
    assert torch.equal(torch.get_rng_state(), before)


def test_bytes_that_are_no_text_are_shown_as_such():
    net = model()
    with torch.no_grad():
        net.head.bias[0xFF] = 1e9
    assert text(net, size=3) == "def " + "\N{REPLACEMENT CHARACTER}" * 3
