"""From score rows to ``summary.json``: means with their spread, and what was missed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from medvisionllama.reports.statistics import summary_of
from medvisionllama.run_folder import METRICS, ScoreRow

Outcome = Literal["both", "missed", "false_alarms", "absent"]


def outcome_of(scores: Mapping[str, float]) -> Outcome:
    """What one case's eight metrics of one class say of its masks, by the policy of this package.

    ``missed``: the reference has the class, the prediction does not, so nothing is predicted falsely: specificity is
    1, or NaN where the reference leaves no background. ``false_alarms``: the other way round, so every voxel of the
    image is a negative and accuracy equals specificity. Two masks that merely do not touch are ``both`` there.
    """
    if math.isnan(scores["dice"]):
        return "absent"
    if scores["dice"] > 0:
        return "both"
    if math.isnan(scores["specificity"]) or scores["specificity"] == 1:
        return "missed"
    return "false_alarms" if scores["accuracy"] == scores["specificity"] else "both"


def summarise(
    rows: Iterable[ScoreRow], tolerance_mm: float | None, grid: str = "native", regions: Collection[str] = ()
) -> dict[str, Any]:
    """The content of ``summary.json``: per class and metric mean, SD, bootstrap interval and n, and what was missed.

    ``overall`` summarises each case's mean over its classes; ``regions``, which overlap them, are left out of it.
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        cells.setdefault(row.class_name, {}).setdefault(row.case, {})[row.metric] = row.value
    classes = {name: _summary_of_class(cases.values()) for name, cases in cells.items()}
    return {
        "classes": classes,
        "overall": _overall([cases for name, cases in cells.items() if name not in regions]),
        "regions": [name for name in cells if name in regions],
        "cases": len({case for cases in cells.values() for case in cases}),
        "tolerance_mm": tolerance_mm,
        "grid": grid,
    }


def _summary_of_class(cases: Collection[Mapping[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {m: summary_of([scores[m] for scores in cases]).as_dict() for m in METRICS}
    outcomes = [outcome_of(scores) for scores in cases]
    return summary | {name: outcomes.count(name) for name in ("missed", "false_alarms", "absent")}


def _overall(classes: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    overall = {}
    for metric in METRICS:
        by_case: dict[str, list[float]] = {}
        for cases in classes:
            for case, scores in cases.items():
                if not math.isnan(scores[metric]):
                    by_case.setdefault(case, []).append(scores[metric])
        overall[metric] = summary_of([float(np.mean(values)) for values in by_case.values()]).as_dict()
    return overall


def summarise_lesions(rows: Iterable[ScoreRow]) -> dict[str, Any]:
    """Per class the totals over cases, and per metric mean, SD, interval and n; a case without lesions has no
    sensitivity and is left out of its mean.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault(row.class_name, {}).setdefault(row.metric, []).append(row.value)
    totals = ("lesions", "found", "false_positive_lesions")
    return {
        name: {metric: summary_of(values).as_dict() for metric, values in metrics.items()}
        | {f"total_{metric}": int(np.nansum(metrics[metric])) for metric in totals}
        for name, metrics in cells.items()
    }
