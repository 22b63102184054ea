"""A table of the papers with what was measured beside what was printed, as Markdown and CSV."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache

import numpy as np

from medvisionllama.config import load_recipe
from medvisionllama.experiments.effects import Effect, averaged, effect_of
from medvisionllama.experiments.paper_tables import PAPER_GRID, Labelled, PaperTable, with_share
from medvisionllama.experiments.rows import PartScores, Row
from medvisionllama.experiments.tables import AVERAGE, TASKS, Published, published
from medvisionllama.models.costs import Cost, cost_of
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig
from medvisionllama.recipe import Recipe
from medvisionllama.reports.comparison import LOWER_IS_BETTER, marks
from medvisionllama.reports.statistics import Summary, holm, summary_of
from medvisionllama.reports.wording import UNKNOWN, exact, number, p_value, signed

CLOCKED = ("inference_ms", "training_hours")
OTHERS_TRAINING = (
    "label maps of another program. Their training, its data, length and seeds, are that program's and unknown here; "
    "equal are the cases scored, their references and the scoring. They stand for one training."
)
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
        key: The row.
        task: A task, or :data:`~medvisionllama.experiments.tables.AVERAGE` of those measured.
        part: Such as ``test/native``.
        metric: Of the scores.
        published: What the paper prints; None where it prints nothing.
        by_seed: Each training's mean over cases, by seed.
        cases: Over cases of the seed-averaged values.
        effect: This row less the one it is compared with; None for that row itself, and where they share nothing.
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
    effect: Effect | None = None
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


def lines_of(table: PaperTable, entries: Sequence[Entry]) -> list[Line]:
    """Every number of the table, by part, task, row and metric."""
    parts = sorted(set().union(*(e.parts() for e in entries)), key=PART_ORDER.index) if entries else []
    return [line for part in parts for line in _with_holm(_lines_of_part(table, entries, part))]


def _lines_of_part(table: PaperTable, entries: Sequence[Entry], part: str) -> list[Line]:
    lines: list[Line] = []
    for task in dict.fromkeys(entry.task for entry in entries):
        of_task = [entry for entry in entries if entry.task == task]
        lines += [_line(table, e, _measure(table, e, of_task), part, m) for m in table.metrics for e in of_task]
    averaged_rows = {cell.row for cell in published(table.version, _number(table), task=AVERAGE)}
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
    by_case = entry.by_case(part, metric)
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
        summary_of([float(np.mean(values)) for values in pooled.values()]),
        _effect(entry, measure, part, metric),
        measure=measure.printed if measure is not None else "",
        beaten=table.beaten,
    )


def _effect(entry: Entry, measure: Entry | None, part: str, metric: str) -> Effect | None:
    if measure is None:
        return None
    theirs, ours = measure.by_case(part, metric), entry.by_case(part, metric)
    if entry.outside is not None and ours:
        ours = dict.fromkeys(theirs, ours[0])  # one training, whatever the seed it is compared with
    return effect_of(theirs, ours)


def _average(table: PaperTable, key: RowKey, entries: Sequence[Entry], part: str, metric: str) -> Line:
    """The mean over tasks, of the same tasks in every row: those that each row with any result has.

    A row's seeds are those it has in all of these tasks. The test is over their cases, tasks as strata
    (:func:`~medvisionllama.experiments.effects.averaged`).
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
    means = [{seed: _known_mean(c.values()) for seed, c in e.by_case(part, metric).items()} for e in own]
    seeds = sorted(set.intersection(*(set(of_task) for of_task in means)))
    measures = [_measure(table, entry, [e for e in entries if e.task == entry.task]) for entry in own]
    return replace(
        empty,
        by_seed={seed: float(np.mean([of_task[seed] for of_task in means])) for seed in seeds},
        effect=_average_effect(own, measures, part, metric),
        measure=measures[0].printed if measures[0] is not None else "",
        tasks=tuple(tasks),
    )


