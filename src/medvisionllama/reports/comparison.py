"""Paired comparison of evaluated folders: the same cases, scored for several systems.

Every folder is compared with the first, per class and metric and over all classes. The pairing unit is the case: means,
differences and tests are over the cases in which both systems have a value. Where one is rightly empty and the other
raises a false alarm there is no pair; such cases are counted and named beside the table. A mark ``*`` says raw p < .05,
as the papers print it; a dagger, that it survives Holm's correction over the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.reports.outcomes import COUNTED, outcome_of, tally
from medvisionllama.reports.statistics import Paired, Summary, holm, paired, summary_of
from medvisionllama.run_folder import METRICS, read_json, read_scores, write_json, write_text

SIGNIFICANCE = 0.05
OVERALL = "overall"
LOWER_IS_BETTER = ("hd95_mm",)
DECIMALS = {"hd95_mm": 2}
NAMED_AT_MOST = 10  # cases in a note; the JSON form names all
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
        outcomes: ``(classes,cases)``, names of :data:`~medvisionllama.reports.outcomes.Outcome`.
        tolerance_mm: Of NSD, as far as ``summary.json`` tells.
        grid: As ``summary.json`` tells.
    """

    name: str
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    regions: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    outcomes: NDArray[np.str_]
    tolerance_mm: float | None
    grid: str | None

    def own_classes(self) -> list[int]:
        """Where in ``classes`` those stand that are no regions."""
        return [index for index, name in enumerate(self.classes) if name not in self.regions]

    def places(self, class_name: str) -> list[int]:
        """Where in ``classes`` one stands; for :data:`OVERALL` all that are no regions."""
        return self.own_classes() if class_name == OVERALL else [self.classes.index(class_name)]

    def counts(self, class_name: str) -> dict[str, int]:
        """How many cases were missed, false alarms and absent; for :data:`OVERALL` the sum over classes."""
        return tally(self.outcomes[self.places(class_name)].ravel().tolist())

    def compared(self) -> list[str]:
        """What is compared: every class and region, and all classes together where there are several."""
        return [*self.classes, *([OVERALL] if len(self.own_classes()) > 1 else [])]


@dataclass(frozen=True)
class Comparison:
    """One cell: a system against the first, in one class and metric.

    Both summaries are over the pairs that are tested, so that what is printed is what is compared. The counts are over
    all cases.
    """

    first: str
    second: str
    class_name: str
    metric: str
    first_summary: Summary
    second_summary: Summary
    first_counts: dict[str, int]
    second_counts: dict[str, int]
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
        InputError: Cases, classes or references are not the same everywhere (they are named), NSD was scored with
            different tolerances, or on different grids.
    """
    if len(folders) < 2:
        raise InputError("nothing to compare", expected="two evaluated folders or more")
    names = _distinct_names(folders)
    scores = [read_folder(folder, name) for folder, name in zip(folders, names, strict=True)]
    scores, notes = _with_absent_labels(scores)
    for other in scores[1:]:
        _check_paired(scores[0], other)
    scores = [_in_order_of(other, scores[0]) for other in scores]
    for other in scores[1:]:
        _check_references(scores[0], other)
    cells = compare(scores, test)
    unpaired = _unpaired(scores)
    notes += _notes(scores, unpaired, cells)
    markdown = to_markdown(scores, cells, test, notes)
    result = {
        "folders": dict(zip(names, map(str, folders), strict=True)),
        "pairing_unit": "case",
        "cases": list(scores[0].cases),
        "tolerance_mm": scores[0].tolerance_mm,
        "grid": scores[0].grid,
        "marks_from": test,
        "notes": notes,
        "unpaired": unpaired,
        "comparisons": [_as_dict(cell) for cell in cells],
    }
    if out is not None:
        write_json(out / "comparison.json", result)
        write_text(out / "comparison.csv", to_csv(cells))
        write_text(out / "comparison.md", markdown)
        write_text(out / "comparison.tex", to_latex(scores, cells, test, notes))
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
    counted = {
        (class_name, case): outcome
        for class_name, by_outcome in summary.get("outcomes", {}).items()
        for outcome, its_cases in by_outcome.items()
        for case in its_cases
    }

    def outcome(class_name: str, case: str) -> str:
        guessed = outcome_of({metric: cells[metric, class_name, case] for metric in METRICS})
        # The values go first, as the summary may be an older one: it only settles what they leave open.
        return (
            counted.get((class_name, case), "both") if guessed == "false_alarms" and "outcomes" in summary else guessed
        )

    outcomes = np.array([[outcome(class_name, case) for case in cases] for class_name in classes])
    return Scores(name, cases, classes, regions, values, outcomes, summary.get("tolerance_mm"), summary.get("grid"))


def _with_absent_labels(scores: Sequence[Scores]) -> tuple[list[Scores], list[str]]:
    """The same, but a label that only some folders know, found there without class names, is absent in the others.

    Without a dataset.json classes are the numbers found in any label map of a folder: one that is not listed lies in no
    prediction there, and in no reference.
    """
    numbers = {name for each in scores for name in each.classes if name not in each.regions}
    if not all(name.isdecimal() for name in numbers) or len({each.regions for each in scores}) > 1:
        return list(scores), []
    filled, notes = [], []
    for each in scores:
        new = sorted(numbers - set(each.classes), key=int)
        if new:
            notes.append(f"Labels that no label map of {each.name} holds, absent there: {', '.join(new)}.")
        classes = (*each.classes, *new)
        order = [*sorted((c for c in classes if c not in each.regions), key=int), *each.regions]
        rows = [classes.index(name) for name in order]
        nothing = np.full((len(new), len(each.cases)), math.nan)
        values = {metric: np.concatenate([table, nothing])[rows] for metric, table in each.values.items()}
        outcomes = np.concatenate([each.outcomes, np.full(nothing.shape, "absent", dtype="<U12")])[rows]
        filled.append(replace(each, classes=tuple(order), values=values, outcomes=outcomes))
    return filled, notes


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
                mend="Score both on the same references"
                + (", and with the same --dataset and --regions." if what == "class" else "."),
            )
    for what, one, two in (("tolerance_mm", first.tolerance_mm, other.tolerance_mm), ("grid", first.grid, other.grid)):
        if one != two and None not in (one, two):
            raise InputError(
                f"{first.name} and {other.name} were scored differently",
                got=f"{what} {one} and {two}",
                mend="Evaluate both in the same way.",
            )


def _check_references(first: Scores, other: Scores) -> None:
    """Whether a structure is there is the reference's to say: two folders that differ in it had different ones."""
    there = [np.isin(each.outcomes, ("both", "missed")) for each in (first, other)]
    odd = [f"{first.classes[c]} in {first.cases[n]}" for c, n in np.argwhere(there[0] != there[1])]
    if odd:
        raise InputError(
            f"{first.name} and {other.name} were not scored against the same references",
            got=f"in one of them alone the reference has {_some(odd)}",
            mend="Score both on the same references.",
        )


