"""Paired comparison of evaluated folders: the same cases, scored for several systems.

Every folder is compared with the first, per class and metric and over all classes. The pairing unit is the case. A mark
``*`` says raw p < .05, as the papers print it; a dagger, that it survives Holm's correction over the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.reports.statistics import Paired, Summary, holm, paired, summary_of
from medvisionllama.run_folder import METRICS, read_json, read_scores, write_json, write_text

SIGNIFICANCE = 0.05
OVERALL = "overall"
LOWER_IS_BETTER = ("hd95_mm",)
DECIMALS = {"hd95_mm": 2}
Test = Literal["t", "wilcoxon"]


@dataclass(frozen=True)
class Scores:
    """One evaluated folder.

    Attributes:
        name: How tables call it.
        cases: In order.
        classes: In order, regions too.
        regions: Those of ``classes`` that overlap others.
        values: By metric ``(classes,cases)``, NaN where absent.
        tolerance_mm: Of NSD, as far as ``summary.json`` tells.
        grid: As ``summary.json`` tells.
    """

    name: str
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    regions: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    tolerance_mm: float | None
    grid: str | None

    def of(self, class_name: str, metric: str) -> NDArray[np.float64]:
        """``(cases,)``; for :data:`OVERALL` each case's mean over the classes it has."""
        if class_name != OVERALL:
            values: NDArray[np.float64] = self.values[metric][self.classes.index(class_name)]
            return values
        return _mean_of_known(self.values[metric][self.own_classes()])

    def own_classes(self) -> list[int]:
        """Where in ``classes`` those stand that are no regions."""
        return [index for index, name in enumerate(self.classes) if name not in self.regions]


@dataclass(frozen=True)
class Comparison:
    """One cell: a system against the first, in one class and metric."""

    first: str
    second: str
    class_name: str
    metric: str
    first_summary: Summary
    second_summary: Summary
    paired: Paired
    holm_p: float
    marks: str

    def better(self) -> str:
        """The name of the system with the better mean, empty where they are equal or unknown."""
        if math.isnan(self.paired.difference) or self.paired.difference == 0:
            return ""
        gains = (self.paired.difference > 0) != (self.metric in LOWER_IS_BETTER)
        return self.second if gains else self.first


def compare_folders(folders: Sequence[Path], out: Path | None = None, *, test: Test = "t") -> dict[str, Any]:
    """Compare folders that ``evaluate`` wrote, each with the first.

    Args:
        folders: Two or more with ``scores.csv``; their ``summary.json`` is heeded where it is there.
        out: Where ``comparison.csv``, ``.json``, ``.md`` and ``.tex`` go; None writes nothing.
        test: Whose p the marks and Holm's correction are about; both are always given.

    Returns:
        What ``comparison.json`` holds, and under ``"markdown"`` the table to print.

    Raises:
        InputError: Cases or classes are not the same everywhere (they are named), NSD was scored with different
            tolerances, or on different grids.
    """
    if len(folders) < 2:
        raise InputError("nothing to compare", expected="two evaluated folders or more")
    names = _distinct_names(folders)
    scores = [read_folder(folder, name) for folder, name in zip(folders, names, strict=True)]
    for other in scores[1:]:
        _check_paired(scores[0], other)
    cells = compare(scores, test)
    markdown = to_markdown(scores, cells, test)
    result = {
        "folders": dict(zip(names, map(str, folders), strict=True)),
        "pairing_unit": "case",
        "cases": list(scores[0].cases),
        "tolerance_mm": scores[0].tolerance_mm,
        "grid": scores[0].grid,
        "marks_from": test,
        "comparisons": [_as_dict(cell) for cell in cells],
    }
    if out is not None:
        write_json(out / "comparison.json", result)
        write_text(out / "comparison.csv", to_csv(cells))
        write_text(out / "comparison.md", markdown)
        write_text(out / "comparison.tex", to_latex(scores, cells, test))
    return result | {"markdown": markdown}


