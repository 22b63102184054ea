"""Scores in numbers as they are printed: mean, spread, interval and counts for every class and metric."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from medvisionllama.reports.run_contents import ScoredPart

ALL_CLASSES = "mean of classes"


@dataclass(frozen=True)
class Cell:
    """One mean over cases.

    Attributes:
        mean: NaN where no case has a value.
        sd: Sample standard deviation over cases; NaN below two cases.
        interval: 95 % interval of the mean, or None where it is not known.
        n: Cases with a value.
    """

    mean: float
    sd: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class ClassScores:
    """One line of the table: a class, its cells by metric, and its counts (None where they are not known)."""

    name: str
    cells: dict[str, Cell]
    missed: int | None = None
    false_alarms: int | None = None
    absent: int | None = None


def score_table(part: ScoredPart) -> list[ClassScores]:
    """One line a class, then, for several classes, the mean over classes within each case."""
    lines = [
        ClassScores(
            name,
            {m: _cell(part.values(m, name), part.interval(m, name)) for m in part.metrics},
            *(part.count(kind, name) for kind in ("missed", "false_alarms", "absent")),
        )
        for name in part.classes
    ]
    if len(lines) > 1:
        lines.append(ClassScores(ALL_CLASSES, {m: _cell(part.values(m), None) for m in part.metrics}))
    return lines


def overall(part: ScoredPart, metric: str) -> Cell:
    """The metric over all classes: each case's mean over its classes, then over cases."""
    lines = score_table(part)
    return lines[-1].cells.get(metric, Cell(math.nan, math.nan, None, 0))


def _cell(by_case: dict[str, float], interval: tuple[float, float] | None) -> Cell:
    known = [value for value in by_case.values() if not math.isnan(value)]
    mean = statistics.fmean(known) if known else math.nan
    sd = statistics.stdev(known) if len(known) > 1 else math.nan
    return Cell(mean, sd, interval, len(known))
