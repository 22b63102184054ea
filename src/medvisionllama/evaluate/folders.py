"""A folder of label maps, from whatever program, against a folder of references.

Nothing is skipped silently: a missing prediction is an error, or scored as missed where that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from medvisionllama.data.decathlon import parse_task
from medvisionllama.data.nifti import case_name, nifti_files, read_label_map
from medvisionllama.data.task import DESCRIPTION, Task
from medvisionllama.errors import InputError
from medvisionllama.evaluate.pair import labels_in, onto_reference, score_lesions, score_volume, where_labelled
from medvisionllama.evaluate.summary import summarise, summarise_lesions
from medvisionllama.evaluate.targets import Target, parse_region, targets_of, tolerance_of
from medvisionllama.metrics.lesions import NO_LESIONS
from medvisionllama.run_folder import METRICS, ScoreRow, write_json, write_scores

Progress = Callable[[int, int, str], None]


def evaluate_folders(
    predictions: Path,
    references: Path,
    out: Path,
    *,
    targets: Sequence[Target] | None = None,
    regions: Sequence[Target | str] = (),
    tolerance_mm: float | None = None,
    dataset: Path | None = None,
    cases: Collection[str] | None = None,
    allow_missing: bool = False,
    resample: bool = False,
    lesion_min_iou: float | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a folder of label maps, from whatever program, against a folder of references of the same file names.

    Args:
        predictions: Holds NIfTI label maps.
        references: The same; every one of them must have its prediction.
        out: Where ``scores.csv`` and ``summary.json`` go.
        targets: Classes to score; by default those of the dataset, else every label found, under its number.
        regions: Unions of labels to score as well, as targets or as text for :func:`parse_region`.
        tolerance_mm: For NSD; by default the Decathlon's for its tasks, else NSD stays empty and a note says so.
        dataset: A folder with dataset.json, or that file; by default one in or directly above ``references``. Its
            regions are what is scored where it has them, and voxels it ignores are left out.
        cases: Score only these references.
        allow_missing: Score a missing prediction as an empty one instead of refusing.
        resample: Take a prediction on another grid to the reference's by nearest neighbour instead of refusing; one
            that lies wholly elsewhere is refused all the same.
        lesion_min_iou: Count lesions as well, two components being one from this intersection over union on:
            ``lesions.csv``, and ``"lesions"`` in the summary.
        processes: Cases scored at a time.
        progress: Called with the cases done, their number, and the last one's name.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError: As :func:`score_volume`; and where predictions are missing, or there is nothing to score.
    """
    task = _task(dataset, references)
    expected, found = label_maps_in(references), label_maps_in(predictions, allow_none=allow_missing)
    if cases is not None:
        _refuse_missing(sorted(set(cases) - set(expected)), references, "")
        expected = {name: path for name, path in expected.items() if name in cases}
    missing = [name for name in expected if name not in found]
    if not allow_missing:
        _refuse_missing(missing, predictions, "Predict them, or pass --allow-missing to score them as missed.")
    targets = targets if targets is not None else targets_of(task) if task else None
    extra = tuple(r if isinstance(r, Target) else parse_region(r, task.classes if task else None) for r in regions)
    tolerance_mm = tolerance_mm if tolerance_mm is not None else tolerance_of(task) if task else None
    if lesion_min_iou is not None and not 0 < lesion_min_iou <= 1:
        raise InputError("lesions match by an intersection over union", got=f"{lesion_min_iou}", expected="0 to 1")
    ignored = task.ignored if task else None
    settings = _Settings(
        None if targets is None else tuple(targets), extra, tolerance_mm, resample, lesion_min_iou, ignored
    )
    jobs = [_Job(name, found.get(name), path, settings) for name, path in expected.items()]
    scored = _run(jobs, processes, progress)
    names = [region.name for region in extra]
    rows = _filled([row for case in scored for row in case.rows], names, dict.fromkeys(METRICS, math.nan))
    notes = _notes(scored, missing, sorted(set(found) - set(expected)) if cases is None else [], extra, tolerance_mm)
    summary = summarise(rows, tolerance_mm, regions=names) | {"notes": notes}
    if lesion_min_iou is not None:
        lesions = _filled([row for case in scored for row in case.lesions], names, NO_LESIONS)
        summary["lesions"] = {"min_iou": lesion_min_iou, "classes": summarise_lesions(lesions)}
        write_scores(out / "lesions.csv", lesions)
    write_scores(out / "scores.csv", rows)
    write_json(out / "summary.json", summary)
    return summary


