"""What one setting adds to another: differences paired by case within a seed, and how sure their mean is.

Seeds and cases are two crossed samples: every training is scored on the same cases. The mean difference is uncertain in
both, and one interval holds both (:func:`crossed_mean`); it alone decides. Beside it each spread stands by itself, and
values are never pooled (SPEC 8): over seeds, what another training would give on these cases; over cases, what other
cases would give with these trainings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from medvisionllama.reports.statistics import CONFIDENCE, Paired, paired

ByCase = Mapping[str, float]
Training = tuple[int, int]  # seed and fold


@dataclass(frozen=True)
class Mean:
    """A mean with its t-interval and the two-sided test of its being zero; all but the mean NaN where unknown."""

    value: float
    standard_error: float = math.nan
    degrees: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Effect:
    """``second - first`` of one metric.

    Attributes:
        seeds: Those that both have.
        by_seed: Each seed's mean difference over its pairs of cases.
        by_case: Each case's difference averaged over seeds; cases without one are left out.
        seed_sd: Sample SD of ``by_seed``; NaN for fewer than two seeds.
        seed_low: Lower end of the t-interval of their mean; NaN for fewer than two seeds.
        seed_high: Upper end.
        cases: Over ``by_case``: n, bootstrap interval, tests, effect sizes.
        both: The mean with both spreads in one interval; without interval for one seed or one case.
    """

    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    by_case: tuple[float, ...]
    seed_sd: float
    seed_low: float
    seed_high: float
    cases: Paired
    both: Mean

    @property
    def difference(self) -> float:
        """The mean over seeds and cases."""
        return self.both.value


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
    by_seed, by_case = (_means(table_SN, axis).tolist() for axis in (1, 0))
    return _effect(seeds, by_seed, by_case, crossed_mean(table_SN))


def effect_over_cases(differences: Mapping[Training, ByCase]) -> Effect | None:
    """What pairs of trainings say where seeds may have unequal folds: every pair of a training and a case counts once.

    Of each case the mean over the trainings that scored it in both settings, then the mean over cases; of a seed the
    same over its own folds. There is no interval over both spreads.

    Args:
        differences: Training to each case's ``second - first``, NaN where one has no value.

    Returns:
        None where no case has a difference.
    """
    known = {training: d for training, d in differences.items() if any(not math.isnan(value) for value in d.values())}
    if not known:
        return None
    seeds = tuple(sorted({seed for seed, _ in known}))
    by_case = _by_case([*known.values()])
    by_seed = [_by_case([d for (of, _), d in known.items() if of == seed]) for seed in seeds]
    means = [float(np.nanmean(values)) for values in by_seed]
    return _effect(seeds, means, by_case, Mean(float(np.nanmean(by_case))))


def _by_case(differences: Sequence[ByCase]) -> list[float]:
    """Each case's mean over those that know it."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for each in differences:
        for case, value in each.items():
            found[case] += [value] * (not math.isnan(value))
    return [float(np.mean(values)) if values else math.nan for values in found.values()]


def crossed_mean(table_SN: NDArray[np.float64]) -> Mean:
    """The mean of values over two crossed samples, with an interval that speaks of other seeds and other cases alike.

    With ``S`` seeds and ``N`` cases drawn independently, a value is mean + seed + case + residual (crossed random
    effects: Searle, Casella and McCulloch 1992, chapter 4; Baayen, Davidson and Bates 2008), and the variance of the
    mean is that of seeds by ``S``, of cases by ``N``, and of residuals by ``SN``. The sample variance of the seeds'
    means by ``S`` holds the first and the last, that of the cases' means by ``N`` the second and the last: their sum
    counts the residual twice. The square of this t is Clark's min F' (1973). Its degrees of freedom are those of the
    smaller sample, which never errs more often than it says (as Hsu 1938 for two variances). Satterthwaite's (1946),
    estimated from the two terms, are more on average but unsure with a few seeds: at the small levels that a correction
    for many comparisons asks for, that test errs about twice as often as it says, and in the worst of the simulated
    settings 9 % of families of ten true zeros hold a detection, not 5; with the smaller sample's 1 % do there, and no
    more than 5 % in any (tests/experiments/test_effects.py).

    Args:
        table_SN: ``(seeds,cases)``; NaN where there is no value.

    Returns:
        The mean of the seeds' means; without interval for fewer than two seeds or two cases.
    """
    by_seed, by_case = _means(table_SN, 1), _means(table_SN, 0)
    by_case = by_case[~np.isnan(by_case)]
    mean, fewest = float(by_seed.mean()), min(len(by_seed), len(by_case))
    if fewest < 2 or math.isnan(mean):
        return Mean(mean)
    return _student(mean, _variance_of_mean(by_seed) + _variance_of_mean(by_case), float(fewest - 1))


