"""A comparison in words and tables: CSV, Markdown, LaTeX, and what is left out of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from medvisionllama.reports.comparison import Comparison, Test
from medvisionllama.reports.evaluated import OVERALL, Scores, named_briefly
from medvisionllama.reports.outcomes import COUNTED
from medvisionllama.reports.statistics import Summary
from medvisionllama.run_folder import METRICS

DECIMALS = {"hd95_mm": 2}
COUNTS_LEGEND = (
    "Over all cases, paired or not: missed and false alarms count as 0 (HD95 as the diagonal), absent not at all."
)


def left_out_notes(
    scores: Sequence[Scores], unpaired: Sequence[dict[str, Any]], cells: Sequence[Comparison]
) -> list[str]:
    """What is left out of means and tests, in sentences."""
    notes = []
    for entry in unpaired:
        why = [
            f"in {len(entry[key])} {empty} is rightly empty where {full} raises a false alarm "
            f"({named_briefly(entry[key])})"
            for key, empty, full in (
                ("only_first_absent", entry["first"], entry["second"]),
                ("only_second_absent", entry["second"], entry["first"]),
            )
            if entry[key]
        ]
        why += [f"in {len(entry['both_absent'])} both are rightly empty"] if entry["both_absent"] else []
        number = sum(len(entry[key]) for key in ("only_first_absent", "only_second_absent", "both_absent"))
        notes.append(
            f"{entry['class']}, {entry['second']} against {entry['first']}: {number} of {len(scores[0].cases)} cases "
            f"are in no mean and no test: {'; '.join(why)}."
        )
    for other in scores[1:] if OVERALL in scores[0].compared() else ():
        mine = [e for e in unpaired if e["second"] == other.name and e["class"] not in scores[0].regions]
        alone = [sum(len(e[key]) for e in mine) for key in ("only_first_absent", "only_second_absent")]
        if any(alone):
            notes.append(
                f"{OVERALL}, {other.name} against {scores[0].name}: false alarms in classes that the other leaves "
                f"rightly empty are in no mean: {alone[0]} of {other.name}, {alone[1]} of {scores[0].name}."
            )
    dice = {(c.class_name, c.second): c.paired.left_out for c in cells if c.metric == "dice"}
    for cell in cells:
        more = cell.paired.left_out - dice[cell.class_name, cell.second]
        if more and cell.paired.n:  # specificity, where a reference leaves no background
            notes.append(
                f"{cell.class_name}, {cell.second} against {cell.first}: "
                f"{cell.metric} is not known in {more} more cases."
            )
    return notes


def to_csv(cells: Iterable[Comparison]) -> str:
    """One line a comparison; empty where a number is not known or infinite, as it is null in JSON."""
    header = "class,metric,first,second,first_mean,first_sd,second_mean,second_sd,n,left_out,difference,low,high"
    header += ",t_p,wilcoxon_p,holm_p,cohens_dz,rank_biserial,"
    lines = [header + ",".join(f"{side}_{name}" for side in ("first", "second") for name in COUNTED) + ",marks"]
    for c in cells:
        names = [_quoted(text) for text in (c.class_name, c.metric, c.first, c.second)]
        means = [c.first_summary.mean, c.first_summary.sd, c.second_summary.mean, c.second_summary.sd]
        test = [c.paired.n, c.paired.left_out, c.paired.difference, c.paired.low, c.paired.high]
        test += [c.paired.t_p, c.paired.wilcoxon_p, c.holm_p, c.paired.cohens_dz, c.paired.rank_biserial]
        test += [counts[name] for counts in (c.first_counts, c.second_counts) for name in COUNTED]
        lines.append(",".join([*names, *(f"{v:.9g}" if math.isfinite(v) else "" for v in (*means, *test)), c.marks]))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def _table(scores: Sequence[Scores], cells: Sequence[Comparison]) -> list[list[str]]:
    """Header and rows: a line for every class, metric and later system, over the pairs it has with the first."""
    several = len(scores) > 2
    header = ["class", "metric", *(["system"] if several else []), "n", scores[0].name]
    header += ["the system" if several else scores[1].name, "difference [95 %]", "d_z"]
    rows = [header]
    for cell in sorted(cells, key=lambda c: (scores[0].compared().index(c.class_name), METRICS.index(c.metric))):
        names = [cell.class_name, cell.metric, *([cell.second] if several else [])]
        n = f"{cell.paired.n}" + (f" of {cell.paired.n + cell.paired.left_out}" if cell.paired.left_out else "")
        means = [_mean(cell.first_summary, cell.metric), _mean(cell.second_summary, cell.metric) + cell.marks]
        rows.append([*names, n, *means, _difference(cell), _signed(cell.paired.cohens_dz, 2)])
    return rows


def _mean(summary: Summary, metric: str) -> str:
    if summary.n == 0:
        return "-"
    places = DECIMALS.get(metric, 3)
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:.{places}f}"
    return f"{summary.mean:.{places}f}{spread}"


def _difference(cell: Comparison) -> str:
    places = DECIMALS.get(cell.metric, 3)
    ends = [_signed(end, places) for end in (cell.paired.low, cell.paired.high)]
    interval = "" if math.isnan(cell.paired.low) else f" [{ends[0]}, {ends[1]}]"
    return _signed(cell.paired.difference, places) + interval


def _signed(value: float, places: int) -> str:
    """With its sign; nothing that rounds to zero has one."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "+∞" if value > 0 else "-∞"
    text = f"{value:+.{places}f}"
    return text if float(text) else text[1:]


