"""Scores in numbers as they are printed: mean, spread, interval and counts for every class and metric."""

from __future__ import annotations

from dataclasses import dataclass

from medvisionllama.reports.run_contents import ScoredPart
from medvisionllama.reports.statistics import Summary, summary_of

ALL_CLASSES = "mean of classes"
TABLE_METRICS = ("dice", "nsd", "hd95_mm")


@dataclass(frozen=True)
class ClassScores:
    """One line of the table: a class, its cells by metric, and its counts (None where they are not known)."""

    name: str
    cells: dict[str, Summary]
    missed: int | None = None
    false_alarms: int | None = None
    absent: int | None = None


def score_table(part: ScoredPart) -> list[ClassScores]:
    """One line a class, then, for several classes, the mean over classes within each case."""
    metrics = [metric for metric in TABLE_METRICS if metric in part.metrics]
    lines = [
        ClassScores(
            name,
            {metric: summary_of(list(part.values(metric, name).values())) for metric in metrics},
            *(part.count(kind, name) for kind in ("missed", "false_alarms", "absent")),
        )
        for name in part.classes
    ]
    if len(set(part.classes) - set(part.regions)) > 1:
        lines.append(ClassScores(ALL_CLASSES, {metric: overall(part, metric) for metric in metrics}))
    return lines


def overall(part: ScoredPart, metric: str) -> Summary:
    """The metric over all classes: each case's mean over its classes, then over cases."""
    return summary_of(list(part.values(metric).values()))
