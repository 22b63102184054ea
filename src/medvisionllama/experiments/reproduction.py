"""``reproduce`` from top to bottom: tasks and settings to cells, cells to rows, rows to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvisionllama.data.decathlon import Task, read_task
from medvisionllama.data.splits import Splits, make_splits, read_splits
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import splits_digest
from medvisionllama.experiments.forecast import Forecast, forecast
from medvisionllama.experiments.launchers import Job, Launcher, launch
from medvisionllama.experiments.outside import score_outside
from medvisionllama.experiments.paper_tables import TABLES, Budget, Labelled, PaperTable, table_cells
from medvisionllama.experiments.pretraining import NAME, places_asked, study_cells
from medvisionllama.experiments.pretraining_page import write_page
from medvisionllama.experiments.row_figures import draw_from_rows
from medvisionllama.experiments.rows import Row, read_rows
from medvisionllama.experiments.suite import Tell, Walked, Work, machine_of, walk
from medvisionllama.experiments.table_page import (
    Entry,
    counts_of,
    differences_of,
    entries_of,
    lines_of,
    to_csv,
    to_markdown,
)
from medvisionllama.experiments.tables import TASKS, decathlon_name, published
from medvisionllama.explain import explain_run
from medvisionllama.listener import Listener
from medvisionllama.run_folder import RunFolder, write_table, write_text


@dataclass(frozen=True)
class Request:
    """What was asked for; None and empty take the table's own.

    Attributes:
        table: A name of ``paper_tables.TABLES``, or that of the study.
        tasks: The tasks' folders.
        out: Folder of the small results.
        work: Folder of the run folders.
        splits: A file for each task; drawn with seed 0 where empty.
        seeds: Trainings of each row.
        fractions: Shares of the training patients.
        folds: Which parts validate, in turn.
        steps: Of every cell.
        grid: Edge of the papers' grid.
        recipe: Name or file, for the papers' tables.
        blocks: Label and source of language models.
        networks: Of the study.
        middles: Of the study.
        loras: Of the study.
        predictions: Name and folder of other programs' label maps.
        only: Measure only cells whose name holds this.
        limit: Measure at most so many cells.
        device: As in ``Work``.
        threads: As in ``Work``.
        cache: As in ``Work``.
        offline: As in ``Work``.
    """

    table: str
    tasks: tuple[Path, ...]
    out: Path
    work: Path
    splits: tuple[Path, ...] = ()
    seeds: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    folds: tuple[int, ...] = ()
    steps: int | None = None
    grid: int | None = None
    recipe: str = ""
    blocks: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()
    middles: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    predictions: tuple[tuple[str, Path], ...] = ()
    only: str = ""
    limit: int | None = None
    device: str = "auto"
    threads: int | None = None
    cache: Path | None = None
    offline: bool = False


class Reproduction:
    """A request with its tasks read and its cells known.

    Raises:
        InputError: The table is unknown, or tasks, splits or settings do not fit.
    """

    def __init__(self, request: Request) -> None:
        if request.table != NAME and request.table not in TABLES:
            raise InputError(
                f"no table or figure is called {request.table!r}",
                expected=", ".join([NAME, *TABLES]),
                mend="Choose one of these.",
            )
        self.request = request
        self.table: PaperTable | None = TABLES.get(request.table)
        self.tasks: dict[str, Task] = {}
        self.splits: dict[str, Splits] = {}
        if request.splits and len(request.splits) != len(request.tasks):
            raise InputError(
                "every task needs a split of its own",
                got=f"{len(request.splits)} files for {len(request.tasks)} tasks",
                mend="Name as many --splits as --tasks, in the same order, or none.",
            )
        for index, folder in enumerate(request.tasks):
            task = read_task(folder)
            names = [case.name for case in task.cases]
            splits = read_splits(request.splits[index]) if request.splits else make_splits(names)
            splits.verify(names)
            self.tasks[decathlon_name(task.name)] = task
            self.splits[decathlon_name(task.name)] = splits
        self.labelled = self._labelled()

    def _labelled(self) -> tuple[Labelled, ...]:
        request = self.request
        tasks = [(name, splits_digest(splits)) for name, splits in self.splits.items()]
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
        """What there is to measure now."""
        request = self.request
        cells = tuple(dict.fromkeys(x.cell for x in self.labelled if request.only in x.cell.name))
        return Work(
            cells[: request.limit] if request.limit is not None else cells,
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
        return forecast(self.work(), self.rows(), all_tasks=self.table is not None)

    def measure(
        self,
        launcher: Launcher,
        workers: int,
        tell: Tell = print,
        listener: Listener | None = None,
        job: Job | None = None,
        share: tuple[int, int] | None = None,
    ) -> Walked:
        """Measure what is missing; ``share`` (worker, workers) walks as one of several that something else launched."""
        if share is not None:
            return walk(self.work(), *share, tell=tell, listener=listener)
        return launch(launcher, self.work(), workers, tell, listener, job)

    def write(self, tell: Tell = print) -> list[Path]:
        """Write the table or page from the rows that are there."""
        if self.table is None:
            return self._write_study()
        return self._write_table(self.table, tell)

    def _write_study(self) -> list[Path]:
        rows = self.rows().values()
        asked = places_asked([labelled.cell for labelled in self.labelled], rows)
        return write_page(rows, asked, self.request.out, study_commands())

    def _write_table(self, table: PaperTable, tell: Tell) -> list[Path]:
        request, rows = self.request, self.rows()
        entries = entries_of(self.labelled, rows)
        for name, folder in request.predictions:
            for task_name, task in self.tasks.items():
                fold = (request.folds or (0,))[0]
                scored = score_outside(folder, task, self.splits[task_name], merged=True, fold=fold)
                entries.append(Entry(name, task_name, outside=scored))
        lines, counts = lines_of(table, entries), counts_of(table, entries) if table.number != "1" else []
        used = [row for entry in entries for row in entry.rows]
        cases = {name: len(task.cases) for name, task in self.tasks.items()}
        differences = differences_of(table, self.labelled, used, cases, [name for name, _ in request.predictions])
        figures, faults = self._figures(table, entries, tell)
        missing = [*self._missing(rows), *faults]
        page = to_markdown(table, lines, counts, differences, missing, [path.name for path in figures])
        if table.number == "1":
            page += "\n" + self._data_table(table)
        write_text(request.out / f"{table.name}.md", page)
        write_table(request.out / f"{table.name}.csv", to_csv(table, lines, counts))
        return [request.out / f"{table.name}.md", request.out / f"{table.name}.csv", *figures]

    def _missing(self, rows: Mapping[str, Row]) -> list[str]:
        left = [labelled for labelled in self.labelled if labelled.cell.key not in rows]
        if not left:
            return []
        return [
            f"{len(left)} of {len(self.labelled)} cells are not measured:",
            "\n".join(f"- {x.printed}, {x.cell.task}, seed {x.cell.seed}, fold {x.cell.fold}" for x in left),
            f"```\n{self.command()}\n```",
        ]

    def command(self) -> str:
        """What measures the rest, with ``DATA`` for the folder of the data."""
        request = self.request
        words = ["medvisionllama reproduce", request.table, "--tasks", *(f"DATA/{task}" for task in self.tasks)]
        # A path of this machine is of no use elsewhere: its last part tells which file is meant.
        splits = [str(path) if not path.is_absolute() else path.name for path in request.splits]
        for option, values in (
            ("--splits", splits),
            ("--seeds", request.seeds),
            ("--fractions", request.fractions),
            ("--folds", request.folds),
            ("--networks", request.networks),
            ("--middles", request.middles),
            ("--lora", request.loras),
        ):
            words += [option, *map(str, values)] if values else []
        words += ["--steps", str(request.steps)] if request.steps else []
        words += ["--grid", str(request.grid)] if request.grid else []
        words += ["--recipe", request.recipe] if request.recipe else []
        if request.blocks:
            words += ["--block", *(_block_word(label, source) for label, source in request.blocks)]
        return " ".join([*words, "--out", request.out.name])

    def _figures(self, table: PaperTable, entries: Sequence[Entry], tell: Tell) -> tuple[list[Path], list[str]]:
        """A figure's files; or one sentence saying what it lacks."""
        shown = [(entry.printed, row) for entry in entries for row in entry.rows]
        if not table.figure or not shown:
            return [], []
        try:
            if table.maps:
                self._collect_maps([row for _, row in shown])
            part = next(p for p in ("test/native", "validation/native") if p in shown[0][1].parts)
            title = f"{part.partition('/')[0]}, native grid"
            return draw_from_rows(table.figure, shown, self.request.work, self.request.out, title), []
        except InputError as error:
            tell(f"{table.figure} was not drawn: {error}")
            return [], [f"The figure was not drawn: {error.fault_in_full}"]

    def _collect_maps(self, rows: Sequence[Row]) -> None:
        for row in rows:
            run = RunFolder(self.request.work / str(row.content["name"]))
            case = row.parts[next(iter(row.parts))].cases[0]
            if run.config.exists() and not (run.path / "maps" / f"{case}.npz").exists():
                explain_run(run.path, [case], machine_of(self.work(), 0))

    def _data_table(self, table: PaperTable) -> str:
        head = "| task | modalities | channels | classes | cases in the paper | cases here |"
        text = ["## The data", head, "|" + "---|" * 6]
        printed = {cell.task: cell.value for cell in published(table.version, "1", metric="cases")}
        for name in TASKS:
            task = self.tasks.get(name)
            if task is None:
                text.append(f"| {name} | not here |  |  | {printed[name]:g} |  |")
                continue
            modalities, classes = ", ".join(task.modalities), ", ".join(task.classes.values())
            text.append(
                f"| {name} | {modalities} | {task.channels} | {classes} | {printed[name]:g} | {len(task.cases)} |"
            )
        return "\n\n".join([text[0], "\n".join(text[1:])]) + "\n"


def study_commands() -> list[str]:
    """The commands of the planned study, and the one for the papers' own language model."""
    common = (
        f"medvisionllama reproduce {NAME} --tasks DATA/Task04_Hippocampus "
        f"--splits docs/results/task04-native/splits.json --threads 1 --out docs/results/{NAME}"
    )
    return [
        common,
        f"{common} --networks medvisionllama-u --middles shuffled pretrained "
        "--block stories260K=DATA/weights/stories260K/hf",
        "# the papers' own language model, on a GPU (gated: accept its licence on the hub, then `blocks fetch`):",
        "medvisionllama blocks fetch llama-3.1-8b",
        f"{common} --block llama-3.1-8b --device cuda",
    ]


def _block_word(label: str, source: str) -> str:
    where = f"DATA/{'/'.join(Path(source).parts[-3:])}" if Path(source).is_absolute() else source
    return where if label == source else f"{label}={where}"
