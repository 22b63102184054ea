"""A table of the papers with what was measured beside what was printed, as Markdown and CSV."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from medvisionllama.experiments.effects import Effect, effect_of
from medvisionllama.experiments.paper_tables import PAPER_GRID, Labelled, PaperTable
from medvisionllama.experiments.rows import PartScores, Row
from medvisionllama.experiments.tables import AVERAGE, TASKS, Published, published
from medvisionllama.models.costs import Cost, cost_of
from medvisionllama.models.network import NetworkConfig
from medvisionllama.recipe import Recipe
from medvisionllama.reports.statistics import Summary, holm, summary_of
from medvisionllama.reports.wording import UNKNOWN, number, p_value, signed

SIGNIFICANCE = 0.05
OTHERS_TRAINING = (
    "label maps of another program. Their training, its data, length and seeds, are that program's and unknown here; "
    "equal are the cases scored, their references and the scoring. They stand for one training."
)
PART_ORDER = ("test/native", "test/model", "validation/native", "validation/model", "test", "validation")


@dataclass(frozen=True)
class Entry:
    """One row of a table on one task, as far as it was measured.

    Attributes:
        printed: The row's name, as printed.
        task: The task.
        rows: What was measured: seeds and folds.
        outside: The parts of a folder of another program's predictions, in place of rows.
    """

    printed: str
    task: str
    rows: tuple[Row, ...] = ()
    outside: Mapping[str, PartScores] | None = None

    def parts(self) -> set[str]:
        """Which parts were scored."""
        return set(self.outside or ()).union(*(row.parts for row in self.rows))

    def by_case(self, part: str, metric: str) -> dict[int, dict[str, float]]:
        """Seed to each case's value; where several folds scored a case, the mean of theirs.

        Another program's predictions are taken as one training, whatever the seed they are compared with.
        """
        if self.outside is not None:
            seeds = [0] if part in self.outside else []
            return {seed: self.outside[part].by_case(metric) for seed in seeds}
        found: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            if part in row.parts:
                for case, value in row.parts[part].by_case(metric).items():
                    found[row.seed][case].append(value)
        return {seed: {case: float(np.mean(v)) for case, v in cases.items()} for seed, cases in found.items()}


@dataclass(frozen=True)
class Line:
    """One number: published, measured, and how it compares with the row that is the measure.

    Attributes:
        printed: The row.
        task: A task, or :data:`~medvisionllama.experiments.tables.AVERAGE` of those measured.
        part: Such as ``test/native``.
        metric: Of the scores.
        published: What the paper prints; None where it prints nothing.
        by_seed: Each training's mean over cases.
        cases: Over cases of the seed-averaged values.
        effect: This row less the one it is compared with; None for that row itself and for averages.
        holm_p: Of the t-test over cases, over the table's lines of the same part.
    """

    printed: str
    task: str
    part: str
    metric: str
    published: Published | None
    by_seed: tuple[float, ...] = ()
    cases: Summary = Summary(math.nan, math.nan, math.nan, math.nan, 0)  # noqa: RUF009 (a frozen value)
    effect: Effect | None = None
    holm_p: float = math.nan

    @property
    def measured(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.by_seed)) if self.by_seed else math.nan

    @property
    def seed_sd(self) -> float:
        """The spread over seeds."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else math.nan

    @property
    def marks(self) -> str:
        """``*`` for raw p < .05 over cases, a dagger where it survives Holm's correction."""
        if self.effect is None:
            return ""
        return "*" * (self.effect.cases.t_p < SIGNIFICANCE) + "\N{DAGGER}" * (self.holm_p < SIGNIFICANCE)


def entries_of(cells: Sequence[Labelled], rows: Mapping[str, Row]) -> list[Entry]:
    """The measured cells by printed row and task, in the table's order."""
    found: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for labelled in cells:
        of_place = found[labelled.printed, labelled.cell.task]
        if labelled.cell.key in rows:
            of_place.append(rows[labelled.cell.key])
    return [Entry(printed, task, tuple(measured)) for (printed, task), measured in found.items()]


def lines_of(table: PaperTable, entries: Sequence[Entry]) -> list[Line]:
    """Every number of the table, by part, task, row and metric."""
    parts = sorted(set().union(*(e.parts() for e in entries)), key=PART_ORDER.index) if entries else []
    return [line for part in parts for line in _with_holm(_lines_of_part(table, entries, part))]


