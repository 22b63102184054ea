"""The numbers of a paper's table: each published one beside what was measured, and how rows compare."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from medvisionllama.experiments.effects import Effect, Training, averaged, effect_over_cases
from medvisionllama.experiments.paper_tables import PaperTable, with_share
from medvisionllama.experiments.rows import Row
from medvisionllama.experiments.table_entries import Entry, RowKey
from medvisionllama.experiments.tables import AVERAGE, Published, published
from medvisionllama.reports.comparison import LOWER_IS_BETTER, marks
from medvisionllama.reports.statistics import Summary, holm, summary_of

PART_ORDER = ("test/native", "test/model", "validation/native", "validation/model", "test", "validation")


@dataclass(frozen=True)
class Line:
    """One number: published, measured, and how it compares with the row that is the measure.

    Attributes:
        key: The row.
        task: A task, or :data:`~medvisionllama.experiments.tables.AVERAGE` of those measured.
        part: Such as ``test/native``.
        metric: Of the scores.
        published: What the paper prints; None where it prints nothing.
        by_seed: Each seed's mean over cases; of several folds over all of theirs.
        cases: Over cases of the seed-averaged values; of each case over the seeds in which it has one.
        trainings: The row's own, by seed and fold; none of another program.
        effect: This row less the one it is compared with, over the trainings and cases that both have; None for that
            row itself, for one that is the same trainings under another name, and where they share nothing.
        compared: The trainings behind it.
        holm_p: Of the t-test over cases, over the table's lines of the same part.
        measure: What the page calls the row it is compared with.
        tasks: Of an average: over which tasks it is.
        beaten: Whether only a row that is worse than its measure is marked.
    """

    key: RowKey
    task: str
    part: str
    metric: str
    published: Published | None
    by_seed: Mapping[int, float] = field(default_factory=dict)
    cases: Summary = Summary(math.nan, math.nan, math.nan, math.nan, 0)  # noqa: RUF009 (a frozen value)
    trainings: tuple[Training, ...] = ()
    effect: Effect | None = None
    compared: tuple[Training, ...] = ()
    holm_p: float = math.nan
    measure: str = ""
    tasks: tuple[str, ...] = ()
    beaten: bool = False

    @property
    def printed(self) -> str:
        """What the page calls the row."""
        return with_share(self.key.row, self.key.fraction)

    @property
    def measured(self) -> float:
        """The mean over seeds; over cases where seeds have unequal folds, whose means are then of other cases."""
        if self.cases.n and not is_whole(self.trainings):
            return self.cases.mean
        return float(np.mean([*self.by_seed.values()])) if self.by_seed else math.nan

    @property
    def seed_sd(self) -> float:
        """The spread over seeds; none where it would be that of folds."""
        if not is_whole(self.trainings):
            return math.nan
        return float(np.std([*self.by_seed.values()], ddof=1)) if len(self.by_seed) > 1 else math.nan

    @property
    def difference_interval(self) -> str:
        """How the interval of the difference was found: of one task by bootstrap over cases, of an average as t's."""
        return "" if self.effect is None else "t" if self.task == AVERAGE else "bootstrap"

    @property
    def marks(self) -> str:
        """``*`` for raw p < .05 over cases, a dagger where it survives Holm's correction."""
        if self.effect is None or (self.beaten and not self._worse(self.effect)):
            return ""
        return marks(self.effect.cases.t_p, self.holm_p)

    def _worse(self, effect: Effect) -> bool:
        return effect.difference > 0 if self.metric in LOWER_IS_BETTER else effect.difference < 0


def pairs_of(table: PaperTable, entries: Sequence[Entry]) -> list[tuple[Row, Row]]:
    """The trainings that the table's differences compare, each pair once: the measure's and the row's own."""
    found: dict[tuple[str, str], tuple[Row, Row]] = {}
    for entry in entries:
        measure = _measure(table, entry, [other for other in entries if other.task == entry.task])
        if measure is None or entry.outside is not None:
            continue
        for part, metric in product(entry.parts(), table.metrics):
            theirs, ours = measure.trainings(part), entry.trainings(part)
            for training in _differences(entry, measure, part, metric):
                pair = theirs[training], ours[training]
                found[pair[0].key, pair[1].key] = pair
    return list(found.values())


def lines_of(table: PaperTable, entries: Sequence[Entry]) -> list[Line]:
    """Every number of the table, by part, task, row and metric."""
    parts = sorted(set().union(*(e.parts() for e in entries)), key=PART_ORDER.index) if entries else []
    return [line for part in parts for line in _with_holm(_lines_of_part(table, entries, part))]


def _lines_of_part(table: PaperTable, entries: Sequence[Entry], part: str) -> list[Line]:
    lines: list[Line] = []
    for task in dict.fromkeys(entry.task for entry in entries):
        of_task = [entry for entry in entries if entry.task == task]
        lines += [_line(table, e, _measure(table, e, of_task), part, m) for m in table.metrics for e in of_task]
    averaged_rows = {cell.row for cell in published(table.version, number_of(table), task=AVERAGE)}
    keys = dict.fromkeys(entry.key for entry in entries if entry.row in averaged_rows or entry.outside is not None)
    if averaged_rows:
        lines += [_average(table, key, entries, part, metric) for key in keys for metric in table.metrics]
    return lines


