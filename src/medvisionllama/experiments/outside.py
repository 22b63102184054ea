"""Predictions of any program on equal terms: a folder of label maps is scored as ours and enters the same tables."""

from __future__ import annotations

from pathlib import Path

from medvisionllama.data.nifti import read_label_map
from medvisionllama.data.splits import Splits
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.evaluate import (
    foreground_of,
    label_maps_in,
    labels_in,
    score_volume,
    targets_of,
    tolerance_of,
    where_labelled,
)
from medvisionllama.experiments.rows import PartScores, part_scores
from medvisionllama.geometry import Volume
from medvisionllama.run_folder import ScoreRow


def parts_held(folder: Path, task: Task, splits: Splits, fold: int = 0) -> dict[str, dict[str, Path]]:
    """Which parts a folder of label maps holds whole, and where each case's map lies; reads none of them.

    Args:
        folder: The label maps, named as the cases, or a folder of the task's name that holds them.
        task: Whose cases they are.
        splits: Which cases are which part.
        fold: Which part validates.

    Returns:
        Case to file by ``validation`` and ``test``, as far as they are there.

    Raises:
        InputError: No part is there whole.
    """
    own = folder / Path(task.folder).resolve().name
    maps = label_maps_in(own if own.is_dir() else folder)
    parts = {"validation": splits.validation(fold), "test": splits.test}
    whole = {part: cases for part, cases in parts.items() if cases and set(cases) <= set(maps)}
    if not whole:
        lacking = {part: len(set(cases) - set(maps)) for part, cases in parts.items()}
        raise InputError(
            f"{folder} holds neither part of the split whole",
            got=f"of {task.name} lacking {lacking['validation']} validation and {lacking['test']} test cases",
            mend="Predict every case of a part, or write the splits for the other program: `medvisionllama splits`.",
        )
    return {part: {case: maps[case] for case in cases} for part, cases in whole.items()}


def score_outside(folder: Path, task: Task, splits: Splits, *, merged: bool, fold: int = 0) -> dict[str, PartScores]:
    """Score a folder of label maps on every part that it holds whole, as ours are: where somebody has labelled.

    Args:
        folder: As :func:`parts_held` takes it.
        task: Whose references they are scored against, each on its own grid.
        splits: Which cases are which part.
        merged: All classes as one, as in the paper protocol.
        fold: Which part validates.

    Returns:
        ``validation`` and ``test``, as far as they are there; of the paper protocol ``validation/native`` ...

    Raises:
        InputError: No part is there whole, a label is not the task's, or a map is on another grid.
    """
    targets = [foreground_of(task)] if merged else list(targets_of(task))
    tolerance = tolerance_of(task)
    scored = {}
    for part, maps in parts_held(folder, task, splits, fold).items():
        rows: list[ScoreRow] = []
        for case in task.named(list(maps)):
            prediction = read_label_map(maps[case.name])
            prediction, reference = where_labelled(prediction, case.read_label(), task.ignored, case.name)
            _refuse_strange_labels(prediction, task, maps[case.name])
            rows += score_volume(prediction, reference, targets, tolerance, case.name)
        scored[f"{part}/native" if merged else part] = part_scores(rows, tolerance)
    return scored


def _refuse_strange_labels(prediction: Volume, task: Task, path: Path) -> None:
    strange = sorted(set(labels_in(prediction, str(path))) - set(task.classes))
    if strange:
        raise InputError(
            f"{path} holds labels that are not the task's",
            got=", ".join(map(str, strange)),
            expected=", ".join(f"{value} ({name})" for value, name in {0: "background", **task.classes}.items()),
            mend="Write label maps with the task's own numbers.",
        )