def _average_effect(own: Sequence[Entry], measures: Sequence[Entry | None], part: str, metric: str) -> Effect | None:
    """Over the seeds that both rows have in all tasks; None where there are none."""
    by_task = []
    for entry, measure in zip(own, measures, strict=True):
        if measure is None:
            return None
        theirs, ours = measure.by_case(part, metric), entry.by_case(part, metric)
        by_task.append((theirs, dict.fromkeys(theirs, ours[0]) if entry.outside is not None and ours else ours))
    seeds = set.intersection(*({*theirs} & {*ours} for theirs, ours in by_task))
    effects = [effect_of({s: theirs[s] for s in seeds}, {s: ours[s] for s in seeds}) for theirs, ours in by_task]
    known = [effect for effect in effects if effect is not None]
    return averaged(known) if known and len(known) == len(effects) else None


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
        rows = [r for entry in entries if entry.row == printed and entry.outside is None for r in entry.rows]
        for count in table.counts:
            cells = published(table.version, _number(table), row=printed, metric=count)
            counted = _counted(row.config, count) if count not in CLOCKED else math.nan
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
            f"`*` {'a row that is worse, ' if table.beaten else ''}raw p < .05 (paired t-test over cases; in an "
            "average tasks count alike and are strata), a dagger where it survives Holm's correction over this part "
            "of the table. An average is over the tasks that every measured row has. The test is over cases alone: "
            "it says nothing of other trainings. Published ±: as printed; of what it is the SD the paper does not say."
        )
    if counts:
        text += ["## Networks", _table_of_counts(counts)]
    text += ["## What differed", "\n".join(f"- {difference}" for difference in differences)]
    if missing:
        text += ["## What is missing", "\n".join(missing)]
    return "\n\n".join(text) + "\n"


def _table_of_part(table: PaperTable, lines: Sequence[Line]) -> str:
    against = table.against or next(iter(table.rows), "")
    text = [
        f"| task | metric | row | published | measured | interval over cases (n) | seeds | less {against} | p |",
        "|" + "---|" * 9,
    ]
    for line in lines:
        spread = f" ± {number(line.seed_sd, line.metric)}" if not math.isnan(line.seed_sd) else ""
        interval = f"{number(line.cases.low, line.metric)} to {number(line.cases.high, line.metric)} ({line.cases.n})"
        effect = line.effect
        task = f"{line.task} ({', '.join(_short(name) for name in line.tasks)})" if line.tasks else line.task
        less = signed(effect.difference, line.metric) if effect else UNKNOWN
        less += f" (less {line.measure})" if effect and line.measure != against else ""
        text.append(
            f"| {task} | {line.metric} | {line.printed} | {_as_printed(line.published)} | "
            f"{number(line.measured, line.metric)}{spread}{line.marks} | {interval if line.cases.n else UNKNOWN} | "
            f"{len(line.by_seed) or UNKNOWN} | {less} | "
            f"{p_value(effect.cases.t_p) if effect else UNKNOWN} |"
        )
    return "\n".join(text)


def _table_of_counts(counts: Sequence[Counted]) -> str:
    head = "| row | what | published | counted on the paper's network at 128³ | of the trainings here |"
    text = [head, "|" + "---|" * 5]
    for c in counts:
        # Published digits stand as printed; times are not known to more than four, the rest is counted.
        own = ".4g" if c.count in CLOCKED else ",.6g"
        cells = ["" if math.isnan(c.published) else f"{c.published:g}", f"{c.counted:,.6g}", f"{c.measured:{own}}"]
        cells = [UNKNOWN if cell in ("", "nan") else cell for cell in cells]
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
                table.name, line.printed, line.task, line.part, line.metric, exact(was.value if was else math.nan),
                exact(was.sd if was else math.nan), "*" if was and was.significant else "", exact(line.measured),
                str(len(line.by_seed)), exact(line.seed_sd), exact(line.cases.low), exact(line.cases.high),
                str(line.cases.n), *(map(exact, compared) if compared else [""] * 4), exact(line.holm_p), line.marks,
            )
        )  # fmt: skip
    for c in counts:
        empty = [""] * (len(head) - 9)
        rows.append(
            (table.name, c.printed, "", "network", c.count, exact(c.published), "", "", exact(c.measured), *empty)
        )
        if not math.isnan(c.counted):
            rows.append((table.name, c.printed, "", "counted", c.count, "", "", "", exact(c.counted), *empty))
    return rows


