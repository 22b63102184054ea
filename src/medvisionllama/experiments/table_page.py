"""A table of the papers with what was measured beside what was printed, as Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medvisionllama.experiments.paper_tables import PaperTable
from medvisionllama.experiments.table_counts import CLOCKED, Counted
from medvisionllama.experiments.table_lines import Line
from medvisionllama.experiments.tables import Published
from medvisionllama.reports.wording import UNKNOWN, exact, number, p_value, signed


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
