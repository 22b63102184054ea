"""Statistics against scipy and worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medvisionllama.reports.statistics import bootstrap_interval, holm, paired, summary_of

# Student's sleep data (1908), as in R's `sleep`: extra hours under two drugs, ten patients.
# R prints p-value = 0.002833 for t.test(extra ~ group, paired = TRUE).
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_sleep():
    result = paired(SLEEP_1, SLEEP_2)
    assert result.n == 10
    assert result.difference == pytest.approx(1.58)
    assert result.t_p == pytest.approx(0.002833, abs=5e-7)
    assert result.cohens_dz == pytest.approx(1.58 / np.std(np.subtract(SLEEP_2, SLEEP_1), ddof=1))
    assert result.rank_biserial == 1  # nobody slept longer under the first
    assert result.low < 1.58 < result.high


@given(st.integers(0, 2**32 - 1), st.integers(5, 40))
def test_tests_are_scipys(seed, n):
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, n))
    result = paired(a, b)
    assert result.t_p == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert result.wilcoxon_p == pytest.approx(stats.wilcoxon(b, a).pvalue)


def test_changing_sides_changes_signs_alone():
    there, back = paired(SLEEP_1, SLEEP_2), paired(SLEEP_2, SLEEP_1)
    assert (back.t_p, back.wilcoxon_p) == pytest.approx((there.t_p, there.wilcoxon_p))
    assert (back.difference, back.cohens_dz, back.rank_biserial) == pytest.approx(
        (-there.difference, -there.cohens_dz, -there.rank_biserial)
    )


def test_rank_biserial_by_hand():
    # Differences 1, 2, -3, 4: ranks in favour 1 + 2 + 4, against 3, of 10.
    assert paired([0, 0, 0, 0], [1, 2, -3, 4]).rank_biserial == pytest.approx(0.4)


def test_pairs_with_nan_are_left_out_and_counted():
    result = paired([1.0, math.nan, 2.0, 3.0], [1.5, 9.0, 2.6, math.nan])
    assert (result.n, result.left_out) == (2, 2)
    assert result.difference == pytest.approx(0.55)


def test_too_little_to_test():
    one = paired([0.5], [0.7])
    assert one.n == 1
    assert one.difference == pytest.approx(0.2)
    assert math.isnan(one.t_p)
    assert math.isnan(one.wilcoxon_p)
    nothing = paired([math.nan], [0.7])
    assert nothing.n == 0
    assert math.isnan(nothing.difference)


def test_no_difference_is_no_finding():
    same = paired([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.difference, same.t_p, same.wilcoxon_p, same.cohens_dz, same.rank_biserial) == (0, 1, 1, 0, 0)


def test_a_constant_difference_has_no_spread():
    result = paired([0.0, 1.0, 2.0], [0.5, 1.5, 2.5])
    assert result.t_p == 0
    assert result.cohens_dz == math.inf


def test_a_difference_that_is_constant_but_for_the_last_bits_has_no_spread():
    first = np.array([0.1, 0.2, 0.3, 0.7])
    result = paired(first, first + 0.1)
    assert np.diff((first + 0.1) - first).any()  # floats differ, though nothing does
    assert (result.t_p, result.cohens_dz) == (0, math.inf)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        paired([1.0], [1.0, 2.0])


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, made to rise: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_does_not_count_what_was_not_tested():
    assert holm([math.nan, 0.01, 0.02]) == pytest.approx([math.nan, 0.02, 0.02], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_helps_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    by_p = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


def test_summary():
    summary = summary_of([0.5, math.nan, 0.7, 0.9])
    assert (summary.mean, summary.sd, summary.n) == pytest.approx((0.7, 0.2, 3))
    assert summary.low < 0.7 < summary.high
    assert summary.as_dict().keys() == {"mean", "sd", "low", "high", "n"}


def test_summary_of_one_and_of_none():
    one = summary_of([0.4])
    assert (one.mean, one.n) == (0.4, 1)
    assert math.isnan(one.sd)
    assert math.isnan(one.low)
    assert summary_of([math.nan]).n == 0
    assert math.isnan(summary_of([]).mean)


@pytest.mark.parametrize("cases", [60, 600])
def test_the_interval_is_scipys_and_stays(cases):
    values = np.random.default_rng(3).gamma(2.0, size=cases)
    low, high = bootstrap_interval(values)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert bootstrap_interval(values) == (low, high)


def test_the_interval_holds_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(size=30))
        held += low <= 0 <= high
    assert 0.88 <= held / 200 <= 0.99
