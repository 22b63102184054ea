"""Paired comparison of evaluated folders: the same cases, scored for several systems.

Every folder is compared with the first, per class and metric and over all classes. The pairing unit is the case: means,
differences and tests are over the cases in which both systems have a value. Where one is rightly empty and the other
raises a false alarm there is no pair; such cases are counted and named beside the table. A mark ``*`` says raw p < .05,
as the papers print it; a dagger, that it survives Holm's correction over the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medvisionllama.reports.evaluated import Scores
from medvisionllama.reports.statistics import Paired, Summary, holm, paired, summary_of
from medvisionllama.run_folder import METRICS

SIGNIFICANCE = 0.05
LOWER_IS_BETTER = ("hd95_mm",)
Test = Literal["t", "wilcoxon"]


@dataclass(frozen=True)
class Comparison:
    """One cell: a system against the first, in one class and metric.

    Both summaries are over the pairs that are tested, so that what is printed is what is compared. The counts are over
    all cases.
    """

    first: str
    second: str
    class_name: str
    metric: str
    first_summary: Summary
    second_summary: Summary
    first_counts: dict[str, int]
    second_counts: dict[str, int]
    paired: Paired
    holm_p: float
    marks: str

    def better(self) -> str:
        """The name of the system with the better mean, empty where they are equal or unknown."""
        if math.isnan(self.paired.difference) or self.paired.difference == 0:
            return ""
        gains = (self.paired.difference > 0) != (self.metric in LOWER_IS_BETTER)
        return self.second if gains else self.first

    def as_dict(self) -> dict[str, Any]:
        """As ``comparison.json`` holds it."""
        return {
            "first": self.first,
            "second": self.second,
            "class": self.class_name,
            "metric": self.metric,
            "first_summary": self.first_summary.as_dict(),
            "second_summary": self.second_summary.as_dict(),
            "first_counts": self.first_counts,
            "second_counts": self.second_counts,
            **self.paired.as_dict(),
            "holm_p": self.holm_p,
            "better": self.better(),
            "marks": self.marks,
        }


def compare(scores: Sequence[Scores], test: Test = "t") -> list[Comparison]:
    """Every later system against the first, per class and metric, then over all classes where there are several.

    Cases and classes stand in the same order in all.
    """
    first = scores[0]
    found = []
    for other in scores[1:]:
        for class_name in first.compared():
            counts = (first.counts(class_name), other.counts(class_name))
            for metric in METRICS:
                one, two = _pair(first, other, class_name, metric)
                summaries = (summary_of(one), summary_of(two))
                found.append((other.name, class_name, metric, *summaries, *counts, paired(one, two)))
    p_values = [_p(cell[-1], test) for cell in found]
    return [
        Comparison(first.name, *cell, adjusted, marks(p, adjusted))
        for cell, p, adjusted in zip(found, p_values, holm(p_values), strict=True)
    ]


def _p(result: Paired, test: Test) -> float:
    return result.t_p if test == "t" else result.wilcoxon_p


def marks(p: float, holm_p: float) -> str:
    """``*`` where raw p < .05, a dagger after it where Holm's p is too."""
    return ("*" if p < SIGNIFICANCE else "") + ("†" if holm_p < SIGNIFICANCE else "")


def _pair(first: Scores, other: Scores, class_name: str, metric: str) -> tuple[NDArray[np.float64], ...]:
    """``(cases,)`` of both, NaN in both where either knows nothing; overall over the classes that both know in a case,
    so that means are of the same things.
    """
    places = first.places(class_name)
    one, two = first.values[metric][places], other.values[metric][places]
    unknown = np.isnan(one) | np.isnan(two)
    return tuple(_mean_of_known(np.where(unknown, math.nan, values)) for values in (one, two))


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(cases,)`` from ``(classes,cases)``: the mean without NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def unpaired_cases(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """By class and system the cases in which not both have a value, and why."""
    first, found = scores[0], []
    for other in scores[1:]:
        for place, class_name in enumerate(first.classes):
            absent = [each.outcomes[place] == "absent" for each in (first, other)]
            why = {
                "only_first_absent": absent[0] & ~absent[1],
                "only_second_absent": absent[1] & ~absent[0],
                "both_absent": absent[0] & absent[1],
            }
            if any(where.any() for where in why.values()):
                cases = {name: [first.cases[n] for n in np.flatnonzero(where)] for name, where in why.items()}
                found.append({"class": class_name, "first": first.name, "second": other.name, **cases})
    return found
