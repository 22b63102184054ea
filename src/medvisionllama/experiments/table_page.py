"""A table of the papers with what was measured beside what was printed, as Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medvisionllama.experiments.effects import Effect, Training
from medvisionllama.experiments.paper_tables import PaperTable
from medvisionllama.experiments.table_counts import CLOCKED, Counted
from medvisionllama.experiments.table_lines import Line, is_whole
from medvisionllama.experiments.tables import Published
from medvisionllama.reports.wording import MINUS, UNKNOWN, exact, number, p_value, signed

ASTERISKS = " `*` behind a published number is the paper's own, for a significant improvement by MedVisionLlama."


def to_markdown(
    table: PaperTable,
    lines: Sequence[Line],
    counts: Sequence[Counted],
    differences: Sequence[str],
    missing: Sequence[str],
    figures: Sequence[str] = (),
    caption: str = "",
    table_of_data: str = "",
    origin: Sequence[str] = (),
) -> str:
    """The page of a table.

    Args:
        table: Which it is.
        lines: Its numbers.
        counts: Of its networks.
        differences: What is not as in the paper.
        missing: What is not measured or not drawn.
        figures: Files that lie beside the page.
        caption: What they show.
        table_of_data: What the tasks hold, where the table is about that.
        origin: Where the numbers come from, and the command behind them.
    """
    text = [f"# {table.version}, {table.printed}: {table.title}"]
    source = "the tasks' descriptions" if table.of_data else "the files in `rows/`"
    text.append(f"*Made by `medvisionllama reproduce {table.name}` from {source}; no measured number is typed.*")
    text += [f"![{table.title}]({name})" for name in figures if name.endswith(".png")]
    text += [f"*{caption}*"] if figures and caption else []
    for part in dict.fromkeys(line.part for line in lines):
        text.append(f"## {_part_title(part)}")
        text.append(_table_of_part(table, [line for line in lines if line.part == part]))
    if lines:
        text.append(
            "Measured: mean over cases of the mean over classes, over seeds where there are several (± SD over seeds). "
            "Interval: 95 % bootstrap over cases; n counts those with a value in any seed. Difference: paired by case "
            "with the row named, averaged over the trainings (seed and fold) that both rows have; behind it stand the "
            "pairs tested and the trainings, where they are not those of the row. Tests are two-sided over the "
            "pairs: the paired t-test (in an average tasks count alike and are strata) and Wilcoxon's signed-rank "
            "test; d_z is the mean difference in units of the differences' SD. Ranks and d_z are of one task: an "
            f"average has neither. `*` behind a measured number: {_marked(table)}, raw p < .05 of the t-test, a "
            "dagger where it survives Holm's correction over this part of the table. An average is over the tasks "
            "that every measured row has. The tests are over cases alone: they say nothing of other trainings. The "
            "CSV gives each difference its 95 % interval: `bootstrap` over the pairs of one task, `t` for an average. "
            "Published ±: as printed; of what it is the SD the paper does not say."
            + ASTERISKS
            * any(line.published is not None and line.published.significant for line in lines)
        )
    if table_of_data:
        text += ["## The data", table_of_data]
    if counts:
        text += ["## Networks", _table_of_counts(counts)]
    text += ["## What differed", "\n".join(f"- {difference}" for difference in differences)]
    if missing:
        text += ["## What is missing", "\n".join(missing)]
    if origin:
        text += ["## Where the numbers come from", *origin]
    return "\n\n".join(text) + "\n"


def _marked(table: PaperTable) -> str:
    return (
        "a row that is worse"
        if table.beaten
        else f"a row that differs, for better or worse as its sign under *less {_measure_of(table)}* tells"
    )


def _measure_of(table: PaperTable) -> str:
    """The row that the others are compared with."""
    return table.against or next(iter(table.rows), "")


def _table_of_part(table: PaperTable, lines: Sequence[Line]) -> str:
    against = _measure_of(table)
    folds_of_rows = {_folds(line.trainings) for line in lines if line.trainings}
    folds = len(folds_of_rows) > 1 or any(len(folds) > 1 for folds in folds_of_rows)
    text = [
        f"| task | metric | row | published | measured | interval over cases (n) | seeds | less {against} | p (t) | "
        "p (Wilcoxon) | d_z |",
        "|" + "---|" * 11,
    ]
    for line in lines:
        spread = f" ± {number(line.seed_sd, line.metric)}" if not math.isnan(line.seed_sd) else ""
        interval = f"{number(line.cases.low, line.metric)} to {number(line.cases.high, line.metric)} ({line.cases.n})"
        effect = line.effect
        task = f"{line.task} ({', '.join(_short(name) for name in line.tasks)})" if line.tasks else line.task
        tested = (effect.cases.t_p, effect.cases.wilcoxon_p) if effect else (math.nan, math.nan)
        text.append(
            f"| {task} | {line.metric} | {line.printed} | {_as_printed(line.published)} | "
            f"{number(line.measured, line.metric)}{spread}{line.marks} | {interval if line.cases.n else UNKNOWN} | "
            f"{_trainings(line, folds)} | {_less(line, against)} | "
            f"{' | '.join(map(p_value, tested))} | {_effect_size(effect)} |"
        )
    return "\n".join(text)


def _trainings(line: Line, folds: bool) -> str:
    """How many seeds; where folds are to be told, which of them, and which trainings where seeds have unequal ones."""
    if not line.by_seed or not (folds and line.trainings):
        return str(len(line.by_seed)) if line.by_seed else UNKNOWN
    if not is_whole(line.trainings):
        return f"{len(line.by_seed)} ({_named(line.trainings)})"
    return f"{len(line.by_seed)}, {_told('fold', _folds(line.trainings))}"


def _folds(trainings: Sequence[Training]) -> tuple[int, ...]:
    return tuple(sorted({fold for _, fold in trainings}))


def _seeds(trainings: Sequence[Training]) -> tuple[int, ...]:
    return tuple(sorted({seed for seed, _ in trainings}))


def _named(trainings: Sequence[Training]) -> str:
    """Such as ``seed 0 fold 0; seed 1 fold 1``."""
    return "; ".join(f"seed {seed} fold {fold}" for seed, fold in trainings)


def _those_of(compared: Sequence[Training], own: Sequence[Training]) -> list[str]:
    """Which seeds and folds were compared, as far as they are not the row's own."""
    if not is_whole(compared):
        return [_named(compared)] if compared != own else []
    said = [_told("seed", _seeds(compared))] if _seeds(compared) != _seeds(own) else []
    return said + ([_told("fold", _folds(compared))] if _folds(compared) != _folds(own) else [])


