"""A part of a run's own split: segment it, find out what to clean up, score it into the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medvisionllama.cleanup import Trials, labels_to_clean, write_trials
from medvisionllama.config import Experiment, read_experiment
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import (
    read_grid,
    read_label_map,
    write_label_map,
)
from medvisionllama.data.plan import IGNORED, Plan, read_plan
from medvisionllama.data.preprocess import label_to_model_grid
from medvisionllama.data.splits import read_splits
from medvisionllama.data.task import Case
from medvisionllama.errors import InputError
from medvisionllama.evaluate import Target, score_volume, summarise, tolerance_of
from medvisionllama.geometry import Affine, Grid, Volume, ras_grid
from medvisionllama.largest_component import keep_largest
from medvisionllama.listener import Listener, Silent
from medvisionllama.loading import PLAIN, Inference, load_segmenter, note_limits
from medvisionllama.machine import Machine
from medvisionllama.pictures import (
    keep_pictures,
    volume_rows,
)
from medvisionllama.predict import Segmenter
from medvisionllama.reference import read_reference
from medvisionllama.run_folder import RunFolder, ScoreRow, VolumeRow, read_json, write_json, write_scores, write_volumes
from medvisionllama.segment import segmented


def predict_part(
    run: RunFolder,
    part: str,
    machine: Machine,
    *,
    inference: Inference = PLAIN,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Segment and score ``validation`` or ``test`` of the run's own split; returns the run's summary with the part.

    A folder with folds is one ensemble, whose test part alone can be asked for. Scoring the validation part also
    finds out which classes to clean up, and applies it there as everywhere else.

    Raises:
        InputError: The run is not finished, its data set is gone, the part is empty, or it is a fold's own.
    """
    listener = listener or Silent()
    run.refuse_other_version()
    folds = run.folds()
    experiment, plan, names = _asked_for(run, folds, part)
    note_limits(folds, inference, listener)
    task = read_task(machine.dataset or experiment.dataset)
    cases = task.named(names)
    trying = part == "validation" and inference.cleanup
    segmenter = load_segmenter([run.path], machine, replace(inference, cleanup=inference.cleanup and not trying))
    grids: tuple[str | None, ...] = ("native", "model") if plan.protocol == "paper" else (None,)
    trials = Trials(plan)
    for case in listener.track(cases, f"Segmenting {part}"):
        image = case.read_image()
        for grid in grids:
            target = run.part(part, grid) / "predictions" / f"{case.name}.nii.gz"
            if grid == "model":
                write_label_map(_on_model_grid(segmenter, case, image), target)
                continue
            predicted = segmented(segmenter, image, case.image, target, inference, run.part(part, grid))
            write_label_map(predicted, target, like=case.image)
            if trying:
                reference = read_reference(case, plan)
                trials.add(predicted.array, reference.volume.array, reference.labelled)
    clean: frozenset[int] = frozenset()
    if trying:
        write_trials(run, trials.results())
        clean = labels_to_clean([run])
    tolerance = tolerance_of(task) if experiment.tolerance_mm is None else experiment.tolerance_mm
    summary = _summary_so_far(run, folds)
    for grid in grids:
        out = run.part(part, grid)
        rows: list[ScoreRow] = []
        volumes: list[VolumeRow] = []
        for case in cases:
            predicted = _cleaned(out / "predictions" / f"{case.name}.nii.gz", clean)
            if grid == "model":
                judged, compared = predicted, _reference_on_model_grid(case, plan)
            else:
                reference = read_reference(case, plan)
                judged, compared = reference.judged(predicted), reference.volume
            rows += score_volume(judged, compared, _targets(plan), tolerance, case.name)
            volumes += volume_rows(judged, compared, _targets(plan), case.name)
        write_scores(out / "scores.csv", rows)
        write_volumes(out / "volumes.csv", volumes)
        scores = summarise(rows, tolerance, grid or "native")
        write_json(out / "summary.json", scores)
        if grid == "model":
            summary[part]["model_grid"] = _in_short(scores, rows)
        else:
            keep_pictures(out, task, plan, rows)
            summary[part] = _in_short(scores, rows)
    write_json(run.summary, summary)
    written: dict[str, Any] = read_json(run.summary)  # where a number that does not exist is None
    return written