def read_folder(folder: Path, name: str) -> Scores:
    """Read an evaluated folder.

    Raises:
        InputError: There is no score table, it is empty, or it holds a cell twice or not at all.
    """
    rows = read_scores(folder / "scores.csv")
    cases = tuple(dict.fromkeys(row.case for row in rows))
    classes = tuple(dict.fromkeys(row.class_name for row in rows))
    cells = {(row.metric, row.class_name, row.case): row.value for row in rows}
    if not rows or len(cells) < len(rows) or len(cells) != len(METRICS) * len(classes) * len(cases):
        raise InputError(
            f"{folder / 'scores.csv'} is not one value per case, class and metric",
            got=f"{len(rows)} rows, {len(cases)} cases, {len(classes)} classes",
            mend="Run `medvisionllama evaluate` again.",
        )
    values = {m: np.array([[cells[m, name, case] for case in cases] for name in classes]) for m in METRICS}
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    regions = tuple(summary.get("regions", ()))
    return Scores(name, cases, classes, regions, values, summary.get("tolerance_mm"), summary.get("grid"))


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("a folder is given twice", got=", ".join(map(str, folders)))


def _check_paired(first: Scores, other: Scores) -> None:
    for what, ours, theirs in (("case", first.cases, other.cases), ("class", first.classes, other.classes)):
        odd = [f"{name} only in {first.name}" for name in ours if name not in theirs]
        odd += [f"{name} only in {other.name}" for name in theirs if name not in ours]
        if odd:
            raise InputError(
                f"{first.name} and {other.name} were not scored on the same {what}{'s' if what == 'case' else 'es'}",
                got=", ".join(odd),
                mend="Score both on the same references.",
            )
    for what, one, two in (("tolerance_mm", first.tolerance_mm, other.tolerance_mm), ("grid", first.grid, other.grid)):
        if one != two and None not in (one, two):
            raise InputError(
                f"{first.name} and {other.name} were scored differently",
                got=f"{what} {one} and {two}",
                mend="Evaluate both in the same way.",
            )


def compare(scores: Sequence[Scores], test: Test = "t") -> list[Comparison]:
    """Every later system against the first, per class and metric, then over all classes where there are several."""
    first = scores[0]
    own = [name for name in first.classes if name not in first.regions]
    names = [*first.classes, *([OVERALL] if len(own) > 1 else [])]
    found = []
    for other in scores[1:]:
        other = _in_order_of(other, first)
        for class_name in names:
            for metric in METRICS:
                one, two = _pair(first, other, class_name, metric)
                summaries = (summary_of(first.of(class_name, metric)), summary_of(other.of(class_name, metric)))
                found.append((other.name, class_name, metric, *summaries, paired(one, two)))
    p_values = [_p(cell[-1], test) for cell in found]
    return [
        Comparison(first.name, *cell, adjusted, marks(p, adjusted))
        for cell, p, adjusted in zip(found, p_values, holm(p_values), strict=True)
    ]


def _p(result: Paired, test: Test) -> float:
    return result.t_p if test == "t" else result.wilcoxon_p


def marks(p: float, holm_p: float) -> str:
    """``*`` where raw p < .05, a dagger after it where Holm's p is too."""
    return ("*" if p < SIGNIFICANCE else "") + ("†" if holm_p < SIGNIFICANCE else "")


def _in_order_of(scores: Scores, first: Scores) -> Scores:
    rows = [scores.classes.index(name) for name in first.classes]
    columns = [scores.cases.index(case) for case in first.cases]
    values = {metric: table[np.ix_(rows, columns)] for metric, table in scores.values.items()}
    return Scores(scores.name, first.cases, first.classes, first.regions, values, scores.tolerance_mm, scores.grid)


