from __future__ import annotations

import json
import threading
import warnings

import pytest

from wolong_fx.testing.ratchet import LooseBudget, Ratchet

FIGURES = {"registers": 40, "shared_bytes": 512}


@pytest.fixture
def ratchet(tmp_path):
    kept = Ratchet(tmp_path / "budget.json", "3.7.1")
    kept.hold("mlp", FIGURES, tighten=True)
    return kept


def test_what_needs_as_much_as_before_passes(ratchet):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ratchet.hold("mlp", FIGURES)


def test_what_needs_more_fails_and_says_what_and_how_to_answer_for_it(ratchet):
    with pytest.raises(AssertionError, match=r"registers 41 instead of 40.*delete it from .*--tighten"):
        ratchet.hold("mlp", FIGURES | {"registers": 41})


def test_what_needs_less_passes_and_says_how_to_tighten(ratchet):
    with pytest.warns(LooseBudget, match="registers 39 instead of 40; run pytest with --tighten"):
        ratchet.hold("mlp", FIGURES | {"registers": 39})


def test_tightening_lowers_what_is_less_and_leaves_what_is_more(ratchet):
    with pytest.raises(AssertionError, match="shared_bytes 600 instead of 512"):
        ratchet.hold("mlp", {"registers": 30, "shared_bytes": 600}, tighten=True)
    assert json.loads(ratchet.path.read_text())["3.7"]["mlp"] == {"registers": 30, "shared_bytes": 512}


@pytest.mark.parametrize(("name", "figures"), [("other", FIGURES), ("mlp", {"registers": 1})])
def test_what_has_no_budget_fails(ratchet, name, figures):
    with pytest.raises(AssertionError, match="--tighten"):
        ratchet.hold(name, figures)


def test_a_version_without_figures_is_held_to_the_last_before_it(ratchet):
    Ratchet(ratchet.path, "3.10.0").hold("mlp", FIGURES)
    with pytest.raises(AssertionError, match="has no budget"):
        Ratchet(ratchet.path, "3.6.0").hold("mlp", FIGURES)
    Ratchet(ratchet.path, "3.10.0").hold("mlp", FIGURES | {"registers": 20}, tighten=True)
    ratchet.hold("mlp", FIGURES)


def test_many_can_tighten_at_once(ratchet):
    names = [f"kernel{n}" for n in range(20)]
    threads = [
        threading.Thread(target=lambda n=name: Ratchet(ratchet.path, "3.7").hold(n, FIGURES, tighten=True))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads(ratchet.path.read_text())["3.7"]) == {"mlp", *names}