def differences_of(
    table: PaperTable,
    cells: Sequence[Labelled],
    rows: Collection[Row],
    cases: Mapping[str, int],
    outside: Collection[str] = (),
) -> list[str]:
    """What is not as in the paper, read from what was asked for and what was measured.

    Args:
        table: The table.
        cells: What was asked for.
        rows: What was measured.
        cases: How many each task holds here.
        outside: Other programs' rows.
    """
    if not cells:
        return [
            "**Cases** are counted here, in each task's description. The papers' counts are printed as they stand; "
            "Liver 100 and Lung 53 are not the release's numbers."
        ]
    recipes = list(dict.fromkeys(x.cell.recipe for x in cells))
    counts = {cell.task: cell.value for cell in published(table.version, "1", metric="cases")}
    paper = "100 epochs" if table.version == "v1" else "200 epochs"
    steps = sorted({row.steps for row in rows})
    data = "; ".join(
        f"{task} {n} cases here, {f'{counts[task]:g} in the paper' if task in counts else 'not in the paper'}"
        for task, n in cases.items()
    )
    papers = {row: network.block for row, network in table.rows.items() if network.block}
    blocks = {x.row: x.cell.block for x in cells if x.cell.block}
    swapped = sorted({f"{b} in place of {papers[row]}" for row, b in blocks.items() if b != papers.get(row, b)})
    said = [
        f"**Data**: {data}; {len(cases)} of the papers' {len(TASKS)} tasks. Averages are over those.",
        *_shares(table, cells),
        f"**Budget**: {_budget(steps, recipes[0])}, batch {recipes[0].batch_size}; the paper {paper}, batch 4.",
        f"**Recipe**: {_recipe_said(table, recipes)}.",
        f"**Weights**: {'; '.join(swapped) or 'the language models that the paper names, or none'}.",
        *_depth_said(table, cells),
        _grid_said(table, cells),
        "**Protocol**: labels by nearest neighbour; split by patient before augmentation, test 10 %, folds over the "
        "rest; scored on the model's grid, as the papers must have, and on the image's own.",
        f"**Seeds**: {', '.join(str(seed) for seed in sorted({x.cell.seed for x in cells}))}; fold "
        f"{', '.join(str(fold) for fold in sorted({x.cell.fold for x in cells}))}.",
    ]
    said += [f"**{name}**: {OTHERS_TRAINING}" for name in outside]
    said += [f"**{printed}**: no such network here yet; nothing stands in for it." for printed in table.absent]
    return said


def _shares(table: PaperTable, cells: Sequence[Labelled]) -> list[str]:
    """Shares of the training patients, where they are not all and not the table's own."""
    shares = sorted({x.cell.fraction for x in cells})
    if shares == sorted(table.fractions):
        return []
    here = ", ".join(f"{100 * share:g}%" for share in shares)
    return [
        f"**Share of the data**: {here} of the training patients; the paper "
        f"{', '.join(f'{100 * share:g}%' for share in sorted(table.fractions))}. Rows of other shares carry theirs in "
        "their name, and no published number stands beside them."
    ]


def _recipe_said(table: PaperTable, recipes: Sequence[Recipe]) -> str:
    """Every value of the recipe that is not the version's own; its length is told as the budget."""
    own = asdict(load_recipe(f"paper-{table.version}"))
    differing = {
        name: [value for value in dict.fromkeys(str(asdict(recipe)[name]) for recipe in recipes) if value != str(was)]
        for name, was in own.items()
        if name not in ("steps", "epochs", "batch_size")
    }
    said = [f"{name} {' and '.join(values)}, not {own[name]}" for name, values in differing.items() if values]
    return "; ".join(said) or f"paper-{table.version}, {table.version}'s own as far as it tells"


def _depth_said(table: PaperTable, cells: Sequence[Labelled]) -> list[str]:
    """Which ViT-Depth it is: the network of equal size follows the block that stands there."""
    grown = next((x.cell.config for x in cells if x.cell.model.startswith("vit-depth")), None)
    if not isinstance(grown, ModelConfig) or grown == table.rows["ViT-Depth"].config:
        return []
    return [
        f"**ViT-Depth**: {grown.width} wide, {grown.depth} blocks, {grown.heads} heads, as many parameters as "
        "MedVisionLlama has around the block that stands in."
    ]


def _grid_said(table: PaperTable, cells: Sequence[Labelled]) -> str:
    grids = ", ".join(f"{grid}³" for grid in sorted({labelled.cell.grid for labelled in cells}))
    if table.number == "B2":
        sizes = ", ".join("x".join(map(str, size)) for size in dict.fromkeys(r.input_size for r in table.rows.values()))
        return f"**Grid**: {grids}, cubes of the paper's first edge; the paper {sizes}, whose third edge is shorter."
    if table.version == "v1":
        return f"**Grid**: {grids}; the paper names none but for its Table B2."
    return f"**Grid**: {grids}; the paper {PAPER_GRID}³."


def _budget(steps: Sequence[int], recipe: Recipe) -> str:
    if steps or recipe.steps:
        return f"{', '.join(f'{n:,}' for n in steps or [recipe.steps])} steps"
    return f"{recipe.epochs} epochs"


def _number(table: PaperTable) -> str:
    return table.rows_of or table.number


def _short(task: str) -> str:
    """A task's number, where it has one."""
    return task.partition("_")[0]


def _printed_number(table: PaperTable, key: RowKey, task: str, metric: str) -> Published | None:
    """The paper's number of a row: of all the data, for it prints none of smaller shares; none of another program's."""
    if key.fraction != 1 or (key.outside and key.row not in table.absent):
        return None
    found = published(table.version, _number(table), row=key.row, task=task, metric=metric)
    # Where a table is about no task in particular, its numbers are of the paper's own choice of task.
    found = found or [c for c in published(table.version, _number(table), row=key.row, metric=metric) if not c.task]
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
