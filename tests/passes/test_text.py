"""Passes and pipelines as text, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wolong_fx import pipeline
from wolong_fx.errors import BadPassText, UnknownPass
from wolong_fx.options import Options
from wolong_fx.passes.cut_partitions import CutPartitions
from wolong_fx.passes.fold_constants import FoldConstants
from wolong_fx.passes.text import pass_from_text, pass_to_text, pipeline_from_text, pipeline_to_text

TABLE = pipeline.pass_table(Options())


@pytest.mark.parametrize("a_pass", TABLE, ids=lambda p: p.name)
def test_a_pass_comes_back_from_its_text(a_pass):
    assert pass_from_text(pass_to_text(a_pass), TABLE) == a_pass


def test_the_whole_pipeline_comes_back_from_its_text():
    assert pipeline_from_text(pipeline_to_text(TABLE), TABLE) == TABLE


@given(st.lists(st.sampled_from(TABLE)), st.integers(0, 2**40), st.integers(0, 9))
def test_any_pipeline_with_any_options_comes_back(passes, max_bytes, min_ops):
    passes = (*passes, FoldConstants(max_bytes=max_bytes), CutPartitions(min_ops=min_ops))
    assert pipeline_from_text(pipeline_to_text(passes), TABLE) == passes


def test_the_empty_pipeline_is_the_empty_text():
    assert pipeline_to_text(()) == "" and pipeline_from_text("", TABLE) == ()


def test_options_at_their_default_are_not_spelled_out():
    assert pass_to_text(FoldConstants()) == "fold-constants"
    assert pass_to_text(FoldConstants(max_bytes=8)) == "fold-constants{max_bytes=8}"


def test_a_pass_read_back_keeps_the_functions_bound_in_the_table():
    read = pass_from_text("cut-partitions{min_ops=5}", TABLE)
    assert (read.min_ops, read.why_unsupported) == (5, pipeline.why_not_in_a_kernel)


def test_an_unknown_pass_names_the_nearest():
    with pytest.raises(UnknownPass, match=r"'simplfy' .* did you mean 'simplify'"):
        pass_from_text("simplfy", TABLE)


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("simplify{", "not a name with options"),
        ("fold-constants{max_bytes=open('x')}", "not literals"),
        ("fold-constants{max_bytes=}", "not literals"),
        ("fold-constants{bytes=3}", "no option 'bytes'"),
        ("cut-partitions{why_unsupported=None}", "no option 'why_unsupported'"),
    ],
)
def test_a_text_that_cannot_be_read_says_why(text, because):
    with pytest.raises(BadPassText, match=because):
        pass_from_text(text, TABLE)
