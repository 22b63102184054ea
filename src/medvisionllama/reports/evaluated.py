"""Folders that `evaluate` wrote, read so that they can be compared: the same cases, classes and references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.reports.outcomes import outcome_of, tally
from medvisionllama.run_folder import METRICS, read_json, read_scores

OVERALL = "overall"
NAMED_AT_MOST = 10  # cases in a sentence; the JSON form names all


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


def read_alike(folders: Sequence[Path]) -> tuple[list[Scores], list[str]]:
    """Read evaluated folders whose cases and classes then stand in the first one's order.

    Args:
        folders: With ``scores.csv``; their ``summary.json`` is heeded where it is there.

    Returns:
        The folders, and what is to be told of labels that only some of them know.

    Raises:
        InputError: Cases, classes or references are not the same everywhere (they are named), NSD was scored with
            different tolerances, or on different grids; a folder is given twice.
    """
    names = _distinct_names(folders)
    scores = [read_folder(folder, name) for folder, name in zip(folders, names, strict=True)]
    scores, notes = _with_absent_labels(scores)
    for other in scores[1:]:
        _check_paired(scores[0], other)
    scores = [_in_order_of(other, scores[0]) for other in scores]
    for other in scores[1:]:
        _check_references(scores[0], other)
    return scores, notes


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
            got=f"in one of them alone the reference has {named_briefly(odd)}",
            mend="Score both on the same references.",
        )


def _in_order_of(scores: Scores, first: Scores) -> Scores:
    rows = [scores.classes.index(name) for name in first.classes]
    columns = [scores.cases.index(case) for case in first.cases]
    values = {metric: table[np.ix_(rows, columns)] for metric, table in scores.values.items()}
    outcomes = scores.outcomes[np.ix_(rows, columns)]
    return replace(
        scores, cases=first.cases, classes=first.classes, regions=first.regions, values=values, outcomes=outcomes
    )


def named_briefly(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