def averaged(effects: Sequence[Effect]) -> Effect:
    """The mean over tasks of effects that share their seeds: what other cases of these same tasks would give.

    Every task counts alike, however many cases it has. Over cases the tasks are strata: the variance of the mean is the
    sum of the tasks' own by the square of their number, with Satterthwaite's (1946) degrees of freedom. Of one task it
    is that task's paired t-test. Ranks are not averaged over tasks: Wilcoxon's test and the effect sizes are NaN, and
    so is the interval over both spreads.

    Raises:
        ValueError: Seeds differ, or there is no effect.
    """
    if not effects or len({effect.seeds for effect in effects}) > 1:
        raise ValueError("an average is over effects of equal seeds")
    by_seed = [float(np.mean(values)) for values in zip(*(effect.by_seed for effect in effects), strict=True)]
    mean = float(np.mean([effect.difference for effect in effects]))
    over_cases = Mean(mean)
    if all(len(effect.by_case) > 1 for effect in effects):
        terms = [(_variance_of_mean(e.by_case) / len(effects) ** 2, len(e.by_case) - 1) for e in effects]
        over_cases = _student(mean, sum(variance for variance, _ in terms), _satterthwaite(*terms))
    cases = Paired(
        n=sum(effect.cases.n for effect in effects),
        left_out=sum(effect.cases.left_out for effect in effects),
        difference=mean,
        low=over_cases.low,
        high=over_cases.high,
        t_p=over_cases.p,
        wilcoxon_p=math.nan,
        cohens_dz=math.nan,
        rank_biserial=math.nan,
    )
    low, high = t_interval(by_seed)
    by_case = tuple(value for effect in effects for value in effect.by_case)
    return Effect(effects[0].seeds, tuple(by_seed), by_case, _sd(by_seed), low, high, cases, Mean(mean))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean of a few values; NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(student.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    mean = float(np.mean(values))
    return mean - half, mean + half


def _effect(seeds: tuple[int, ...], by_seed: list[float], by_case: list[float], both: Mean) -> Effect:
    low, high = t_interval(by_seed)
    known = tuple(value for value in by_case if not math.isnan(value))
    over_cases = paired([math.nan if math.isnan(value) else 0.0 for value in by_case], by_case)
    return Effect(seeds, tuple(by_seed), known, _sd(by_seed), low, high, over_cases, both)


def _student(mean: float, variance: float, degrees: float, confidence: float = CONFIDENCE) -> Mean:
    error = math.sqrt(variance)
    if error == 0:  # the same everywhere, as where both settings are one
        return Mean(mean, error, degrees, mean, mean, 1.0 if mean == 0 else 0.0)
    half = float(student.ppf((1 + confidence) / 2, degrees)) * error
    return Mean(mean, error, degrees, mean - half, mean + half, float(2 * student.sf(abs(mean) / error, degrees)))


def _satterthwaite(*terms: tuple[float, int]) -> float:
    """Degrees of freedom of a sum of variances, each with its own; the fewest where all variances are zero."""
    total = sum(variance for variance, _ in terms)
    if total == 0:
        return float(min(degrees for _, degrees in terms))
    return 1 / sum((variance / total) ** 2 / degrees for variance, degrees in terms)


def _variance_of_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.var(values, ddof=1)) / len(values)


def _sd(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _means(table: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Means along an axis of what is known; NaN where nothing is."""
    known = ~np.isnan(table)
    count = known.sum(axis=axis)
    total = np.where(known, table, 0.0).sum(axis=axis)
    means: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return means