def _lines_of_part(table: PaperTable, entries: Sequence[Entry], part: str) -> list[Line]:
    lines: list[Line] = []
    for task in dict.fromkeys(entry.task for entry in entries):
        of_task = [entry for entry in entries if entry.task == task]
        for metric in table.metrics:
            lines += [_line(table, entry, _measure(table, entry, of_task), part, metric) for entry in of_task]
    averaged = {cell.row for cell in published(table.version, _number(table), task=AVERAGE)}
    for printed in dict.fromkeys(entry.printed for entry in entries):
        if _bare(printed) in averaged:
            lines += [
                _average(table, [x for x in lines if x.printed == printed and x.metric == m], part, m)
                for m in table.metrics
            ]
    return lines


def _measure(table: PaperTable, entry: Entry, of_task: Sequence[Entry]) -> Entry:
    """The entry that one is compared with: of the same share of the data."""
    wanted = table.against or _bare(of_task[0].printed)
    share = entry.printed.removeprefix(_bare(entry.printed))
    return next((e for e in of_task if e.printed == wanted + share), of_task[0])


def _line(table: PaperTable, entry: Entry, measure: Entry, part: str, metric: str) -> Line:
    by_case = entry.by_case(part, metric)
    effect = None
    if measure is not entry:
        theirs = measure.by_case(part, metric)
        if entry.outside is not None and by_case:
            by_case_everywhere = dict.fromkeys(theirs, by_case[0])
            effect = effect_of(theirs, by_case_everywhere)
        else:
            effect = effect_of(theirs, by_case)
    pooled: defaultdict[str, list[float]] = defaultdict(list)
    for cases in by_case.values():
        for case, value in cases.items():
            pooled[case].append(value)
    return Line(
        entry.printed,
        entry.task,
        part,
        metric,
        _printed_number(table, entry.printed, entry.task, metric),
        tuple(_known_mean(cases.values()) for cases in by_case.values()),
        summary_of([float(np.mean(values)) for values in pooled.values()]),
        effect,
    )


def _average(table: PaperTable, lines: Sequence[Line], part: str, metric: str) -> Line:
    """Mean over the measured tasks of each seed's means; seeds that lack a task are left out."""
    measured = [line.by_seed for line in lines if line.by_seed]
    shared = min(map(len, measured), default=0)
    by_seed = tuple(float(np.mean([of_task[i] for of_task in measured])) for i in range(shared))
    printed = lines[0].printed
    return Line(printed, AVERAGE, part, metric, _printed_number(table, printed, AVERAGE, metric), by_seed)


def _with_holm(lines: Sequence[Line]) -> list[Line]:
    adjusted = holm([line.effect.cases.t_p if line.effect else math.nan for line in lines])
    return [replace(line, holm_p=p) for line, p in zip(lines, adjusted, strict=True)]


@dataclass(frozen=True)
class Counted:
    """A number of a network rather than of its scores.

    Attributes:
        printed: The row.
        count: Such as ``parameters_m``.
        published: As printed; NaN where nothing is.
        counted: Of the paper's own network at the paper's own size; NaN for what only a clock tells.
        measured: Of the trainings here; NaN where there are none.
    """

    printed: str
    count: str
    published: float
    counted: float
    measured: float


def counts_of(table: PaperTable, entries: Sequence[Entry]) -> list[Counted]:
    """Parameters and operations counted on the papers' own networks, times and sizes as measured here."""
    found = []
    for printed, row in table.rows.items():
        rows = [r for entry in entries if entry.printed == printed for r in entry.rows]
        for count in table.counts:
            cells = published(table.version, _number(table), row=printed, metric=count)
            counted = _counted(row.config, count) if count not in ("inference_ms", "training_hours") else math.nan
            found.append(
                Counted(printed, count, cells[0].value if cells else math.nan, counted, _measured_count(rows, count))
            )
    return found


@lru_cache
def _cost(config: NetworkConfig) -> Cost:
    return cost_of(config)


def _counted(config: NetworkConfig, count: str) -> float:
    cost = _cost(config)
    return {
        "parameters_m": (cost.trainable_parameters + cost.frozen_parameters) / 1e6,
        "trainable_m": cost.trainable_parameters / 1e6,
        "frozen_m": cost.frozen_parameters / 1e6,
        "gflops": cost.flops / 1e9,
    }[count]


