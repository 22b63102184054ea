"""Effects: pairs within seeds, two spreads never pooled."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from medvisionllama.experiments.effects import effect_of, t_interval


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


def test_detected_asks_for_both_intervals() -> None:
    rng = np.random.default_rng(1)
    cases = rng.normal(0.8, 0.05, 40)

    def shifted(by: list[float]) -> dict[int, dict[str, float]]:
        return {s: by_case(list(cases + d + rng.normal(0, 0.002, 40))) for s, d in enumerate(by)}

    steady = effect_of(shifted([0] * 5), shifted([0.03] * 5))
    unsteady = effect_of(shifted([0] * 5), shifted([0.2, -0.1, 0.15, -0.12, 0.02]))
    nothing = effect_of(shifted([0] * 5), shifted([0] * 5))
    assert steady is not None
    assert unsteady is not None
    assert nothing is not None
    assert steady.detected
    assert unsteady.cases.low > 0  # over cases alone one would have been sure
    assert not unsteady.detected
    assert not nothing.detected
