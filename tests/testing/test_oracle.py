"""The oracle lets pass what eager could have made, and nothing else."""

import pytest
import torch

from wolong_fx.testing.golden import assert_golden
from wolong_fx.testing.oracle import assert_close_to_float64, assert_results_close, ulp
from wolong_fx.testing.samples import ALL, OPERATORS

x = torch.randn(64, generator=torch.Generator().manual_seed(0))


def passes(ours, eager, exact=None, **options):
    try:
        assert_results_close(ours, eager, eager.double() if exact is None else exact, **options)
    except AssertionError:
        return False
    return True


def test_the_same_computation_passes():
    assert_close_to_float64(lambda a: a.softmax(0), lambda a: a.softmax(0), (x,))


def test_four_units_in_the_last_place_pass_and_five_do_not():
    exact = torch.tensor([1.0, 1.5, 100.0], dtype=torch.float64)
    eager = exact.float()
    step = ulp(exact, torch.float32)
    assert passes((exact + 4 * step).float(), eager, exact)
    assert not passes((exact + 5 * step).float(), eager, exact)


def test_every_element_counts_by_its_own_size():
    eager = torch.tensor([1e-6, 1e6])
    assert not passes(torch.tensor([1.1e-6, 1e6]), eager)
    assert passes(torch.tensor([1.1e-6, 1e6]), eager, cancels=True)


def test_sums_that_cancel_are_measured_by_the_largest_error_of_eager():
    exact = torch.tensor([1.0, 0.001], dtype=torch.float64)
    eager = torch.tensor([1.0, 0.001 + 1e-5])
    assert passes(torch.tensor([1.0 + 3e-5, 0.001]), eager, exact, cancels=True)
    assert not passes(torch.tensor([1.0 + 6e-5, 0.001]), eager, exact, cancels=True)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinities_must_stand_where_eager_has_them(odd):
    eager = torch.tensor([1.0, odd])
    assert passes(eager.clone(), eager)
    assert not passes(torch.tensor([odd, odd]), eager)
    assert not passes(torch.tensor([1.0, 1.0]), eager)
    assert not passes(torch.tensor([1.0, 5.0]), eager)


def test_where_float64_contradicts_eager_float64_may_be_followed():
    eager, exact = torch.tensor([float("nan")]), torch.tensor([float("inf")], dtype=torch.float64)
    assert passes(torch.tensor([float("inf")]), eager, exact)
    assert not passes(torch.tensor([1.0]), eager, exact)


def test_dtype_and_shape_are_part_of_the_result():
    assert not passes(x.double(), x)
    assert not passes(x[None], x)


def test_integers_are_equal_or_wrong():
    assert passes(torch.tensor([3]), torch.tensor([3]))
    assert not passes(torch.tensor([4]), torch.tensor([3]))


def test_a_difference_is_shown_with_its_place():
    with pytest.raises(AssertionError, match=r"answer: 1 of 2 elements, first at \[1\]: 3.0, eager has 2.0"):
        assert_results_close(
            torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), what="answer"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_ulp_is_the_distance_to_the_next_number(dtype):
    values = torch.tensor([1.0, 1.5, 3.0, 1000.0], dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    following = (values.view(bits) + 1).view(dtype)
    assert torch.equal(ulp(values, dtype), following.double() - values.double())


def test_a_golden_file_is_compared_and_accepted(tmp_path):
    path = tmp_path / "deep" / "kernel.txt"
    with pytest.raises(AssertionError, match="no golden file"):
        assert_golden("one\n", path)
    assert_golden("one\n", path, accept=True)
    assert_golden("one\n", path)
    with pytest.raises(AssertionError, match=r"\+two"):
        assert_golden("two\n", path)


def test_samples_are_the_same_at_every_call():
    for operator in OPERATORS[::20]:
        for dtype in operator.dtypes:
            pairs = zip(operator.samples(dtype), operator.samples(dtype), strict=True)
            for a, b in pairs:
                assert all(
                    torch.equal(s, t) or s.is_floating_point()
                    for s, t in zip(a.inputs, b.inputs, strict=True)
                )
                assert [s.stride() for s in a.inputs] == [t.stride() for t in b.inputs]


def test_samples_have_every_awkward_layout():
    kinds = {s.kind for o in OPERATORS for s in o.samples(o.dtypes[0])}
    assert {
        "plain",
        "ragged",
        "empty",
        "strided",
        "transposed",
        "expanded",
        "special",
        "scalar",
        "broadcast",
    } <= kinds
    assert {d for o in OPERATORS for d in o.dtypes} == set(ALL)
