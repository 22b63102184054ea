"""Effects: pairs within seeds, values never pooled, and one test that holds both spreads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import f as fisher
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from medvisionllama.experiments.effects import averaged, crossed_mean, effect_of, t_interval
from medvisionllama.reports.statistics import holm


def by_case(values: list[float]) -> dict[str, float]:
    return {f"case_{n}": value for n, value in enumerate(values)}


def test_a_difference_known_by_hand() -> None:
    first = {0: by_case([0.5, 0.6]), 1: by_case([0.4, 0.8])}
    second = {0: by_case([0.6, 0.7]), 1: by_case([0.4, 1.0])}
    effect = effect_of(first, second)
    assert effect is not None
    assert effect.by_seed == pytest.approx((0.1, 0.1))
    assert effect.difference == pytest.approx(0.1)
    assert effect.seed_sd == pytest.approx(0, abs=1e-12)
    assert effect.cases.n == 2  # cases, not cases times seeds
    assert effect.cases.difference == pytest.approx(0.1)  # of 0.05 and 0.15


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.01, -0.02, 0.03, 0.005, 0.0]
    low, high = t_interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert all(math.isnan(end) for end in t_interval([0.3]))


def test_only_shared_seeds_and_cases_are_compared() -> None:
    first = {0: by_case([0.5, 0.5, 0.9]), 1: by_case([0.1, 0.1, 0.1])}
    second = {0: by_case([0.6, 0.6]), 2: by_case([0.9, 0.9])}
    effect = effect_of(first, second)
    assert effect is not None
    assert (effect.seeds, effect.cases.n) == ((0,), 2)
    assert effect.difference == pytest.approx(0.1)
    assert effect_of(first, {5: by_case([0.1])}) is None
    assert effect_of(first, {0: {"another": 0.5}}) is None


def test_a_case_without_value_is_left_out() -> None:
    effect = effect_of({0: by_case([0.5, math.nan, 0.7])}, {0: by_case([0.6, 0.9, 0.8])})
    assert effect is not None
    assert (effect.cases.n, effect.cases.left_out) == (2, 1)
    assert effect.difference == pytest.approx(0.1)


def test_more_seeds_do_not_make_more_cases() -> None:
    rng = np.random.default_rng(0)
    cases = rng.normal(0.8, 0.05, 12)
    noise = rng.normal(0, 0.02, 12)
    few = effect_of({0: by_case(list(cases))}, {0: by_case(list(cases + noise))})
    copies = effect_of({s: by_case(list(cases)) for s in range(9)}, {s: by_case(list(cases + noise)) for s in range(9)})
    assert few is not None
    assert copies is not None
    # Nine copies of one training say nothing new of cases: pooling would have shrunk this p.
    assert copies.cases.t_p == pytest.approx(few.cases.t_p)


# --- one test over both spreads


def crossed(rng: np.random.Generator, true: float = 0.0, seeds: int = 5, residual: float = 0.0) -> NDArray[np.float64]:
    """Differences of five trainings on 43 cases: SD .004 over seeds, .01 over cases."""
    of_seeds, of_cases = rng.normal(0, 0.004, (seeds, 1)), rng.normal(0, 0.01, (1, 43))
    return true + of_seeds + of_cases + residual * rng.standard_normal((seeds, 43))


def drawn(rng: np.random.Generator, of_seeds: float, of_cases: float, residual: float) -> NDArray[np.float64]:
    """Differences of five trainings on 43 cases with these SDs, about zero."""
    both = rng.normal(0, of_seeds, (5, 1)) + rng.normal(0, of_cases, (1, 43))
    return both + residual * rng.standard_normal((5, 43))


def test_the_test_is_clarks_min_f_with_the_smaller_samples_degrees() -> None:
    table_SN = crossed(np.random.default_rng(3), true=0.004, residual=0.01)
    f1, f2 = (ttest_1samp(table_SN.mean(axis), 0).statistic ** 2 for axis in (1, 0))
    found = crossed_mean(table_SN)
    assert found.p == pytest.approx(fisher.sf(f1 * f2 / (f1 + f2), 1, 4))
    assert found.degrees == 4
    assert (found.low + found.high) / 2 == pytest.approx(found.value)


def test_one_seed_or_one_case_decides_nothing() -> None:
    for table_SN in (np.full((1, 43), 0.1), np.full((5, 1), 0.1)):
        mean = crossed_mean(table_SN)
        assert mean.value == pytest.approx(0.1)
        assert math.isnan(mean.p)
        assert math.isnan(mean.low)
    assert crossed_mean(np.zeros((5, 43))).p == 1


@pytest.mark.parametrize(("seeds", "residual"), [(5, 0.0), (5, 0.02), (3, 0.0), (2, 0.0)])
def test_without_an_effect_one_in_twenty_is_detected_at_most(seeds: int, residual: float) -> None:
    rng, n = np.random.default_rng(11), 1000
    rate = np.mean([crossed_mean(crossed(rng, 0.0, seeds, residual)).p < 0.05 for _ in range(n)])
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)


# SDs over seeds, cases and what neither explains, as a study's may be, and one where seeds spread most by far; the last
# is hardest on estimated degrees.
SPREADS = [(0.004, 0.01, 0.0), (0.003, 0.004, 0.01), (0.02, 0.005, 0.01), (0.007, 0.005, 0.01)]


@pytest.mark.parametrize("spreads", SPREADS)
def test_without_an_effect_few_families_hold_a_detection(spreads: tuple[float, float, float]) -> None:
    rng, n = np.random.default_rng(12), 600
    families = [[crossed_mean(drawn(rng, *spreads)).p for _ in range(10)] for _ in range(n)]
    rate = np.mean([min(holm(p)) < 0.05 for p in families])
    uncorrected = np.mean([min(p) < 0.05 for p in families])
    assert rate <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / n)
    assert uncorrected > 0.1  # what this simulation says of a decision without the correction


def test_with_estimated_degrees_of_freedom_too_many_families_would() -> None:
    """What the smaller sample's degrees replaced. The simulation can tell a rule that errs too often."""
    rng, n = np.random.default_rng(15), 4000
    of_seeds, of_cases, residual = SPREADS[-1]
    tables = rng.normal(0, of_seeds, (n, 10, 5, 1)) + rng.normal(0, of_cases, (n, 10, 1, 43))
    tables = tables + residual * rng.standard_normal((n, 10, 5, 43))
    terms = [tables.mean(-1).var(-1, ddof=1) / 5, tables.mean(-2).var(-1, ddof=1) / 43]
    variance = terms[0] + terms[1]
    satterthwaite = variance**2 / (terms[0] ** 2 / 4 + terms[1] ** 2 / 42)
    t = np.abs(tables.mean((-1, -2))) / np.sqrt(variance)
    # Holm's first step decides whether a family holds a detection at all.
    rates = [np.mean((2 * student.sf(t, degrees)).min(1) < 0.05 / 10) for degrees in (satterthwaite, 4)]
    for rate, said in zip(rates, (0.09, 0.01), strict=True):  # as the page says
        assert rate == pytest.approx(said, abs=4 * math.sqrt(said * (1 - said) / n))
    assert crossed_mean(tables[0, 0]).p == pytest.approx(2 * student.sf(t[0, 0], 4))


