"""The precision of float32 products is what torch's settings say, however they are said."""

from __future__ import annotations

import pytest
import torch

from wolong_fx.codegen.triton.precision import float32_precision
from wolong_fx.codegen.triton.target import TritonTarget

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def as_before():
    before = MATMUL.fp32_precision, torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before[1])
    MATMUL.fp32_precision = before[0]


def allow(is_allowed: bool) -> None:
    MATMUL.allow_tf32 = is_allowed


def set_precision(is_allowed: bool) -> None:
    MATMUL.fp32_precision = "tf32" if is_allowed else "ieee"


def set_matmul_precision(is_allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")


@pytest.mark.parametrize("say", [allow, set_precision, set_matmul_precision])
def test_tf32_is_used_where_a_setting_allows_it(say):
    say(False)
    assert float32_precision() == "ieee"
    say(True)
    assert float32_precision() == TritonTarget.of_settings().precision == "tf32"


@pytest.mark.parametrize("say", [allow, set_precision, set_matmul_precision])
def test_a_change_of_the_setting_compiles_anew(say):
    seen = []

    def backend(gm, _inputs):
        seen.append(float32_precision())
        return gm

    say(False)
    torch._dynamo.reset()
    compiled, x = torch.compile(lambda a: a @ a + 1, backend=backend), torch.ones(3, 3)
    compiled(x)
    compiled(x)
    say(True)
    compiled(x)
    assert seen == ["ieee", "tf32"]
