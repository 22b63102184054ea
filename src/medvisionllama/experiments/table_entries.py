"""The measured rows of a paper's table: by row, share of the data and task, with their trainings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvisionllama.experiments.effects import Training
from medvisionllama.experiments.paper_tables import Labelled, with_share
from medvisionllama.experiments.rows import PartScores, Row


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

        Another program's predictions are taken as one training.

        Args:
            part: Such as ``test/native``.
            metric: Of the scores.
            among: Seeds and folds of the trainings that count; None for all.
        """
        if self.outside is not None:
            return {0: self.outside[part].by_case(metric)} if part in self.outside else {}
        found: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for training, row in self.trainings(part).items():
            if among is None or training in among:
                for case, value in row.parts[part].by_case(metric).items():
                    found[row.seed][case].append(value)
        return {seed: {case: float(np.mean(v)) for case, v in cases.items()} for seed, cases in found.items()}

    def of_training(self, training: Training, part: str, metric: str) -> dict[str, float]:
        """What one training's cases scored; of another program all of its, whatever training they are compared with."""
        if self.outside is not None:
            return self.outside[part].by_case(metric) if part in self.outside else {}
        return self.trainings(part)[training].parts[part].by_case(metric)


def entries_of(cells: Sequence[Labelled], rows: Mapping[str, Row]) -> list[Entry]:
    """The measured cells by row, share of the data and task, in the table's order."""
    found: defaultdict[tuple[str, float, str], dict[str, Row]] = defaultdict(dict)
    for labelled in cells:
        of_place = found[labelled.row, labelled.cell.fraction, labelled.cell.task]
        if (key := labelled.cell.key) in rows:
            of_place[key] = rows[key]
    return [Entry(row, task, tuple(m.values()), fraction=fraction) for (row, fraction, task), m in found.items()]
