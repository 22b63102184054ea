"""Scores in numbers as they are printed: mean, spread, interval and counts for every class and metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from medvisionllama.reports.comparison import marks
from medvisionllama.reports.run_contents import RunContents, ScoredPart
from medvisionllama.reports.statistics import Paired, Summary, holm, paired, summary_of

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


@dataclass(frozen=True)
class Difference:
    """One run less the first run on the cases they share, in one class and metric.

    Attributes:
        run: The later run's label.
        class_name: A class, or ``ALL_CLASSES``.
        metric: One of ``TABLE_METRICS``.
        paired: Tests and effect sizes; ``paired.n`` counts the cases.
        holm_p: The t-test's p adjusted for all tests of the table.
        marks: ``*`` where the raw p is below .05, a dagger where Holm's is too.
    """

    run: str
    class_name: str
    metric: str
    paired: Paired
    holm_p: float
    marks: str


def differences(runs: Sequence[RunContents], title: str) -> list[Difference]:
    """Every later run against the first, per class and over classes, in the metrics that both have.

    Empty below two runs with that part.
    """
    scored = [(run.label, part) for run in runs if (part := run.part(title))]
    if len(scored) < 2:
        return []
    _, first = scored[0]
    cells = [
        (label, name, metric, _paired(first, other, metric, name))
        for label, other in scored[1:]
        for name in [line.name for line in score_table(first)]
        for metric in TABLE_METRICS
        if metric in first.metrics and metric in other.metrics
    ]
    adjusted = holm([result.t_p for *_, result in cells])
    return [
        Difference(label, name, metric, result, holm_p, marks(result.t_p, holm_p))
        for (label, name, metric, result), holm_p in zip(cells, adjusted, strict=True)
    ]


@dataclass(frozen=True)
class SeedSpread:
    """The same experiment with several seeds: the mean of its runs' means, and the lowest and highest of them."""

    name: str
    seeds: tuple[str, ...]
    mean: float
    lowest: float
    highest: float


def seed_spread(runs: Sequence[RunContents], title: str, metric: str = "dice") -> list[SeedSpread]:
    """One line for every experiment that was run with several seeds; seeds are never pooled with cases."""
    groups: dict[tuple[str, ...], list[tuple[str, float]]] = defaultdict(list)
    for run in runs:
        if part := run.part(title):
            block = run.summary.get("block") or {}
            same = (run.summary.get(key) for key in ("model", "task", "protocol", "steps", "fraction", "fold"))
            kind = (*map(str, same), str(block.get("id")), str(block.get("init")))
            groups[kind].append((str(run.summary.get("seed")), overall(part, metric).mean))
    spread = []
    for kind, found in groups.items():
        means = [mean for _, mean in found]
        if len({seed for seed, _ in found}) > 1:
            seeds = tuple(seed for seed, _ in found)
            spread.append(SeedSpread(kind[0], seeds, fmean(means), min(means), max(means)))
    return spread


def metrics_of(parts: Sequence[ScoredPart]) -> list[str]:
    """The table's metrics that any of the parts has, in the table's order."""
    return [metric for metric in TABLE_METRICS if any(metric in part.metrics for part in parts)]


def _paired(first: ScoredPart, other: ScoredPart, metric: str, class_name: str) -> Paired:
    wanted = None if class_name == ALL_CLASSES else class_name
    one, two = first.values(metric, wanted), other.values(metric, wanted)
    shared = [case for case in one if case in two]
    return paired([one[case] for case in shared], [two[case] for case in shared])


def score_table(part: ScoredPart) -> list[ClassScores]:
    """One line a class, then, for several classes, the mean over classes within each case."""
    metrics = metrics_of([part])
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