def _counts_table(scores: Sequence[Scores]) -> list[list[str]]:
    """Header and rows: over all cases, what every system missed and invented."""
    header = ["class", "system", *(name.replace("_", " ") for name in COUNTED)]
    rows = [
        [class_name, each.name, *(str(count) for count in each.counts(class_name).values())]
        for class_name in scores[0].compared()
        for each in scores
    ]
    return [header, *rows]


def _legend(scores: Sequence[Scores], cells: Sequence[Comparison], test: Test) -> str:
    name = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}[test]
    tolerance = scores[0].tolerance_mm
    return (
        f"Mean ± SD over pairs. Pairing unit: case; n: cases in which both systems have a value (a case in which the "
        f"reference and a prediction are both empty has none; with a mean over classes, those in which both have one). "
        f"Difference: the system less {scores[0].name}, with its bootstrap interval; d_z: in units of its SD. "
        f"* p < .05 against {scores[0].name} (two-sided {name}); † also after Holm's correction over the "
        f"{sum(not math.isnan(c.holm_p) for c in cells)} tests of this table. "
        + ("NSD: no tolerance is known." if tolerance is None else f"NSD at {tolerance:g} mm.")
    )


def to_markdown(
    scores: Sequence[Scores], cells: Sequence[Comparison], test: Test = "t", notes: Sequence[str] = ()
) -> str:
    """A table of means with marks and what the marks mean; what is in no pair; what was missed and invented."""
    parts = [
        _markdown_table(_table(scores, cells), names=3 if len(scores) > 2 else 2),
        _plain(_legend(scores, cells, test)),
        *([] if not notes else ["\n".join(f"- {_plain(note)}" for note in notes)]),
        _markdown_table(_counts_table(scores), names=2),
        COUNTS_LEGEND,
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Sequence[Sequence[str]], names: int) -> str:
    header, *rows = ([_plain(text) for text in row] for row in table)
    lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("*", "\\*")


def to_latex(scores: Sequence[Scores], cells: Sequence[Comparison], test: Test = "t", notes: Sequence[str] = ()) -> str:
    """The same for a paper (needs the booktabs package)."""
    parts = [
        _latex_table(_table(scores, cells), names=3 if len(scores) > 2 else 2),
        *(_latex_text(text) for text in (_legend(scores, cells, test), *notes)),
        _latex_table(_counts_table(scores), names=2),
        _latex_text(COUNTS_LEGEND),
    ]
    return "\n\n".join(parts) + "\n"


def _latex_table(table: Sequence[Sequence[str]], names: int) -> str:
    header, *rows = ([_escaped(text) for text in row] for row in table)
    lines = [r"\begin{tabular}{" + "l" * names + "r" * (len(header) - names) + "}", r"\toprule"]
    lines += [" & ".join(header) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_text(text: str) -> str:
    return r"\par\noindent{\footnotesize " + _escaped(text) + r"\par}"


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "*": r"$^{*}$",
    "†": r"$^{\dagger}$",
    "∞": r"$\infty$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
