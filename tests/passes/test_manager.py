"""The one hook: timing, operator counts, dumps, disable-by-name, and the ledger with the user's line."""

from __future__ import annotations

import pytest
import torch

from wolong_fx import pipeline
from wolong_fx.errors import UnknownPass
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options
from wolong_fx.passes.canonicalise import Canonicalise
from wolong_fx.passes.manager import PassManager, count_operators
from wolong_fx.passes.remove_dead_code import RemoveDeadCode
from wolong_fx.passes.simplify import Simplify
from wolong_fx.passes.text import check_names
from wolong_fx.testing.graphs import trace_graph

TABLE = (Canonicalise(), Simplify(), RemoveDeadCode())


def some_graph():
    return trace_graph(lambda x: (x * 1).t() + x.t().neg(), torch.zeros(3, 4))


def run(options, table=TABLE):
    ledger = Ledger()
    return PassManager(table, options, ledger)(some_graph()), ledger


def test_every_pass_is_timed_and_counted():
    _, ledger = run(Options())
    names = {p.name for p in TABLE}
    assert names <= ledger.timings.keys()
    assert ledger.op_counts == {"canonicalise": (5, 5), "simplify": (5, 4), "remove-dead-code": (4, 4)}


def test_a_disabled_pass_does_not_run():
    result, ledger = run(Options(disable=("simplify",)))
    assert "simplify" not in ledger.timings and count_operators(result.graph_module) == 5


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UnknownPass, match="'simplfy' in disable; did you mean 'simplify'"):
        check_names(["simplfy"], pipeline.step_names(), where="disable")


def test_a_dump_has_one_file_a_pass_in_the_order_of_the_table(tmp_path):
    run(Options(dump=("graph",), dump_dir=str(tmp_path)))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "00-canonicalise.txt",
        "01-simplify.txt",
        "02-remove-dead-code.txt",
    ]
    assert "= permute.default(%x_1, [1, 0]) : float32[4, 3]" in (tmp_path / "01-simplify.txt").read_text()


def test_nothing_is_dumped_unasked(tmp_path):
    run(Options(dump=("source",), dump_dir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_decision_has_the_reason_and_the_users_line():
    graph_module = some_graph()
    for node in graph_module.graph.nodes:
        node.meta["stack_trace"] = 'File "/home/me/model.py", line 7, in forward\n    y = x * 1'
    ledger = Ledger()
    PassManager(TABLE, Options(), ledger)(graph_module)
    told = {(d.step, d.action, d.because, d.where) for d in ledger.decisions}
    assert ("simplify", "removed", "times 1 changes nothing", "/home/me/model.py:7") in told


def test_what_replaces_an_operator_keeps_the_users_line_and_the_name_of_the_pass():
    graph_module = some_graph()
    for node in graph_module.graph.nodes:
        node.meta["stack_trace"] = f"line of {node}"
    after = PassManager(TABLE, Options(), Ledger())(graph_module).graph_module
    permutes = [n for n in after.graph.nodes if n.target is torch.ops.aten.permute.default]
    assert [n.meta["stack_trace"] for n in permutes] == ["line of t", "line of t_1"]
    assert {n.meta["made_by"] for n in permutes} == {"canonicalise"}


def test_a_pass_can_be_called_by_itself_like_any_torch_pass():
    result = Simplify()(some_graph())
    assert result.modified
    x = torch.randn(3, 4)
    assert torch.equal(result.graph_module(x), x.t() - x.t())
