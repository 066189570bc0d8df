"""Index expressions: one normal form, exact values, safe bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wolong_fx.ir.index import Index, Var, contiguous_strides, delinearise, linear

VARIABLES = [Var("a", 6), Var("b", 4), Var("c", 10)]
DIVISORS = st.sampled_from([1, 2, 3, 4, 6, 8, 12])


def _pairs(inner):
    """An index built by our operators, beside a function that computes the same by Python's."""
    return st.one_of(
        st.tuples(inner, inner).map(lambda p: (p[0][0] + p[1][0], lambda e: p[0][1](e) + p[1][1](e))),
        st.tuples(inner, st.integers(-3, 7)).map(lambda p: (p[0][0] * p[1], lambda e: p[0][1](e) * p[1])),
        st.tuples(inner, DIVISORS).map(lambda p: (p[0][0] // p[1], lambda e: p[0][1](e) // p[1])),
        st.tuples(inner, DIVISORS).map(lambda p: (p[0][0] % p[1], lambda e: p[0][1](e) % p[1])),
    )


LEAVES = st.one_of(
    st.sampled_from(VARIABLES).map(lambda v: (Index.of(v), lambda e: e[v])),
    st.integers(-5, 9).map(lambda n: (Index(n), lambda e: n)),
)
INDICES = st.recursive(LEAVES, _pairs, max_leaves=8)
POINTS = st.fixed_dictionaries({v: st.integers(0, v.extent - 1) for v in VARIABLES})


@given(INDICES, POINTS)
def test_simplification_keeps_the_value_and_bounds_hold(pair, point):
    index, expected = pair
    assert index.evaluate(point) == expected(point)
    low, high = index.bounds()
    assert low <= expected(point) <= high


@given(INDICES, INDICES, POINTS)
def test_substitution_is_evaluation_of_the_substituted(pair, other, point):
    (index, expected), (inner, value) = pair, other
    variable = VARIABLES[0]
    replaced = index.substitute({variable: inner % variable.extent})
    assert replaced.evaluate(point) == expected({**point, variable: value(point) % variable.extent})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_splitting_a_flat_index_and_joining_it_again_leaves_it(shape, data):
    shape = tuple(shape)
    size = 1
    for n in shape:
        size *= n
    flat = Index.of(Var("i", size))
    assert linear(delinearise(flat, shape), contiguous_strides(shape)) == flat
    cut = data.draw(st.integers(0, len(shape) - 1))
    inner = size
    for n in shape[:cut]:
        inner //= n
    again = delinearise(flat % inner, shape[cut:])
    assert linear(again, contiguous_strides(shape[cut:])) == flat % inner


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ((Index.of(VARIABLES[1]) + Index.of(VARIABLES[0]) * 4) // 4, "a"),
        ((Index.of(VARIABLES[1]) + Index.of(VARIABLES[0]) * 4) % 4, "b"),
        (Index.of(VARIABLES[2]) // 3 * 3 + Index.of(VARIABLES[2]) % 3, "c"),
        (Index.of(VARIABLES[2]) // 2 // 3, "(c)//6"),
        (Index.of(VARIABLES[2]) % 6 // 2, "((c)//2)%3"),
        ((Index.of(VARIABLES[0]) * 4 + VARIABLES[1]) // 8, "(a)//2"),
        ((Index.of(VARIABLES[0]) * 4 + VARIABLES[1] + 8) % 24, "4*(a + 2)%6 + b"),
        (Index.of(VARIABLES[0]) * 4 % 8, "4*(a)%2"),
        (Index.of(Var("one", 1)), "0"),
    ],
)
def test_the_normal_form_of_a_view_has_no_needless_division(index, text):
    assert str(index) == text
