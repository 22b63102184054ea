"""What a set of scores says: means with their spread, and paired comparisons on the same cases.

Intervals are percentile bootstrap intervals of the mean over cases, from a fixed seed, so that the same scores always
give the same numbers. Seeds and folds are no cases: report their spread, never pool them with cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SEED = 0
BOOTSTRAP_SAMPLES = 10_000
CONFIDENCE = 0.95


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


def summary_of(values: Sequence[float] | NDArray[np.float64]) -> Summary:
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
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.empty(BOOTSTRAP_SAMPLES)
    at_once = max(1, 1_000_000 // len(values))  # bounds the memory for thousands of cases
    for start in range(0, BOOTSTRAP_SAMPLES, at_once):
        count = min(at_once, BOOTSTRAP_SAMPLES - start)
        drawn = generator.integers(0, len(values), (count, len(values)))
        means[start : start + count] = values[drawn].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)
