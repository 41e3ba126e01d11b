"""Intervals against the printed table of Student's t and against scipy's own paired test."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from longspan.analysis.comparison.statistics import estimate, paired

# Student's t at 0.975, by degrees of freedom, as printed tables have it.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize("freedom", T_975)
def test_the_half_width_is_t_times_the_standard_error(freedom):
    values = [float(number**2 % 17) for number in range(freedom + 1)]
    mean = sum(values) / len(values)
    error = math.sqrt(sum((x - mean) ** 2 for x in values) / freedom / len(values))
    found = estimate(values)
    assert found.mean == pytest.approx(mean)
    assert found.half == pytest.approx(T_975[freedom] * error, rel=2e-4)
    assert found.n == freedom + 1


def test_one_value_has_no_interval_and_none_has_no_mean():
    found = estimate([2.5])
    assert (found.mean, found.half, found.low, found.high, found.n) == (2.5, None, None, None, 1)
    assert not found.excludes_zero
    assert estimate([]) is None


def test_another_level_and_a_wrong_one():
    values = [1.0, 2.0, 4.0]
    assert estimate(values, 0.9).half < estimate(values, 0.99).half
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95"):
        estimate(values, 95)


numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
by_seed = st.dictionaries(st.integers(0, 9), numbers, max_size=8)


@given(by_seed, by_seed)
def test_paired_is_that_of_the_paired_t_test_over_shared_seeds(first, second):
    found, mirrored = paired(first, second), paired(second, first)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        assert found is None
        return
    assert found.n == len(shared)
    assert mirrored.mean == pytest.approx(-found.mean)
    assert mirrored.half == pytest.approx(found.half)
    if len(shared) == 1:
        assert found.half is None
        return
    differences = [first[seed] - second[seed] for seed in shared]
    if max(differences) - min(differences) < 1e-6:
        return  # scipy gives NaN where nothing varies
    test = stats.ttest_rel([first[s] for s in shared], [second[s] for s in shared])
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    if abs(test.pvalue - 0.05) > 1e-6:
        assert found.excludes_zero == (test.pvalue < 0.05)


def test_what_seeds_share_leaves_the_paired_difference():
    dense = {0: 1.0, 1: 2.0, 2: 3.0}
    sparse = {0: 1.11, 1: 2.10, 2: 3.09, 3: 99.0}
    found = paired(sparse, dense)
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(T_975[2] * 0.01 / math.sqrt(3), rel=1e-3)
    assert found.excludes_zero
    assert estimate(list(sparse.values())).half > 1


def test_differences_that_do_not_vary_have_no_star():
    # As two runs that were made the same way: their equality is no evidence.
    found = paired({0: 2.1, 1: 3.1, 2: 4.1}, {0: 2.0, 1: 3.0, 2: 4.0})
    assert found.mean == pytest.approx(0.1)
    assert not found.excludes_zero
    assert not paired({0: 1.5, 1: 1.5}, {0: 1.0, 1: 1.0}).excludes_zero
    assert paired({0: 1.5, 1: 1.501}, {0: 1.0, 1: 1.0}).excludes_zero
