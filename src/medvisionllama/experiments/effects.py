"""What one setting adds to another: differences paired by case within a seed, then averaged over seeds.

Two spreads are told apart and never pooled (SPEC 8). Over seeds: each seed's mean difference over cases is one value,
with a t-interval over them; it says what another training would give on these cases. Over cases: each case's difference
averaged over seeds is one value, with a bootstrap interval and tests; it says what other cases would give with these
trainings. A difference is called detected only where both intervals exclude zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from medvisionllama.reports.statistics import CONFIDENCE, Paired, paired

ByCase = Mapping[str, float]


@dataclass(frozen=True)
class Effect:
    """``second - first`` of one metric.

    Attributes:
        seeds: Those that both have.
        by_seed: Each seed's mean difference over its pairs of cases.
        difference: Their mean.
        seed_sd: Their sample SD; NaN for fewer than two seeds.
        seed_low: Lower end of the t-interval of their mean; NaN for fewer than two seeds.
        seed_high: Upper end.
        cases: Over cases, of seed-averaged differences: n, interval, tests, effect sizes.
    """

    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    difference: float
    seed_sd: float
    seed_low: float
    seed_high: float
    cases: Paired

    @property
    def detected(self) -> bool:
        """Whether both intervals exclude zero, on the same side."""
        lows, highs = (self.seed_low, self.cases.low), (self.seed_high, self.cases.high)
        return all(low > 0 for low in lows) or all(high < 0 for high in highs)


def effect_of(first: Mapping[int, ByCase], second: Mapping[int, ByCase]) -> Effect | None:
    """Compare two settings over the seeds that both were trained with, on the cases that all of these scored.

    Args:
        first: Seed to each case's value, NaN where it has none.
        second: The same of the other setting.

    Returns:
        None where no seed or no case is shared.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    scored = [each[seed] for each in (first, second) for seed in seeds]
    cases = [case for case in scored[0] if all(case in of_seed for of_seed in scored)] if scored else []
    if not cases:
        return None
    table_SN = np.array([[second[seed][case] - first[seed][case] for case in cases] for seed in seeds])
    by_seed = [_mean(row) for row in table_SN]
    by_case = [_mean(column) for column in table_SN.T]
    low, high = t_interval(by_seed)
    return Effect(
        seeds=seeds,
        by_seed=tuple(by_seed),
        difference=float(np.mean(by_seed)),
        seed_sd=float(np.std(by_seed, ddof=1)) if len(seeds) > 1 else math.nan,
        seed_low=low,
        seed_high=high,
        cases=paired([0.0 if not math.isnan(value) else math.nan for value in by_case], by_case),
    )


def t_interval(values: list[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean of a few values; NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(student.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    mean = float(np.mean(values))
    return mean - half, mean + half


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
