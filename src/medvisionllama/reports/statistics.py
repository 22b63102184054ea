"""What a set of scores says: means with their spread, and paired comparisons on the same cases.

Intervals are percentile bootstrap intervals of the mean over cases, from a fixed seed, so that the same scores always
give the same numbers. Seeds and folds are no cases: report their spread, never pool them with cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, ttest_1samp, wilcoxon

Values = Sequence[float] | NDArray[np.float64]

BOOTSTRAP_SEED = 0
BOOTSTRAP_SAMPLES = 10_000
CONFIDENCE = 0.95
ROUNDING = 1e-12  # a spread of differences below this share of their mean is none
_REMEMBERED_CASES = 500  # 40 MB


@dataclass(frozen=True)
class Summary:
    """Mean, sample SD (ddof 1), 95 % bootstrap interval of the mean, and the number of values (NaN left out)."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """The shape of ``summary.json``."""
        return asdict(self)


def summary_of(values: Values) -> Summary:
    """Summarise one metric over cases; NaN values are left out.

    No value: all NaN and n 0. One value: SD and interval are NaN, for one case says nothing of spread.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return Summary(math.nan, math.nan, math.nan, math.nan, 0)
    if known.size == 1:
        return Summary(float(known[0]), math.nan, math.nan, math.nan, 1)
    low, high = bootstrap_interval(known)
    return Summary(float(known.mean()), float(known.std(ddof=1)), low, high, int(known.size))


def bootstrap_interval(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron 1979), seeded; values are one per case, without NaN."""
    if len(values) <= _REMEMBERED_CASES:
        means = _remembered_weights(len(values)) @ values
    else:
        generator = np.random.default_rng(BOOTSTRAP_SEED)
        weights = (_weights(generator, 100, len(values)) for _ in range(BOOTSTRAP_SAMPLES // 100))
        means = np.concatenate([some @ values for some in weights])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


@lru_cache(maxsize=2)  # a table asks for the same number of cases again and again
def _remembered_weights(cases: int) -> NDArray[np.float64]:
    return _weights(np.random.default_rng(BOOTSTRAP_SEED), BOOTSTRAP_SAMPLES, cases)


def _weights(generator: np.random.Generator, samples: int, cases: int) -> NDArray[np.float64]:
    """``(samples,cases)``: how often every case was drawn into a sample, over their number."""
    drawn = generator.integers(0, cases, (samples, cases)) + np.arange(samples)[:, None] * cases
    weights: NDArray[np.float64] = np.bincount(drawn.ravel(), minlength=samples * cases).reshape(samples, cases) / cases
    return weights


@dataclass(frozen=True)
class Paired:
    """Two systems on the same cases: what ``second - first`` says.

    Attributes:
        n: Pairs with both values.
        left_out: Pairs with a NaN on either side.
        difference: Mean of ``second - first``.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        t_p: Two-sided paired t-test.
        wilcoxon_p: Two-sided Wilcoxon signed-rank test, ties with zero dropped (Wilcoxon's own way).
        cohens_dz: Mean difference in units of the differences' SD; infinite where there is no spread.
        rank_biserial: Matched-pairs rank-biserial correlation (Kerby 2014): the share of rank sum in favour of
            ``second`` less that against it, -1 to 1.
    """

    n: int
    left_out: int
    difference: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float
    cohens_dz: float
    rank_biserial: float

    def as_dict(self) -> dict[str, float | int]:
        """By name, for JSON."""
        return asdict(self)


def paired(first: Values, second: Values) -> Paired:
    """Compare two sequences over the same cases in the same order.

    Fewer than two pairs: tests, interval and effect sizes are NaN. No pair differs: both p are 1 and effects 0.

    Raises:
        ValueError: The lengths differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs need two sequences of one length, not {a.shape} and {b.shape}")
    differences = (b - a)[~np.isnan(b - a)]
    n, left_out = len(differences), len(a) - len(differences)
    mean = float(differences.mean()) if n else math.nan
    if n < 2:
        return Paired(n, left_out, mean, *[math.nan] * 6)
    low, high = bootstrap_interval(differences)
    if not differences.any():
        return Paired(n, left_out, mean, low, high, 1.0, 1.0, 0.0, 0.0)
    sd = float(differences.std(ddof=1))
    if sd <= ROUNDING * abs(mean):  # the same difference everywhere, but for the last bits of floats
        sd = 0.0
    return Paired(
        n=n,
        left_out=left_out,
        difference=mean,
        low=low,
        high=high,
        t_p=float(ttest_1samp(differences, 0).pvalue) if sd else 0.0,
        wilcoxon_p=float(wilcoxon(differences, zero_method="wilcox").pvalue),
        cohens_dz=mean / sd if sd else math.copysign(math.inf, mean),
        rank_biserial=_rank_biserial(differences),
    )


def _rank_biserial(differences: NDArray[np.float64]) -> float:
    known = differences[differences != 0]
    ranks = rankdata(np.abs(known))
    return float((ranks * np.sign(known)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number by Holm's step-down method (1979); NaN stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), math.nan)
    order = [i for i in np.argsort(p) if not math.isnan(p[i])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p[index])))
        adjusted[index] = largest
    return [float(value) for value in adjusted]
