from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from wolong_fx.train.config import MODELS, OPTIMIZERS, ModelConfig, OptimConfig
from wolong_fx.train.models import LanguageModel, build_model
from wolong_fx.train.optim import build_optimizer

STEPS, BATCH = 12, 3


def model(name: str, **values: object) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, embed=8, hidden=16, context=4, **values), length=STEPS)


def tokens() -> torch.Tensor:
    return torch.randint(256, (STEPS, BATCH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_no_position_sees_what_comes_after_it(name, layers):
    net, seen = model(name, layers=layers), tokens()
    changed = seen.clone()
    changed[7:] = (changed[7:] + 1) % 256
    before, after = net.logits(seen), net.logits(changed)
    assert before.shape == (STEPS, BATCH, 256)
    torch.testing.assert_close(before[:7], after[:7])
    assert not torch.allclose(before[7:], after[7:])


@pytest.mark.parametrize("name", MODELS)
def test_each_position_sees_the_bytes_before_it(name):
    net, seen = model(name), tokens()
    changed = seen.clone()
    changed[5] = (changed[5] + 1) % 256
    assert not torch.allclose(net.logits(seen)[6:8], net.logits(changed)[6:8])


@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_a_batch_do_not_mix(name):
    net, seen = model(name), tokens()
    torch.testing.assert_close(net.logits(seen)[:, 1:2], net.logits(seen[:, 1:2]))


@pytest.mark.parametrize("name", MODELS)
def test_a_shorter_sequence_is_a_beginning_of_a_longer_one(name):
    net, seen = model(name), tokens()
    torch.testing.assert_close(net.logits(seen[:5]), net.logits(seen)[:5])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    net, seen = model(name, layers=2), tokens()
    net(seen, seen.roll(-1, 0)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_loss_is_cross_entropy_in_nats_a_byte():
    net, seen = model("mlp"), tokens()
    expected = F.cross_entropy(net.logits(seen).reshape(-1, 256), seen.reshape(-1))
    torch.testing.assert_close(net(seen, seen), expected)
    assert expected.item() == pytest.approx(math.log(256), abs=0.3)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_acts_in_training_only(name):
    net, seen = model(name, layers=2, dropout=0.5), tokens()
    assert not torch.equal(net(seen, seen), net(seen, seen))
    net.eval()
    assert torch.equal(net(seen, seen), net(seen, seen))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_takes_its_values_from_the_config(name):
    parameters = [torch.nn.Parameter(torch.ones(2))]
    config = OptimConfig(name=name, lr=0.25, weight_decay=0.5, momentum=0.75, betas=[0.1, 0.2])
    defaults = build_optimizer(parameters, config).defaults
    own = {"momentum": 0.75} if name == "sgd" else {"betas": (0.1, 0.2)}
    expected = {"lr": 0.25, "weight_decay": 0.5} | own
    assert {key: defaults[key] for key in expected} == expected