def _measure(table: PaperTable, entry: Entry, others: Sequence[Entry]) -> Entry | None:
    """The entry that one is compared with: of the same share of the data.

    What share another program has seen is not known: its measure is of all the data, or of the most there is.
    """
    wanted = table.against or next(iter(table.rows), "")
    found = {other.fraction: other for other in others if other.row == wanted and other.outside is None}
    if entry.outside is not None and found:
        return found[max(found)]
    measure = found.get(entry.fraction)
    if measure is None or {row.key for row in measure.rows} == {row.key for row in entry.rows}:
        return None  # itself, or the same trainings where one language model stands in for several
    return measure


def _line(table: PaperTable, entry: Entry, measure: Entry | None, part: str, metric: str) -> Line:
    by_case, differences = entry.by_case(part, metric), _differences(entry, measure, part, metric)
    pooled: defaultdict[str, list[float]] = defaultdict(list)
    for cases in by_case.values():
        for case, value in cases.items():
            pooled[case].append(value)
    return Line(
        entry.key,
        entry.task,
        part,
        metric,
        _printed_number(table, entry.key, entry.task, metric),
        {seed: _known_mean(cases.values()) for seed, cases in by_case.items()},
        summary_of([_known_mean(values) for values in pooled.values()]),
        tuple(sorted(entry.trainings(part))),
        effect_over_cases(differences),
        tuple(sorted(differences)),
        measure=measure.printed if measure is not None else "",
        beaten=table.beaten,
    )


def _differences(entry: Entry, measure: Entry | None, part: str, metric: str) -> dict[Training, dict[str, float]]:
    """By training that both have and case that both scored; a training without any is left out.

    A row with more folds or seeds than its measure would differ from it by those too.
    """
    found: dict[Training, dict[str, float]] = {}
    for training in measure.trainings(part) if measure is not None else ():
        if measure is not None and (entry.outside is not None or training in entry.trainings(part)):
            theirs, ours = (each.of_training(training, part, metric) for each in (measure, entry))
            differences = {case: ours[case] - theirs[case] for case in theirs if case in ours}
            if not all(math.isnan(difference) for difference in differences.values()):
                found[training] = differences
    return found


def is_whole(trainings: Collection[Training]) -> bool:
    """Whether every seed has the same folds."""
    return len(set(trainings)) == len({seed for seed, _ in trainings}) * len({fold for _, fold in trainings})


def _average(table: PaperTable, key: RowKey, entries: Sequence[Entry], part: str, metric: str) -> Line:
    """The mean over tasks, of the same tasks in every row: those that each row with any result has.

    A row's trainings (seed and fold) are those it has in all of these tasks. The test is over their cases, tasks as
    strata (:func:`~medvisionllama.experiments.effects.averaged`).
    """
    by_key: defaultdict[RowKey, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        if part in entry.parts():
            by_key[entry.key][entry.task] = entry
    tasks = [t for t in dict.fromkeys(e.task for e in entries) if all(t in own for own in by_key.values())]
    empty = Line(key, AVERAGE, part, metric, _printed_number(table, key, AVERAGE, metric), beaten=table.beaten)
    if key not in by_key or not tasks:
        return empty
    own = [by_key[key][task] for task in tasks]
    everywhere = set.intersection(*(set(entry.trainings(part)) for entry in own))
    among = None if key.outside else everywhere
    means = [{seed: _known_mean(c.values()) for seed, c in e.by_case(part, metric, among).items()} for e in own]
    seeds = sorted(set.intersection(*(set(of_task) for of_task in means)))
    measures = [_measure(table, entry, [e for e in entries if e.task == entry.task]) for entry in own]
    by_task = [_differences(entry, m, part, metric) for entry, m in zip(own, measures, strict=True)]
    shared = set.intersection(*(set(of_task) for of_task in by_task))
    effects = [effect_over_cases({training: of_task[training] for training in shared}) for of_task in by_task]
    known = [effect for effect in effects if effect is not None]
    return replace(
        empty,
        by_seed={seed: float(np.mean([of_task[seed] for of_task in means])) for seed in seeds},
        trainings=tuple(sorted(everywhere)),
        effect=averaged(known) if len(known) == len(effects) else None,
        compared=tuple(sorted(shared)),
        measure=measures[0].printed if measures[0] is not None else "",
        tasks=tuple(tasks),
    )


def _with_holm(lines: Sequence[Line]) -> list[Line]:
    """The part's tests as one family; an average of a single task is that task's test and counts once."""
    tests = {_test_of(line): line.effect.cases.t_p for line in lines if line.effect}
    adjusted = dict(zip(tests, holm([*tests.values()]), strict=True))
    return [replace(line, holm_p=adjusted[_test_of(line)]) if line.effect else line for line in lines]


def _test_of(line: Line) -> tuple[RowKey, tuple[str, ...], str]:
    return (line.key, line.tasks or (line.task,), line.metric)


def number_of(table: PaperTable) -> str:
    """Under which number the paper prints the table's rows."""
    return table.rows_of or table.number


def _printed_number(table: PaperTable, key: RowKey, task: str, metric: str) -> Published | None:
    """The paper's number of a row: of all the data, for it prints none of smaller shares; none of another program's."""
    if key.fraction != 1 or (key.outside and key.row not in table.absent):
        return None
    found = published(table.version, number_of(table), row=key.row, task=task, metric=metric)
    # Where a table is about no task in particular, its numbers are of the paper's own choice of task.
    found = found or [c for c in published(table.version, number_of(table), row=key.row, metric=metric) if not c.task]
    return found[0] if found else None


def _known_mean(values: Collection[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
