"""Runs of one setting taken together: what differs in task, seed and fold alone is one line, box or marker of a figure.

Means are over seeds and folds first, case by case, and never over cases of several tasks: a figure has a panel a task.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from medvisionllama.reports.run_contents import RunContents, ScoredPart, told_of_block, told_of_share, told_of_steps
from medvisionllama.reports.statistics import Paired, paired

Training = tuple[object, object]  # seed and fold, as the runs' summaries tell them
_Tell = Callable[[RunContents], str]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in task, seed and fold alone.

    Attributes:
        label: Its short name among the settings shown together.
        runs: In the order in which they were given.
    """

    label: str
    runs: tuple[RunContents, ...]

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
    """The runs by setting: model, block and share of the data, and steps where these leave two runs of one training.

    Runs that nothing else tells apart stay alone, under their own labels.
    """
    for tells in ((told_of_block, told_of_share), (told_of_block, told_of_share, told_of_steps)):
        found: defaultdict[tuple[str, ...], list[RunContents]] = defaultdict(list)
        for run in runs:
            found[_model(run), *(tell(run) for tell in tells)].append(run)
        if all(len({(task_of(run), _training(run)) for run in alike}) == len(alike) for alike in found.values()):
            return _labelled(found, tells)
    return [Setting(run.label, (run,)) for run in runs]


def _labelled(found: Mapping[tuple[str, ...], Sequence[RunContents]], tells: Sequence[_Tell]) -> list[Setting]:
    if all(len(alike) == 1 for alike in found.values()):  # then their own labels are as short as can be
        return [Setting(run.label, (run,)) for alike in found.values() for run in alike]
    settings = []
    for key, alike in found.items():
        of_model = [other for other in found if other[0] == key[0]]
        differing = [key[at] for at in range(1, len(tells) + 1) if len({other[at] for other in of_model}) > 1]
        settings.append(Setting(", ".join([key[0], *filter(None, differing)]), tuple(alike)))
    return settings


def tasks_of(runs: Sequence[RunContents]) -> list[str]:
    """The runs' tasks, each once; empty names where a run tells none."""
    return list(dict.fromkeys(task_of(run) for run in runs))


def task_of(run: RunContents) -> str:
    """The run's task; empty where it tells none."""
    return str(run.summary.get("task") or "")


def compared(first: Setting, second: Setting, task: str, part: str, metric: str) -> Paired:
    """``second - first`` over cases: of each case the mean of its differences over the trainings that both have.

    Where they share no seed and fold, all of their trainings are compared, as of two programs.
    """
    shared = set(first.scored(task, part)) & set(second.scored(task, part))
    differences: defaultdict[str, list[float]] = defaultdict(list)
    each_alone: list[set[Training] | None] = [{training} for training in shared]
    for among in each_alone or [None]:
        before, after = (each.by_case(task, part, metric, among) for each in (first, second))
        for case in before.keys() & after.keys():
            differences[case].append(after[case] - before[case])
    means = [_mean(differences[case]) for case in sorted(differences)]
    return paired([math.nan if math.isnan(mean) else 0.0 for mean in means], means)


def _model(run: RunContents) -> str:
    return str(run.summary.get("model") or run.path.name)


def _training(run: RunContents) -> Training:
    return run.summary.get("seed"), run.summary.get("fold")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
