"""The numbers of a paper's table: each published one beside what was measured, and how rows compare."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medvisionllama.experiments.effects import Effect, averaged, effect_of
from medvisionllama.experiments.paper_tables import Labelled, PaperTable, with_share
from medvisionllama.experiments.rows import PartScores, Row
from medvisionllama.experiments.tables import AVERAGE, Published, published
from medvisionllama.reports.comparison import LOWER_IS_BETTER, marks
from medvisionllama.reports.statistics import Summary, holm, summary_of

Training = tuple[int, int]  # seed and fold
PART_ORDER = ("test/native", "test/model", "validation/native", "validation/model", "test", "validation")


@dataclass(frozen=True)
class RowKey:
    """What makes a row the same over tasks: its name, its share of the data, and whose trainings they are."""

    row: str
    fraction: float
    outside: bool


@dataclass(frozen=True)
class Entry:
    """One row of a table on one task, as far as it was measured.

    Attributes:
        row: The row's name, as the paper prints it, or another program's.
        task: The task.
        rows: What was measured: seeds and folds.
        outside: The parts of a folder of another program's predictions, in place of rows.
        fraction: Share of the training patients; of another program's nothing is known.
    """

    row: str
    task: str
    rows: tuple[Row, ...] = ()
    outside: Mapping[str, PartScores] | None = None
    fraction: float = 1.0

    @property
    def key(self) -> RowKey:
        """Which row of the table it is, whatever it is called."""
        return RowKey(self.row, self.fraction, self.outside is not None)

    @property
    def printed(self) -> str:
        """What the page calls it."""
        return with_share(self.row, self.fraction)

    def parts(self) -> set[str]:
        """Which parts were scored."""
        return set(self.outside or ()).union(*(row.parts for row in self.rows))

    def trainings(self, part: str) -> dict[Training, Row]:
        """What scored that part, by seed and fold; nothing of another program."""
        return {(row.seed, row.fold): row for row in self.rows if part in row.parts}

    def by_case(self, part: str, metric: str, among: Collection[Training] | None = None) -> dict[int, dict[str, float]]:
        """Seed to each case's value; where several folds scored a case, the mean of theirs.

        Another program's predictions are taken as one training, whatever the seeds and folds they are compared with.

        Args:
            part: Such as ``test/native``.
            metric: Of the scores.
            among: Seeds and folds of the trainings that count; None for all.
        """
        if self.outside is not None:
            seeds = {0} if among is None else {seed for seed, _ in among}
            return {seed: self.outside[part].by_case(metric) for seed in seeds if part in self.outside}
        found: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for training, row in self.trainings(part).items():
            if among is None or training in among:
                for case, value in row.parts[part].by_case(metric).items():
                    found[row.seed][case].append(value)
        return {seed: {case: float(np.mean(v)) for case, v in cases.items()} for seed, cases in found.items()}


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
        folds: Those whose trainings the row has.
        effect: This row less the one it is compared with, over the trainings (seed and fold) and cases that both have;
            None for that row itself, and where they share nothing.
        shared_folds: Those of the trainings compared.
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
    folds: tuple[int, ...] = ()
    effect: Effect | None = None
    shared_folds: tuple[int, ...] = ()
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
        """The mean over seeds."""
        return float(np.mean([*self.by_seed.values()])) if self.by_seed else math.nan

    @property
    def seed_sd(self) -> float:
        """The spread over seeds."""
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


def entries_of(cells: Sequence[Labelled], rows: Mapping[str, Row]) -> list[Entry]:
    """The measured cells by row, share of the data and task, in the table's order."""
    found: defaultdict[tuple[str, float, str], dict[str, Row]] = defaultdict(dict)
    for labelled in cells:
        of_place = found[labelled.row, labelled.cell.fraction, labelled.cell.task]
        if (key := labelled.cell.key) in rows:
            of_place[key] = rows[key]
    return [Entry(row, task, tuple(m.values()), fraction=fraction) for (row, fraction, task), m in found.items()]


def pairs_of(table: PaperTable, entries: Sequence[Entry]) -> list[tuple[Row, Row]]:
    """The trainings that the table's differences compare, each pair once: the measure's and the row's own."""
    found: dict[tuple[str, str], tuple[Row, Row]] = {}
    for entry in entries:
        measure = _measure(table, entry, [other for other in entries if other.task == entry.task])
        if measure is None or entry.outside is not None:
            continue
        for part in entry.parts() & measure.parts():
            theirs, ours = measure.trainings(part), entry.trainings(part)
            for training in sorted(_shared(entry, measure, part)):
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
    return None if measure is entry else measure


def _line(table: PaperTable, entry: Entry, measure: Entry | None, part: str, metric: str) -> Line:
    by_case, shared = entry.by_case(part, metric), _shared(entry, measure, part)
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
        _folds(entry.trainings(part)),
        _effect(entry, measure, part, metric, shared),
        _folds(shared),
        measure=measure.printed if measure is not None else "",
        beaten=table.beaten,
    )


def _shared(entry: Entry, measure: Entry | None, part: str) -> set[Training]:
    """The trainings that both have; of another program all that it is compared with."""
    theirs = set(measure.trainings(part)) if measure is not None else set()
    return theirs if entry.outside is not None else theirs & set(entry.trainings(part))


def _effect(entry: Entry, measure: Entry | None, part: str, metric: str, among: Collection[Training]) -> Effect | None:
    """Over these trainings alone: a row with more folds or seeds than its measure would differ by those too."""
    if measure is None:
        return None
    return effect_of(measure.by_case(part, metric, among), entry.by_case(part, metric, among))


def _folds(trainings: Collection[Training]) -> tuple[int, ...]:
    return tuple(sorted({fold for _, fold in trainings}))


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
    shared = set.intersection(*(_shared(entry, m, part) for entry, m in zip(own, measures, strict=True)))
    effects = [_effect(entry, m, part, metric, shared) for entry, m in zip(own, measures, strict=True)]
    known = [effect for effect in effects if effect is not None]
    return replace(
        empty,
        by_seed={seed: float(np.mean([of_task[seed] for of_task in means])) for seed in seeds},
        folds=_folds(everywhere),
        effect=averaged(known) if len(known) == len(effects) else None,
        shared_folds=_folds(shared),
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
