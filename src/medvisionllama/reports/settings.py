"""Runs of one setting taken together: rows that differ in task, seed and fold alone are one line, box or marker.

Means are over seeds and folds first, case by case, and never over several tasks: a figure has a panel a task.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medvisionllama.reports.run_contents import RunContents, ScoredPart
from medvisionllama.reports.statistics import Paired, paired

Training = tuple[object, object]  # seed and fold, as the runs' summaries tell them


@dataclass(frozen=True)
class Setting:
    """Runs that differ in task, seed and fold alone; or a single run.

    Attributes:
        label: Its short name among the settings shown together.
        runs: In the order in which they were given.
    """

    label: str
    runs: tuple[RunContents, ...]

    @property
    def is_row(self) -> bool:
        """Whether a table made it: then its trainings are known by seed and fold."""
        return all(run.summary.get("setting") for run in self.runs)

    def on(self, task: str) -> list[RunContents]:
        """Those of one task."""
        return [run for run in self.runs if task_of(run) == task]

    def scored(self, task: str, part: str) -> dict[Training, ScoredPart]:
        """The scored parts of that title by training."""
        return {_training(run): found for run in self.on(task) if (found := run.part(part))}

    def by_case(self, task: str, part: str, metric: str, among: Collection[Training] | None = None) -> dict[str, float]:
        """Case to its mean over trainings that have a value of it (NaN where none has); ``among`` those, or all."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for training, scored in self.scored(task, part).items():
            if among is None or training in among:
                for case, value in scored.values(metric).items():
                    found[case].append(value)
        return {case: _mean(values) for case, values in found.items()}


def settings_of(runs: Sequence[RunContents]) -> list[Setting]:
    """The runs by what their summaries call their ``setting``, as rows of a table do; a run without one stands alone.

    What a setting is, the table knows: folders alone do not tell whether two runs differ in seed and fold and nothing
    else, so runs of folders are never taken together.
    """
    found: dict[str, list[RunContents]] = {}
    for run in runs:
        found.setdefault(str(run.summary.get("setting") or run.label), []).append(run)
    return [Setting(label, tuple(alike)) for label, alike in found.items()]


def tasks_of(runs: Sequence[RunContents]) -> list[str]:
    """The runs' tasks, each once; empty names where a run tells none."""
    return list(dict.fromkeys(task_of(run) for run in runs))


def task_of(run: RunContents) -> str:
    """The run's task; empty where it tells none."""
    return str(run.summary.get("task") or "")


def compared(first: Setting, second: Setting, task: str, part: str, metric: str) -> Paired:
    """``second - first`` over cases: of each case the mean of its differences over the trainings that both have.

    Trainings that differ in seed or fold are no pair where both are rows of a table; two runs of folders, which need
    not tell either, are compared as two programs would be.
    """
    shared = set(first.scored(task, part)) & set(second.scored(task, part))
    differences: defaultdict[str, list[float]] = defaultdict(list)
    among_each: list[set[Training] | None] = [{training} for training in shared]
    if not (first.is_row and second.is_row):
        among_each = [None]
    for among in among_each:
        before, after = (each.by_case(task, part, metric, among) for each in (first, second))
        for case in before.keys() & after.keys():
            differences[case].append(after[case] - before[case])
    means = [_mean(differences[case]) for case in sorted(differences)]
    return paired([math.nan if math.isnan(mean) else 0.0 for mean in means], means)


def _training(run: RunContents) -> Training:
    return run.summary.get("seed"), run.summary.get("fold")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
