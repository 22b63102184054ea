"""Predictions of any program on equal terms: a folder of label maps is scored as ours and enters the same tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvisionllama.data.decathlon import Task
from medvisionllama.data.nifti import read_label_map
from medvisionllama.data.splits import Splits
from medvisionllama.errors import InputError
from medvisionllama.evaluate import Target, score_volume, tolerance_of
from medvisionllama.evaluate.folders import label_maps_in
from medvisionllama.evaluate.targets import targets_of
from medvisionllama.experiments.rows import PartScores
from medvisionllama.geometry import Volume
from medvisionllama.run_folder import METRICS, ScoreRow


def score_outside(folder: Path, task: Task, splits: Splits, *, merged: bool, fold: int = 0) -> dict[str, PartScores]:
    """Score a folder of label maps, named as the cases, on every part that it holds whole.

    Args:
        folder: The label maps, or a folder of the task's name that holds them.
        task: Whose references they are scored against, each on its own grid.
        splits: Which cases are which part.
        merged: All classes as one, as in the paper protocol.
        fold: Which part validates.

    Returns:
        ``validation`` and ``test``, as far as they are there; of the paper protocol ``validation/native`` ...

    Raises:
        InputError: No part is there whole, a label is not the task's, or a map is on another grid.
    """
    own = folder / Path(task.folder).name
    maps = label_maps_in(own if own.is_dir() else folder)
    parts = {"validation": splits.validation(fold), "test": splits.test}
    whole = {part: cases for part, cases in parts.items() if cases and set(cases) <= set(maps)}
    if not whole:
        lacking = {part: len(set(cases) - set(maps)) for part, cases in parts.items()}
        raise InputError(
            f"{folder} holds neither part of the split whole",
            got=f"lacking {lacking['validation']} validation and {lacking['test']} test cases",
            mend="Predict every case of a part, or write the splits for the other program: `medvisionllama splits`.",
        )
    targets = [Target("foreground", (1,))] if merged else list(targets_of(task))
    tolerance = tolerance_of(task)
    scored = {}
    for part, cases in whole.items():
        rows: list[ScoreRow] = []
        for case in task.named(cases):
            assert case.label is not None
            prediction, reference = read_label_map(maps[case.name]), read_label_map(case.label)
            if merged:
                prediction, reference = _merged(prediction), _merged(reference)
            rows += score_volume(prediction, reference, targets, tolerance, case.name)
        scored[f"{part}/native" if merged else part] = as_part(rows, tolerance)
    return scored


def as_part(rows: Sequence[ScoreRow], tolerance_mm: float | None) -> PartScores:
    """Score rows of one part as tables by metric."""
    cases, classes = tuple(dict.fromkeys(r.case for r in rows)), tuple(dict.fromkeys(r.class_name for r in rows))
    cells = {(row.metric, row.class_name, row.case): row.value for row in rows}
    values = {m: np.array([[cells[m, name, case] for case in cases] for name in classes]) for m in METRICS}
    return PartScores(cases, classes, values, tolerance_mm)


def _merged(volume: Volume) -> Volume:
    return volume.with_array((volume.array > 0).astype(np.uint8))
