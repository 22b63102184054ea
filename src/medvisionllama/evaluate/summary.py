"""From score rows to ``summary.json``: means with their spread, and what was missed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvisionllama.reports.outcomes import COUNTED, Outcome, outcome_of, tally
from medvisionllama.reports.statistics import summary_of
from medvisionllama.run_folder import METRICS, ScoreRow


def summarise(
    rows: Iterable[ScoreRow], tolerance_mm: float | None, grid: str = "native", regions: Collection[str] = ()
) -> dict[str, Any]:
    """The content of ``summary.json``: per class and metric mean, SD, bootstrap interval and n, and what was missed.

    ``overall`` summarises each case's mean over its classes, and adds up what was missed in them; ``regions``, which
    overlap them, are left out of it. ``outcomes`` names the cases that were counted.
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    counted: dict[tuple[str, str], str | None] = {}
    for row in rows:
        cells.setdefault(row.class_name, {}).setdefault(row.case, {})[row.metric] = row.value
        counted[row.class_name, row.case] = row.outcome
    outcomes = {
        name: {case: counted[name, case] or outcome_of(scores) for case, scores in cases.items()}
        for name, cases in cells.items()
    }
    own = [name for name in cells if name not in regions]
    return {
        "classes": {name: _summary_of_class(cases.values(), outcomes[name]) for name, cases in cells.items()},
        "overall": _overall([cells[name] for name in own]) | tally(o for name in own for o in outcomes[name].values()),
        "outcomes": {name: _cases_by_outcome(of_class) for name, of_class in outcomes.items()},
        "regions": [name for name in cells if name in regions],
        "cases": len({case for cases in cells.values() for case in cases}),
        "tolerance_mm": tolerance_mm,
        "grid": grid,
    }


def _summary_of_class(cases: Iterable[Mapping[str, float]], outcomes: Mapping[str, str]) -> dict[str, Any]:
    found = list(cases)
    return {m: summary_of([scores[m] for scores in found]).as_dict() for m in METRICS} | tally(outcomes.values())


def _cases_by_outcome(outcomes: Mapping[str, str]) -> dict[Outcome, list[str]]:
    return {name: [case for case, outcome in outcomes.items() if outcome == name] for name in COUNTED}


def _overall(classes: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    overall: dict[str, Any] = {}
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