def label_maps_in(folder: Path, *, allow_none: bool = False) -> dict[str, Path]:
    """The NIfTI files of a folder by case name, in order.

    Raises:
        InputError: The folder is missing, holds none (unless ``allow_none``), or holds a case twice (``a.nii`` and
            ``a.nii.gz``).
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", mend="Name a folder of .nii.gz files.")
    files = nifti_files(folder)
    by_name = {case_name(path): path for path in files}
    if not files and not allow_none:
        raise InputError(f"{folder} holds no label map", expected="files ending in .nii.gz or .nii")
    if len(by_name) < len(files):
        twice = sorted({case_name(p) for p in files if by_name[case_name(p)] != p})
        raise InputError(f"{folder} holds {', '.join(twice)} twice", mend="Keep either .nii or .nii.gz.")
    return by_name


def _task(dataset: Path | None, references: Path) -> Task | None:
    if dataset is not None:
        return parse_task(dataset.parent if dataset.name == DESCRIPTION else dataset)
    above = next((f for f in (references, references.parent) if (f / DESCRIPTION).is_file()), None)
    return parse_task(above) if above else None


def _refuse_missing(names: Sequence[str], folder: Path, mend: str) -> None:
    if names:
        plural = "s" if len(names) > 1 else ""
        raise InputError(f"{folder} lacks {len(names)} case{plural}: {', '.join(names)}", mend=mend)


@dataclass(frozen=True)
class _Settings:
    """What is asked of every case."""

    targets: tuple[Target, ...] | None
    regions: tuple[Target, ...]
    tolerance_mm: float | None
    resample: bool
    lesion_min_iou: float | None
    ignored: int | None


@dataclass(frozen=True)
class _Job:
    """One case to score, with everything a worker process needs."""

    case: str
    prediction: Path | None
    reference: Path
    settings: _Settings


@dataclass(frozen=True)
class _Scored:
    case: str
    rows: list[ScoreRow]
    lesions: list[ScoreRow]
    found: set[int]
    unscored: list[int]
    resampled: bool
    lost: str


def _score_case(job: _Job) -> _Scored:
    reference = read_label_map(job.reference)
    if job.prediction is None:
        prediction = reference.with_array(np.zeros(reference.array.shape, dtype=np.uint8))
    else:
        prediction = read_label_map(job.prediction)
    settings = job.settings
    lost, resampled = "", settings.resample and not prediction.grid.same_as(reference.grid)
    if resampled:
        prediction, lost = onto_reference(prediction, reference.grid, job.case)
    prediction, reference = where_labelled(prediction, reference, settings.ignored, job.case)
    found = set(labels_in(prediction, str(job.prediction))) | set(labels_in(reference, str(job.reference)))
    classes = settings.targets
    if classes is None:
        classes = tuple(Target(str(label), (label,)) for label in sorted(found))
    targets = (*classes, *settings.regions)
    rows = score_volume(prediction, reference, targets, settings.tolerance_mm, job.case)
    lesions = []
    if settings.lesion_min_iou is not None:
        lesions = score_lesions(prediction, reference, targets, job.case, settings.lesion_min_iou)
    asked = {label for target in targets for label in target.labels}
    return _Scored(job.case, rows, lesions, found, sorted(found - asked), resampled, lost)


def _run(jobs: Sequence[_Job], processes: int, progress: Progress | None) -> list[_Scored]:
    scored = []

    def collect(results: Iterable[_Scored]) -> None:
        for result in results:
            scored.append(result)
            if progress:
                progress(len(scored), len(jobs), result.case)

    if processes == 1 or len(jobs) == 1:
        collect(map(_score_case, jobs))
    else:
        with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
            collect(pool.map(_score_case, jobs))
    return scored


def _filled(rows: list[ScoreRow], regions: Sequence[str], absent: Mapping[str, float]) -> list[ScoreRow]:
    """Rows for every case and class: a label that no map of a case holds has the values of ``absent`` there."""
    by_cell: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        by_cell.setdefault((row.case, row.class_name), []).append(row)
    cases = list(dict.fromkeys(case for case, _ in by_cell))
    names = list(dict.fromkeys(name for _, name in by_cell))
    if len(by_cell) < len(cases) * len(names):  # only where classes are numbers found case by case
        names = [*sorted((n for n in names if n not in regions), key=int), *regions]
    return [
        row
        for case in cases
        for name in names
        for row in by_cell.get((case, name)) or [ScoreRow(case, name, m, v, "absent") for m, v in absent.items()]
    ]


def _notes(
    scored: Sequence[_Scored],
    missing: list[str],
    unpaired: list[str],
    regions: Sequence[Target],
    tolerance_mm: float | None,
) -> list[str]:
    """What a reader of the numbers has to know, in sentences."""
    notes = []
    if missing:
        notes.append(f"Predictions missing, scored as missed: {', '.join(missing)}.")
    if unpaired:
        notes.append(f"Predictions without a reference, not scored: {', '.join(unpaired)}.")
    resampled = [case.case for case in scored if case.resampled]
    if resampled:
        notes.append(f"Predictions taken to the reference's grid by nearest neighbour: {', '.join(resampled)}.")
    lost = [case.lost for case in scored if case.lost]
    if lost:
        notes.append(f"Predictions of which no label reached the reference's grid, scored as empty: {', '.join(lost)}.")
    found = {label for case in scored for label in case.found}
    for region in regions:
        nowhere = [str(label) for label in region.labels if label not in found]
        if nowhere:
            notes.append(f"Labels of the region {region.name} that no label map holds: {', '.join(nowhere)}.")
    unscored = {case.case: case.unscored for case in scored if case.unscored}
    if unscored:
        told = "; ".join(f"{case} {', '.join(map(str, labels))}" for case, labels in unscored.items())
        notes.append(f"Labels that belong to no class, not scored: {told}.")
    if tolerance_mm is None:
        notes.append("NSD needs a tolerance: pass --tolerance-mm.")
    return notes