def _told(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _less(line: Line, against: str) -> str:
    """The difference; behind it what the table's columns do not say: less what, over which pairs, seeds and folds."""
    effect = line.effect
    if effect is None:
        return UNKNOWN
    said = [f"less {line.measure}"] if line.measure != against else []
    said += [f"n {effect.cases.n}"] if effect.cases.n != line.cases.n else []
    said += _those_of(line.compared, line.trainings) if line.trainings else []
    return signed(effect.difference, line.metric) + (f" ({'; '.join(said)})" if said else "")


def _effect_size(effect: Effect | None) -> str:
    """Two decimals; a dash where there is no spread to measure it in."""
    size = effect.cases.cohens_dz if effect is not None else math.nan
    return f"{size:+.2f}".replace("-", MINUS) if math.isfinite(size) else UNKNOWN


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
        "folds", "seed_sd", "case_low", "case_high", "cases", "difference", "difference_low", "difference_high",
        "difference_interval", "pairs", "shared_seeds", "shared_folds", "t_p", "holm_p", "wilcoxon_p", "cohens_dz",
        "marks",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for line in lines:
        was = line.published
        rows.append(
            (
                table.name, line.printed, line.task, line.part, line.metric, exact(was.value if was else math.nan),
                exact(was.sd if was else math.nan), "*" if was and was.significant else "", exact(line.measured),
                str(len(line.by_seed)), " ".join(map(str, _folds(line.trainings))), exact(line.seed_sd),
                exact(line.cases.low), exact(line.cases.high), str(line.cases.n), *_compared(line), line.marks,
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


def _compared(line: Line) -> tuple[str, ...]:
    """The columns of a difference, from itself to its effect size; all empty where there is none."""
    if line.effect is None:
        return ("",) * 11
    effect, over_cases = line.effect, line.effect.cases
    return (
        *map(exact, (effect.difference, over_cases.low, over_cases.high)),
        line.difference_interval,
        str(over_cases.n),
        str(len(effect.seeds)),
        " ".join(map(str, _folds(line.compared))),
        *map(exact, (over_cases.t_p, line.holm_p, over_cases.wilcoxon_p, over_cases.cohens_dz)),
    )


def _short(task: str) -> str:
    """A task's number, where it has one."""
    return task.partition("_")[0]


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