def _pair(first: Scores, other: Scores, class_name: str, metric: str) -> tuple[NDArray[np.float64], ...]:
    """``(cases,)`` of both; overall over the classes that both know in a case, so that means are of the same things."""
    if class_name != OVERALL:
        return first.of(class_name, metric), other.of(class_name, metric)
    own = first.own_classes()
    one, two = first.values[metric][own], other.values[metric][own]
    unknown = np.isnan(one) | np.isnan(two)
    return tuple(_mean_of_known(np.where(unknown, math.nan, values)) for values in (one, two))


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(cases,)`` from ``(classes,cases)``: the mean without NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _as_dict(cell: Comparison) -> dict[str, Any]:
    return {
        "first": cell.first,
        "second": cell.second,
        "class": cell.class_name,
        "metric": cell.metric,
        "first_summary": cell.first_summary.as_dict(),
        "second_summary": cell.second_summary.as_dict(),
        **cell.paired.as_dict(),
        "holm_p": cell.holm_p,
        "better": cell.better(),
        "marks": cell.marks,
    }


def to_csv(cells: Iterable[Comparison]) -> str:
    """One line a comparison; empty where a number is not known."""
    header = "class,metric,first,second,first_mean,first_sd,second_mean,second_sd,n,left_out,difference,low,high"
    lines = [header + ",t_p,wilcoxon_p,holm_p,cohens_dz,rank_biserial,marks"]
    for c in cells:
        names = [_quoted(text) for text in (c.class_name, c.metric, c.first, c.second)]
        means = [c.first_summary.mean, c.first_summary.sd, c.second_summary.mean, c.second_summary.sd]
        test = [c.paired.n, c.paired.left_out, c.paired.difference, c.paired.low, c.paired.high]
        test += [c.paired.t_p, c.paired.wilcoxon_p, c.holm_p, c.paired.cohens_dz, c.paired.rank_biserial]
        lines.append(",".join([*names, *("" if math.isnan(v) else f"{v:.9g}" for v in (*means, *test)), c.marks]))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def _table(scores: Sequence[Scores], cells: Sequence[Comparison]) -> list[list[str]]:
    """Header and rows: class, metric, n, mean ± SD of every system, marks on the later ones."""
    rows = [["class", "metric", "n", *(s.name for s in scores)]]
    by_cell: dict[tuple[str, str], list[Comparison]] = {}
    for cell in cells:
        by_cell.setdefault((cell.class_name, cell.metric), []).append(cell)
    for (class_name, metric), found in by_cell.items():
        pairs = "/".join(dict.fromkeys(str(cell.paired.n) for cell in found))
        told = [_told(found[0].first_summary, metric)]
        told += [_told(cell.second_summary, metric) + cell.marks for cell in found]
        rows.append([class_name, metric, pairs, *told])
    return rows


def _told(summary: Summary, metric: str) -> str:
    if summary.n == 0:
        return "-"
    places = DECIMALS.get(metric, 3)
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:.{places}f}"
    return f"{summary.mean:.{places}f}{spread}"


def _legend(scores: Sequence[Scores], cells: Sequence[Comparison], test: Test) -> str:
    name = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}[test]
    tolerance = scores[0].tolerance_mm
    return (
        f"Mean ± SD over cases. Pairing unit: case; n: pairs. * p < .05 against {scores[0].name} (two-sided {name}); "
        f"† also after Holm's correction over the {sum(not math.isnan(c.holm_p) for c in cells)} tests of this table."
        + ("" if tolerance is None else f" NSD at {tolerance:g} mm.")
    )


def to_markdown(scores: Sequence[Scores], cells: Sequence[Comparison], test: Test = "t") -> str:
    """A table of means with marks, and what the marks mean."""
    header, *rows = ([text.replace("|", "\\|").replace("*", "\\*") for text in row] for row in _table(scores, cells))
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_legend(scores, cells, test).replace('*', chr(92) + '*')}\n"


def to_latex(scores: Sequence[Scores], cells: Sequence[Comparison], test: Test = "t") -> str:
    """The same table for a paper (needs the booktabs package)."""
    header, *rows = ([_escaped(text) for text in row] for row in _table(scores, cells))
    lines = [r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}", r"\toprule", " & ".join(header) + r" \\"]
    lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + f"\n% {_legend(scores, cells, test)}\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "*": r"$^{*}$",
    "†": r"$^{\dagger}$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