def compare(scores: Sequence[Scores], test: Test = "t") -> list[Comparison]:
    """Every later system against the first, per class and metric, then over all classes where there are several.

    Cases and classes stand in the same order in all.
    """
    first = scores[0]
    found = []
    for other in scores[1:]:
        for class_name in first.compared():
            counts = (first.counts(class_name), other.counts(class_name))
            for metric in METRICS:
                one, two = _pair(first, other, class_name, metric)
                summaries = (summary_of(one), summary_of(two))
                found.append((other.name, class_name, metric, *summaries, *counts, paired(one, two)))
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
    outcomes = scores.outcomes[np.ix_(rows, columns)]
    return replace(
        scores, cases=first.cases, classes=first.classes, regions=first.regions, values=values, outcomes=outcomes
    )


def _pair(first: Scores, other: Scores, class_name: str, metric: str) -> tuple[NDArray[np.float64], ...]:
    """``(cases,)`` of both, NaN in both where either knows nothing; overall over the classes that both know in a case,
    so that means are of the same things.
    """
    places = first.places(class_name)
    one, two = first.values[metric][places], other.values[metric][places]
    unknown = np.isnan(one) | np.isnan(two)
    return tuple(_mean_of_known(np.where(unknown, math.nan, values)) for values in (one, two))


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(cases,)`` from ``(classes,cases)``: the mean without NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _unpaired(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """By class and system the cases in which not both have a value, and why."""
    first, found = scores[0], []
    for other in scores[1:]:
        for place, class_name in enumerate(first.classes):
            absent = [each.outcomes[place] == "absent" for each in (first, other)]
            why = {
                "only_first_absent": absent[0] & ~absent[1],
                "only_second_absent": absent[1] & ~absent[0],
                "both_absent": absent[0] & absent[1],
            }
            if any(where.any() for where in why.values()):
                cases = {name: [first.cases[n] for n in np.flatnonzero(where)] for name, where in why.items()}
                found.append({"class": class_name, "first": first.name, "second": other.name, **cases})
    return found


def _notes(scores: Sequence[Scores], unpaired: Sequence[dict[str, Any]], cells: Sequence[Comparison]) -> list[str]:
    """What is left out of means and tests, in sentences."""
    notes = []
    for entry in unpaired:
        why = [
            f"in {len(entry[key])} {empty} is rightly empty where {full} raises a false alarm ({_some(entry[key])})"
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


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _as_dict(cell: Comparison) -> dict[str, Any]:
    return {
        "first": cell.first,
        "second": cell.second,
        "class": cell.class_name,
        "metric": cell.metric,
        "first_summary": cell.first_summary.as_dict(),
        "second_summary": cell.second_summary.as_dict(),
        "first_counts": cell.first_counts,
        "second_counts": cell.second_counts,
        **cell.paired.as_dict(),
        "holm_p": cell.holm_p,
        "better": cell.better(),
        "marks": cell.marks,
    }


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


COUNTS_LEGEND = (
    "Over all cases, paired or not: missed and false alarms count as 0 (HD95 as the diagonal), absent not at all."
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