def _measured_count(rows: Sequence[Row], count: str) -> float:
    if not rows:
        return math.nan
    if count == "training_hours":
        return float(np.mean([row.seconds for row in rows])) / 3600
    if count == "inference_ms":
        times = [row.content["forward_ms"] for row in rows if row.content.get("forward_ms")]
        return float(np.median(times)) if times else math.nan
    held = rows[0].content["parameters"]
    trainable, frozen = held["trainable"] / 1e6, held["frozen"] / 1e6
    known: dict[str, float] = {"parameters_m": trainable + frozen, "trainable_m": trainable, "frozen_m": frozen}
    return known.get(count, math.nan)


def to_markdown(
    table: PaperTable,
    lines: Sequence[Line],
    counts: Sequence[Counted],
    differences: Sequence[str],
    missing: Sequence[str],
    figures: Sequence[str] = (),
) -> str:
    """The page of a table."""
    kind = "Figure" if table.figure else "Table"
    text = [f"# {table.version}, {kind} {table.number}: {table.title}"]
    text.append(
        f"*Made by `medvisionllama reproduce {table.name}` from the files in `rows/`; no measured number is typed.*"
    )
    text += [f"![{table.title}]({name})" for name in figures if name.endswith(".png")]
    for part in dict.fromkeys(line.part for line in lines):
        text.append(f"## {_part_title(part)}")
        text.append(_table_of_part(table, [line for line in lines if line.part == part]))
    if lines:
        text.append(
            "Measured: mean over cases of the mean over classes, over seeds where there are several (± SD over seeds). "
            "Interval: 95 % bootstrap over cases. Difference: paired by case with the row named, averaged over seeds; "
            "`*` raw "
            "p < .05 (paired t-test over cases), a dagger where it survives Holm's correction over this part of the "
            "table. "
            "Published ±: as printed, of what it is the SD the paper does not say."
        )
    if counts:
        text += ["## Networks", _table_of_counts(counts)]
    text += ["## What differed", "\n".join(f"- {difference}" for difference in differences)]
    if missing:
        text += ["## What is missing", "\n".join(missing)]
    return "\n\n".join(text) + "\n"


def _table_of_part(table: PaperTable, lines: Sequence[Line]) -> str:
    against = table.against or _bare(lines[0].printed)
    text = [
        f"| task | metric | row | published | measured | interval over cases (n) | seeds | less {against} | p |",
        "|" + "---|" * 9,
    ]
    for line in lines:
        spread = f" ± {number(line.seed_sd, line.metric)}" if not math.isnan(line.seed_sd) else ""
        interval = f"{number(line.cases.low, line.metric)} to {number(line.cases.high, line.metric)} ({line.cases.n})"
        effect = line.effect
        text.append(
            f"| {line.task} | {line.metric} | {line.printed} | {_as_printed(line.published)} | "
            f"{number(line.measured, line.metric)}{spread}{line.marks} | {interval if line.cases.n else UNKNOWN} | "
            f"{len(line.by_seed) or UNKNOWN} | {signed(effect.difference, line.metric) if effect else UNKNOWN} | "
            f"{p_value(effect.cases.t_p) if effect else UNKNOWN} |"
        )
    return "\n".join(text)


def _table_of_counts(counts: Sequence[Counted]) -> str:
    head = "| row | what | published | counted on the paper's network at 128³ | of the trainings here |"
    text = [head, "|" + "---|" * 5]
    for c in counts:
        cells = [UNKNOWN if math.isnan(value) else f"{value:,.4g}" for value in (c.published, c.counted, c.measured)]
        text.append(f"| {c.printed} | {c.count} | {' | '.join(cells)} |")
    return "\n".join(text)


