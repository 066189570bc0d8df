from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import wolong_fx
from wolong_fx.ledger import ACTIONS, PARTITIONS, PASSES, TRACED, Copies, Ledger, user_line

INSIDE_TORCH = f'  File "{Path(torch.__file__).parent}/nn/modules/linear.py", line 5, in forward\n    ...\n'
INSIDE_WOLONG = f'  File "{Path(wolong_fx.__file__).parent}/capture/rnn.py", line 6, in forward\n    ...\n'


def frame(file: str, line: int) -> str:
    return f'  File "{file}", line {line}, in forward\n    h = self.cell(x)\n'


def node(trace: str) -> SimpleNamespace:
    return SimpleNamespace(meta={"stack_trace": trace})


def test_the_users_line_is_the_innermost_one_outside_libraries():
    trace = frame("/home/me/train.py", 9) + frame("/home/me/model.py", 12) + INSIDE_TORCH + INSIDE_WOLONG
    assert user_line(node(trace)) == "/home/me/model.py:12"


@pytest.mark.parametrize("folder", ["/home/me/torch/model.py", "/home/me/wolong_fx/examples/model.py"])
def test_a_users_folder_may_be_called_like_a_library(folder):
    assert user_line(node(frame(folder, 3) + INSIDE_TORCH)) == f"{folder}:3"


def test_our_own_models_are_named_before_torchs_code():
    assert user_line(node(INSIDE_WOLONG + INSIDE_TORCH)).endswith("capture/rnn.py:6")


def test_torchs_line_is_better_than_none():
    assert user_line(node(INSIDE_TORCH)).endswith("linear.py:5")


@pytest.mark.parametrize(
    "unknown", ["a name", node(""), SimpleNamespace(meta={}), SimpleNamespace(meta=None)]
)
def test_a_node_without_a_trace_has_no_line(unknown):
    assert user_line(unknown) == ""


class UserModel(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)


def test_a_traced_node_is_found_at_the_line_that_made_it():
    tracer = torch.fx.Tracer()
    tracer.record_stack_traces = True
    graph = tracer.trace(UserModel())
    relu = next(n for n in graph.nodes if n.op == "call_function")
    ledger = Ledger()
    ledger.note("cut-partitions", relu, "kept", "it is alone")
    line = UserModel.forward.__code__.co_firstlineno + 1
    assert (ledger.decisions[0].node, ledger.decisions[0].where) == ("relu", f"{__file__}:{line}")


def test_a_decision_reads_as_one_line():
    ledger = Ledger()
    ledger.note("fold-constants", "add_3", "folded", "both operands are constants")
    assert str(ledger.decisions[0]) == "fold-constants: add_3 folded: both operands are constants"
    ledger.note("cut-partitions", node(frame("m.py", 4)), "fell-back", "no lowering for aten.sort")
    assert "fell-back at m.py:4: no lowering" in str(ledger.decisions[1])


def test_an_action_outside_the_vocabulary_is_refused():
    with pytest.raises(AssertionError, match="vanished"):
        Ledger().note("cse", "a", "vanished", "no reason")


def test_decisions_are_counted_by_action_and_fallbacks_by_reason():
    ledger = Ledger()
    for action in (*ACTIONS, "fell-back"):
        ledger.note("step", "n", action, f"because {action}")
    assert [ledger.count(action) for action in ACTIONS] == [1, 1, 1, 1, 2, 1]
    assert ledger.fallbacks() == {"because fell-back": 2}


def test_the_time_of_a_step_adds_up_even_when_it_fails():
    ledger = Ledger()
    with ledger.timed("lower"):
        time.sleep(0.002)
    first = ledger.timings["lower"]
    with pytest.raises(ValueError, match="mine"), ledger.timed("lower"):
        time.sleep(0.002)
        raise ValueError("mine")
    assert ledger.timings["lower"] >= first + 0.002


def test_the_time_of_a_step_is_its_own_so_that_all_add_up_to_the_whole():
    ledger = Ledger()
    start = time.perf_counter()
    with ledger.timed("outer"):
        time.sleep(0.002)
        for name in ("one", "two"):
            with ledger.timed(name), ledger.timed("within"):
                time.sleep(0.004)
    whole = time.perf_counter() - start
    assert ledger.timings["within"] >= 0.008
    assert 0 <= ledger.timings["one"] < 0.004
    assert 0.002 <= ledger.timings["outer"] <= whole - 0.008
    assert sum(ledger.timings.values()) == pytest.approx(whole, rel=0.2)


def test_a_step_is_credited_with_the_copies_that_no_later_step_brings_back():
    ledger = Ledger()
    levels = {TRACED: 6, PASSES: 5, PARTITIONS: 5, "a": 4, "b": 1, "c": 2}
    for step, number in levels.items():
        ledger.count_copies(step, Copies(number, 8 * number))
    assert ledger.copies_removed() == {PASSES: Copies(1, 8), "a": Copies(1, 8), "b": Copies(2, 16)}


def test_copies_outside_of_kernels_stay():
    ledger = Ledger()
    for step, number in ((TRACED, 5), (PASSES, 5), (PARTITIONS, 2), ("lower", 0)):
        ledger.count_copies(step, Copies(number, 8 * number))
    assert ledger.copies_removed() == {"lower": Copies(2, 16)}


def test_a_part_that_fails_removes_no_copy():
    ledger = Ledger()
    ledger.count_copies("lower", Copies(1, 8))
    with pytest.raises(ValueError, match="mine"), ledger.copies_of_part():
        ledger.count_copies("lower", Copies(2, 16))
        raise ValueError("mine")
    assert ledger.copies == {"lower": Copies(1, 8)}


def test_a_graph_that_runs_as_it_came_removes_no_copy():
    ledger = Ledger()
    ledger.count_copies("lower", Copies())
    assert ledger.copies_removed() == {}
