"""``reproduce`` from top to bottom: tasks and settings to cells, cells to rows, rows to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from medvisionllama.data.decathlon import read_task
from medvisionllama.data.splits import Splits, make_splits, read_splits
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell, splits_digest
from medvisionllama.experiments.data_table import HEAD, data_rows, data_table
from medvisionllama.experiments.forecast import Forecast, forecast
from medvisionllama.experiments.launchers import Job, Launcher, launch
from medvisionllama.experiments.origin import best_weights, provenance, unlike_pairs
from medvisionllama.experiments.outside import parts_held, score_outside
from medvisionllama.experiments.paper_tables import TABLES, Budget, Labelled, PaperTable, table_cells
from medvisionllama.experiments.pretraining import scope_of, study_cells
from medvisionllama.experiments.pretraining_page import write_page
from medvisionllama.experiments.request import Request, sound
from medvisionllama.experiments.retold import command_of, study_commands
from medvisionllama.experiments.row_figures import CAPTIONS, collect_maps, draw_from_rows
from medvisionllama.experiments.rows import Row, read_rows
from medvisionllama.experiments.suite import Tell, Walked, Work, machine_of, walk
from medvisionllama.experiments.table_counts import counts_of
from medvisionllama.experiments.table_differences import differences_of
from medvisionllama.experiments.table_entries import Entry, entries_of
from medvisionllama.experiments.table_lines import lines_of, pairs_of
from medvisionllama.experiments.table_page import to_csv, to_markdown
from medvisionllama.experiments.tables import decathlon_name
from medvisionllama.listener import Listener
from medvisionllama.run_folder import write_table, write_text


class Reproduction:
    """A request with its tasks read and its cells known.

    Raises:
        InputError: The table is unknown, or tasks, splits or settings do not fit.
    """

    def __init__(self, request: Request, *, may_lack_tasks: bool = False) -> None:
        self.request = request = sound(request)
        self.table: PaperTable | None = TABLES.get(request.table)
        self.tasks: dict[str, Task] = {}
        self.splits: dict[str, Splits] = {}
        self.absent: dict[str, Path] = {}
        for index, folder in enumerate(request.tasks):
            if may_lack_tasks and not folder.exists():
                self.absent[folder.name] = folder
                continue
            task = read_task(folder)
            if (name := decathlon_name(task.name)) in self.tasks:
                raise InputError(f"two tasks are called {name}", got=str(folder), mend="Name each task once.")
            cases = [case.name for case in task.cases]
            splits = read_splits(request.splits[index]) if request.splits else make_splits(cases)
            splits.verify(cases)
            for fold in request.folds:
                splits.validation(fold)
            for _, predictions in request.predictions:
                parts_held(predictions, task, splits, (request.folds or (0,))[0])
            self.tasks[name], self.splits[name] = task, splits
        self.labelled = self._labelled([(name, splits_digest(splits)) for name, splits in self.splits.items()])
        self._refuse_misfits()

    def _refuse_misfits(self) -> None:
        printed = {labelled.printed for labelled in self.labelled}
        for name, _ in self.request.predictions:
            if name in printed:
                raise InputError(
                    f"{self.request.table} has a row {name!r} of its own",
                    got=f"--predictions {name}=...",
                    mend=f"Call it otherwise, such as '{name} (theirs)'.",
                )
        for config, grid in {(x.cell.config, x.cell.grid) for x in self.labelled if x.cell.protocol == "paper"}:
            try:
                replace(config, input_size=(grid,) * 3)
            except ValueError as error:
                raise InputError(f"no network of {self.request.table} on a grid of {grid}", got=str(error)) from error

    def _labelled(self, tasks: Sequence[tuple[str, str]]) -> tuple[Labelled, ...]:
        request = self.request
        if self.table is None:
            named = {
                "networks": request.networks,
                "middles": request.middles,
                "blocks": request.blocks,
                "loras": request.loras,
                "fractions": request.fractions,
                "seeds": request.seeds,
                "steps": request.steps,
            }
            cells = study_cells(tasks, **{name: value for name, value in named.items() if value})  # type: ignore[arg-type]
            return tuple(Labelled(cell.name, cell) for cell in cells)
        budget = Budget(recipe=request.recipe, steps=request.steps, fractions=request.fractions)
        if request.grid:
            budget = replace(budget, grid=request.grid)
        if request.seeds:
            budget = replace(budget, seeds=request.seeds)
        if request.folds:
            budget = replace(budget, folds=request.folds)
        # A bare name stands in for every language model; a label says for which.
        blocks = {"" if label == source else label: source for label, source in request.blocks}
        return table_cells(self.table, tasks, replace(budget, blocks=blocks))

    def work(self) -> Work:
        """What there is to measure now; a setting that several rows share is one cell."""
        request = self.request
        cells: dict[str, Cell] = {}
        for labelled in self.labelled:
            if request.only in labelled.cell.name:
                cells.setdefault(labelled.cell.key, labelled.cell)
        if request.limit is not None:
            measured = self.rows()
            for key in [key for key in cells if key not in measured][request.limit :]:
                del cells[key]
        return Work(
            tuple(cells.values()),
            {name: task.folder for name, task in self.tasks.items()},
            {splits_digest(splits): splits for splits in self.splits.values()},
            request.out / "rows",
            request.work,
            request.device,
            request.threads,
            request.cache,
            request.offline,
        )

    def rows(self) -> dict[str, Row]:
        """What has been measured, by key."""
        return read_rows(self.request.out / "rows")

    def forecast(self) -> Forecast:
        """What it would take."""
        absent = {name: (folder, len(self._labelled([(name, "")]))) for name, folder in self.absent.items()}
        given = {name for name, _ in self.request.predictions}
        unbuilt = [row for row in self.table.absent if row not in given] if self.table else []
        return forecast(self.work(), self.rows(), self.tasks, absent, unbuilt=unbuilt, all_tasks=self.table is not None)

    def measure(
        self,
        launcher: Launcher,
        workers: int,
        tell: Tell = print,
        listener: Listener | None = None,
        job: Job | None = None,
        share: tuple[int, int] | None = None,
    ) -> Walked:
        """Measure what is missing; ``share`` (worker, workers) walks as one of several that something else launched.

        Other programs' predictions are scored first, since what is wrong with them should be told first.
        """
        _ = self.outside
        if share is not None:
            return walk(self.work(), *share, tell=tell, listener=listener)
        return launch(launcher, self.work(), workers, tell, listener, job)

    def held(self, walked: Walked) -> int:
        """How many cells were passed over because another launch is at them, and have left no row since."""
        names = walked.named("held by another")
        return len({x.cell.key for x in self.labelled if x.cell.name in names} - set(self.rows()))

    def write(self, tell: Tell = print) -> list[Path]:
        """Write the table or page from the rows that are there."""
        if self.table is None:
            return self._write_study()
        if self.table.of_data:
            return self._write_data_table(self.table)
        return self._write_table(self.table, tell)

    def _write_study(self) -> list[Path]:
        rows = self.rows().values()
        scope = scope_of([labelled.cell for labelled in self.labelled], rows)
        return write_page(rows, scope, self.request.out, study_commands(self.request, scope))

    @cached_property
    def outside(self) -> list[Entry]:
        """Other programs' predictions, scored.

        Raises:
            InputError: A label is not the task's, or a map is on another grid.
        """
        fold = (self.request.folds or (0,))[0]
        return [
            Entry(name, known, outside=score_outside(folder, task, self.splits[known], merged=True, fold=fold))
            for name, folder in self.request.predictions
            for known, task in self.tasks.items()
        ]

    def _write_table(self, table: PaperTable, tell: Tell) -> list[Path]:
        request, rows = self.request, self.rows()
        entries = [*entries_of(self.labelled, rows), *self.outside]
        lines, counts = lines_of(table, entries), counts_of(table, entries)
        used = [*{row.key: row for entry in entries for row in entry.rows}.values()]
        cases = {name: len(task.cases) for name, task in self.tasks.items()}
        differences = differences_of(table, self.labelled, used, cases, [name for name, _ in request.predictions])
        figures, faults = self._figures(table, entries, tell)
        missing = [*self._missing(rows), *faults]
        alike = unlike_pairs(pairs_of(table, entries), "what the table compares")
        from_rows = [f"{provenance(used)}\n{best_weights(used)}"] if used else []
        origin = [*from_rows, *filter(None, [alike]), f"```\n{command_of(request)}\n```"]
        drawn = [path.name for path in figures]
        page = to_markdown(
            table, lines, counts, differences, missing, drawn, caption=CAPTIONS.get(table.figure, ""), origin=origin
        )
        return [*self._written(table, page, to_csv(table, lines, counts)), *figures]

    def _write_data_table(self, table: PaperTable) -> list[Path]:
        rows = data_rows(table.version, self.tasks)
        page = to_markdown(
            table,
            [],
            [],
            differences_of(table, (), (), {}),
            [],
            table_of_data=data_table(rows),
            origin=[f"```\n{command_of(self.request)}\n```"],
        )
        return self._written(table, page, [HEAD, *rows])

    def _written(self, table: PaperTable, page: str, lines: Sequence[tuple[str, ...]]) -> list[Path]:
        files = [self.request.out / f"{table.name}{suffix}" for suffix in (".md", ".csv")]
        write_text(files[0], page)
        write_table(files[1], lines)
        return files

    def _missing(self, rows: Mapping[str, Row]) -> list[str]:
        left = [labelled for labelled in self.labelled if labelled.cell.key not in rows]
        if not left:
            return []
        cells, all_cells = ({x.cell.key for x in some} for some in (left, self.labelled))
        return [
            f"{len(cells)} of {len(all_cells)} cells are not measured; the command below does so:",
            "\n".join(f"- {x.printed}, {x.cell.task}, seed {x.cell.seed}, fold {x.cell.fold}" for x in left),
        ]

    def _first_kept(self, row: Row) -> tuple[bool, int, int]:
        """The order in which a row's trainings are asked for pictures: those whose run folder is still there first."""
        return not (self.request.work / row.name).is_dir(), row.seed, row.fold

    def _figures(self, table: PaperTable, entries: Sequence[Entry], tell: Tell) -> tuple[list[Path], list[str]]:
        """A figure's files; or one sentence saying what it lacks."""
        shown = [(entry.row, row) for entry in entries for row in entry.rows]  # a figure tells shares itself
        if not table.figure or not shown:
            return [], []
        if table.of_cases:  # pictures are of one training
            shown = [(entry.row, min(entry.rows, key=self._first_kept)) for entry in entries if entry.rows]
        try:
            if table.maps:
                collect_maps([row for _, row in shown], self.request.work, machine_of(self.work(), 0))
            part = next(p for p in ("test/native", "validation/native") if p in shown[0][1].parts)
            title = f"{part.partition('/')[0]}, native grid"
            return draw_from_rows(table.figure, shown, self.request.work, self.request.out, title), []
        except InputError as error:
            tell(f"{table.figure} was not drawn: {error}")
            return [], [f"The figure was not drawn: {error.fault_in_full}"]