def to_csv(table: PaperTable, lines: Sequence[Line], counts: Sequence[Counted]) -> list[tuple[str, ...]]:
    """The same as one table of plain numbers."""
    head = (
        "table", "row", "task", "part", "metric", "published", "published_sd", "published_mark", "measured", "seeds",
        "seed_sd", "case_low", "case_high", "cases", "difference", "difference_low", "difference_high", "t_p", "holm_p",
        "marks",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for line in lines:
        was, effect = line.published, line.effect
        compared = (effect.difference, effect.cases.low, effect.cases.high, effect.cases.t_p) if effect else ()
        rows.append(
            (
                table.name, line.printed, line.task, line.part, line.metric, _exact(was.value if was else math.nan),
                _exact(was.sd if was else math.nan), "*" if was and was.significant else "", _exact(line.measured),
                str(len(line.by_seed)), _exact(line.seed_sd), _exact(line.cases.low), _exact(line.cases.high),
                str(line.cases.n), *(map(_exact, compared) if compared else [""] * 4), _exact(line.holm_p), line.marks,
            )
        )  # fmt: skip
    for c in counts:
        empty = [""] * (len(head) - 9)
        rows.append(
            (table.name, c.printed, "", "network", c.count, _exact(c.published), "", "", _exact(c.measured), *empty)
        )
        if not math.isnan(c.counted):
            rows.append((table.name, c.printed, "", "counted", c.count, "", "", "", _exact(c.counted), *empty))
    return rows


def differences_of(
    table: PaperTable,
    cells: Sequence[Labelled],
    rows: Collection[Row],
    cases: Mapping[str, int],
    outside: Collection[str] = (),
) -> list[str]:
    """What is not as in the paper, read from what was asked for and what was measured."""
    if not cells:
        return ["Counted here; the papers' counts are the release's as they give them."]
    recipe = cells[0].cell.recipe
    counts = {cell.task: cell.value for cell in published(table.version, "1", metric="cases")}
    grids = sorted({labelled.cell.grid for labelled in cells})
    paper = "100 epochs" if table.version == "v1" else "200 epochs"
    steps = sorted({row.steps for row in rows})
    data = "; ".join(
        f"{task} {n} cases here, {f'{counts[task]:g} in the paper' if task in counts else 'not in the paper'}"
        for task, n in cases.items()
    )
    papers = {printed: row.block for printed, row in table.rows.items() if row.block}
    blocks = {x.printed: x.cell.block for x in cells if x.cell.block}
    swapped = sorted({f"{b} in place of {papers[_bare(p)]}" for p, b in blocks.items() if b != papers.get(_bare(p), b)})
    said = [
        f"**Data**: {data}; {len(cases)} of the papers' {len(TASKS)} tasks. Averages are over those.",
        f"**Budget**: {_budget(steps, recipe)}, batch {recipe.batch_size}; the paper {paper}.",
        f"**Weights**: {'; '.join(swapped) or 'the language models that the paper names, or none'}.",
        f"**Grid**: {', '.join(f'{g}³' for g in grids)}; the paper {PAPER_GRID}³.",
        "**Protocol**: labels by nearest neighbour; split by patient before augmentation, test 10 %, folds over the "
        "rest; scored on the model's grid, as the papers must have, and on the image's own.",
        f"**Seeds**: {', '.join(str(seed) for seed in sorted({x.cell.seed for x in cells}))}; fold "
        f"{', '.join(str(fold) for fold in sorted({x.cell.fold for x in cells}))}.",
    ]
    if table.number == "B2":
        said.append("**Input size**: the model's grid is a cube of the paper's first edge; its third edge is shorter.")
    said += [f"**{name}**: {OTHERS_TRAINING}" for name in outside]
    said += [f"**{printed}**: no such network here yet; nothing stands in for it." for printed in table.absent]
    return said


def _budget(steps: Sequence[int], recipe: Recipe) -> str:
    if steps or recipe.steps:
        return f"{', '.join(f'{n:,}' for n in steps or [recipe.steps])} steps"
    return f"{recipe.epochs} epochs"


def _number(table: PaperTable) -> str:
    return table.rows_of or table.number


def _bare(printed: str) -> str:
    """A row's name without the share of the data."""
    return printed.rpartition(", ")[0] if printed.endswith("%") else printed


def _printed_number(table: PaperTable, printed: str, task: str, metric: str) -> Published | None:
    if printed != _bare(printed):  # the papers print no numbers of smaller shares
        return None
    found = published(table.version, _number(table), row=printed, task=task, metric=metric)
    # Where a table is about no task in particular, its numbers are of the paper's own choice of task.
    found = found or [c for c in published(table.version, _number(table), row=printed, metric=metric) if not c.task]
    return found[0] if found else None


def _part_title(part: str) -> str:
    name, _, grid = part.partition("/")
    return f"{name.capitalize()} part" + (
        f", scored on the {'image' if grid == 'native' else 'model'}'s grid" if grid else ""
    )


def _as_printed(cell: Published | None) -> str:
    if cell is None:
        return UNKNOWN
    spread = "" if math.isnan(cell.sd) else f" ± {cell.sd:g}"
    return f"{cell.value:g}{spread}{'*' if cell.significant else ''}"


def _known_mean(values: Collection[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _exact(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