def test_two_intervals_apart_would_be_fooled() -> None:
    """What crossed_mean replaced: asking each spread alone. The simulation can tell a rule that errs too often."""
    rng, n = np.random.default_rng(13), 4000
    tables = (crossed(rng) for _ in range(n))
    both = [[t_interval(list(table_SN.mean(axis))) for axis in (0, 1)] for table_SN in tables]
    fooled = [len({np.sign(end) for interval in intervals for end in interval}) == 1 for intervals in both]
    assert np.mean(fooled) > 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)


def test_an_effect_is_mostly_detected() -> None:
    rng = np.random.default_rng(14)
    found = [crossed_mean(crossed(rng, true=0.01)) for _ in range(200)]
    assert np.mean([mean.p < 0.05 for mean in found]) > 0.8
    # Also as the one true effect of a family of ten, after the correction, where it is larger: that is the price.
    held = [holm([crossed_mean(crossed(rng, 0.02)).p, *rng.uniform(size=9)])[0] < 0.05 for _ in range(200)]
    assert np.mean(held) > 0.8


# --- averages over tasks


def test_an_average_of_one_task_is_its_own_paired_test() -> None:
    rng = np.random.default_rng(4)
    effect = effect_of(
        {s: by_case(list(rng.normal(0.7, 0.02, 9))) for s in (0, 1)},
        {s: by_case(list(rng.normal(0.8, 0.02, 9))) for s in (0, 1)},
    )
    assert effect is not None
    same = averaged([effect])
    assert same.by_seed == pytest.approx(effect.by_seed)
    assert (same.difference, same.cases.t_p) == pytest.approx((effect.difference, effect.cases.t_p))


def test_tasks_count_alike_in_an_average_whatever_their_cases() -> None:
    rng = np.random.default_rng(5)
    small, large = (
        effect_of({0: by_case([0.5] * n)}, {0: by_case(list(0.5 + gain + rng.normal(0, 0.001, n)))})
        for n, gain in ((4, 0.1), (40, 0.0))
    )
    assert small is not None
    assert large is not None
    both = averaged([small, large])
    assert both.difference == pytest.approx(0.05, abs=0.001)  # pooled over 44 cases it would be 0.009
    assert both.cases.n == 44
    assert both.cases.t_p < 0.001
    assert both.cases.low < 0.05 < both.cases.high
    other = effect_of({1: by_case([0.1, 0.2])}, {1: by_case([0.2, 0.2])})
    assert other is not None
    with pytest.raises(ValueError, match="equal seeds"):
        averaged([small, other])
