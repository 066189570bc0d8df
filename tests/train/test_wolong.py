"""The main job through the compiler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wolong_fx import stats
from wolong_fx.train.config import MODELS
from wolong_fx.train.loop import train

from .conftest import changed

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_to_the_losses_of_eager_in_one_kernel_each_way(tiny, tmp_path, name):
    config = changed(changed(tiny, "model", name=name), "trainer", steps=5, validate_every=0)
    config = changed(config, "data", length=5)
    eager = train(config, tmp_path / "eager")
    own = train(replace(config, compile={"backend": "wolong"}), tmp_path / "wolong")
    assert own.losses() == pytest.approx(eager.losses(), rel=1e-5)
    assert stats(own.run.model).launches == {"forward": 1, "backward": 1}


def test_a_compiled_run_is_resumed_exactly_with_dropout_and_validation(tiny, tmp_path):
    short = changed(changed(tiny, "model", dropout=0.3), "data", length=3)
    config = replace(short, compile={"backend": "wolong"})
    whole = train(config, tmp_path / "whole")
    train(changed(config, "trainer", steps=6), tmp_path / "parts")
    parts = train(config, tmp_path / "parts")
    assert [r["loss"] for r in parts.records] == [r["loss"] for r in whole.records]
    eager = train(replace(config, compile={"backend": "eager"}), tmp_path / "eager")
    for split in ("train", "validation"):
        assert whole.losses(split) == pytest.approx(eager.losses(split), rel=1e-5)


def test_an_optimised_model_leaves_checkpoints_that_a_plain_one_continues(tiny, tmp_path):
    short = changed(changed(tiny, "trainer", steps=4, validate_every=0), "data", length=3)
    config = replace(short, compile={"backend": "wolong"})
    train(config, tmp_path)
    plain = changed(replace(config, compile={"backend": "eager"}), "trainer", steps=8)
    whole = train(plain, tmp_path / "whole")
    assert train(plain, tmp_path).losses() == pytest.approx(whole.losses(), rel=1e-5)