def _asked_for(run: RunFolder, folds: Sequence[RunFolder], part: str) -> tuple[Experiment, Plan, Sequence[str]]:
    """Experiment and plan (the first fold's) and the names of the part's cases."""
    experiment, plan, splits = (
        read_experiment(folds[0].config),
        read_plan(folds[0].plan),
        read_splits(folds[0].splits),
    )
    names = splits.test if part == "test" else splits.validation(experiment.fold)
    if len(folds) > 1:
        if part != "test":
            raise InputError(
                f"{run.path} holds folds, each with a {part} part of its own",
                mend=f"Name one of them, such as {folds[0].path}, or ask for the test part.",
            )
        if any(set(read_splits(fold.splits).test) != set(names) for fold in folds):
            raise InputError(f"the folds of {run.path} have different test parts", mend="Train them from one split.")
    if not names:
        raise InputError(f"the run's split has no {part} part", mend="Add cases, or ask for the other part.")
    return experiment, plan, names


# What a fold's summary says of itself alone; the rest holds for the ensemble of all folds too.
_OF_ONE_FOLD = ("fold", "steps", "seconds", "best_step", "cases", "command", "validation", "test")


def _summary_so_far(run: RunFolder, folds: Sequence[RunFolder]) -> dict[str, Any]:
    """The run's own summary; for folds together, before it is first written, what their first says of all."""
    if run.summary.exists():
        known: dict[str, Any] = read_json(run.summary)
        return known
    if len(folds) == 1 or not folds[0].summary.exists():
        return {}
    first = read_json(folds[0].summary)
    return {key: value for key, value in first.items() if key not in _OF_ONE_FOLD} | {
        "ensemble": [fold.path.name for fold in folds]
    }


def _cleaned(path: Path, labels: frozenset[int]) -> Volume:
    """The label map of a file, of some labels the largest component alone, which then is put into the file too."""
    found = read_label_map(path)
    kept = found.with_array(keep_largest(found.array, labels))
    if kept.array is not found.array:
        write_label_map(kept, path, like=path)
    return kept


def _targets(plan: Plan) -> list[Target]:
    if plan.merged:
        return [Target("foreground", (1,))]
    return [Target(name, labels) for name, labels in plan.targets.items()]


def _on_model_grid(segmenter: Segmenter, case: Case, image: Volume) -> Volume:
    """The prediction on the paper protocol's grid, as the papers must have scored; 0 where ignored."""
    predicted = segmenter.label_map_on_model_grid(image, str(case.image))
    ignored = _numbers_on_model_grid(case, segmenter.plan).array == IGNORED
    return Volume(np.where(ignored, 0, predicted).astype(np.uint8), _model_affine(image.grid, segmenter.plan))


def _reference_on_model_grid(case: Case, plan: Plan) -> Volume:
    numbers = _numbers_on_model_grid(case, plan)
    return numbers.with_array(np.where(numbers.array == IGNORED, 0, numbers.array))


def _numbers_on_model_grid(case: Case, plan: Plan) -> Volume:
    assert case.label is not None
    grid, _ = read_grid(case.image)
    reference = Volume(read_label_map(case.label).array, grid.affine)  # one affine, as in Case.read_pair
    return Volume(label_to_model_grid(reference, plan, str(case.label)), _model_affine(grid, plan))


def _model_affine(grid: Grid, plan: Plan) -> Affine:
    return ras_grid(grid).with_shape(plan.window).affine


def _in_short(summary: dict[str, Any], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """What a run's own summary says of a part: means over classes of means over cases."""
    classes = summary["classes"]

    def mean(metric: str) -> float:
        values = [content[metric]["mean"] for content in classes.values()]
        known = [v for v in values if v is not None and np.isfinite(v)]
        return float(np.mean(known)) if known else float("nan")

    return {
        "dice_mean": mean("dice"),
        "hd95_mm_mean": mean("hd95_mm"),
        "nsd_mean": mean("nsd"),
        "dice": {name: content["dice"]["mean"] for name, content in classes.items()},
        "cases": len({row.case for row in rows}),
    }
