"""Score label maps against references: eight metrics per case and class, in millimetres, on the reference's grid.

What stands behind every number (SPEC 7):

* Both masks empty: NaN, counted as *absent*, left out of means. One empty: Dice, Jaccard, precision, recall and NSD 0,
  HD95 the image's diagonal, counted as *missed* or *false alarm*, and kept in means.
* Nothing is skipped silently: a missing prediction is an error, or scored as missed where that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medvisionllama.data.decathlon import DESCRIPTION, Task, parse_task
from medvisionllama.data.nifti import ENDINGS, case_name, read_label_map
from medvisionllama.errors import InputError
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Grid, Volume, resample_onto
from medvisionllama.metrics.lesions import DEFAULT_MIN_IOU, LESION_METRICS, lesion_scores
from medvisionllama.metrics.overlap import Counts, counts_of, joint_histogram, label_counts, overlap_scores
from medvisionllama.metrics.surface import surface_scores
from medvisionllama.reports.statistics import summary_of
from medvisionllama.run_folder import METRICS, ScoreRow, write_json, write_scores

# The Decathlon's own NSD tolerances, as remembered (SPEC 7): recorded with every result, and a setting.
TOLERANCES_MM: Mapping[str, float] = {
    "Task01_BrainTumour": 5.0,
    "Task02_Heart": 4.0,
    "Task03_Liver": 7.0,
    "Task04_Hippocampus": 1.0,
    "Task05_Prostate": 4.0,
    "Task06_Lung": 2.0,
    "Task07_Pancreas": 5.0,
    "Task08_HepaticVessel": 3.0,
    "Task09_Spleen": 3.0,
    "Task10_Colon": 4.0,
}

Labels = NDArray[np.integer[Any]]
_SMALL = 255  # labels up to here are counted as they are

Progress = Callable[[int, int, str], None]
Mask = NDArray[np.bool_]
Box = tuple[slice, ...]
Outcome = Literal["both", "missed", "false_alarms", "absent"]

_NO_MASKS: tuple[Mask, Mask] = (np.zeros((1, 1, 1), dtype=np.bool_), np.zeros((1, 1, 1), dtype=np.bool_))


@dataclass(frozen=True)
class Target:
    """What is scored under one name: a class is one label, a region the union of several."""

    name: str
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.labels or min(self.labels) < 1:
            raise InputError(
                f"a target has a name and labels from 1 on, not {self.name!r} with {self.labels}",
                mend="Background (0) is no target.",
            )


def score(
    prediction: Volume | Path | str,
    reference: Volume | Path | str,
    *,
    tolerance_mm: float | None = None,
    targets: Sequence[Target] | None = None,
    case: str = "",
) -> list[ScoreRow]:
    """Score one label map against another.

    Args:
        prediction: ``(I,J,K)`` whole numbers, or the path of a NIfTI file.
        reference: The same, on the same grid.
        tolerance_mm: For NSD, which is NaN without it.
        targets: What to score; by default every label found in either map, under its number.
        case: The name in the rows; by default the prediction's file name.

    Raises:
        InputError: Another grid, more than one channel, or labels that are no whole numbers.
    """
    name = case or ("" if isinstance(prediction, Volume) else case_name(prediction))
    predicted, referenced = _read(prediction), _read(reference)
    if targets is None:
        found = sorted(set(labels_in(predicted)) | set(labels_in(referenced)))
        targets = [Target(str(label), (label,)) for label in found]
    return score_volume(predicted, referenced, targets, tolerance_mm, name)


def _read(volume: Volume | Path | str) -> Volume:
    return volume if isinstance(volume, Volume) else read_label_map(volume)


def labels_in(volume: Volume) -> list[int]:
    """The foreground labels of a label map, in order."""
    return [label for label in label_counts(_whole_numbers(volume, "the label map")) if label > 0]


def score_volume(
    prediction: Volume, reference: Volume, targets: Sequence[Target], tolerance_mm: float | None, case: str
) -> list[ScoreRow]:
    """All eight metrics for every target, in the order of ``targets`` and :data:`METRICS`.

    Args:
        prediction: ``(I,J,K)``; bool, integers, or floats that hold whole numbers.
        reference: The same, on the same grid.
        targets: Classes and regions, which may overlap.
        tolerance_mm: For NSD, which is NaN where this is None.
        case: The name in the rows; it is named in errors too.

    Raises:
        InputError: The grids differ (by more than 1e-3 mm), a map has four axes, or labels are no whole numbers.
    """
    pair = _Pair.of(prediction, reference, targets, case)
    rows = []
    for target in targets:
        scores = overlap_scores(pair.counts(target))
        hd95_mm = nsd = math.nan
        masks = pair.masks(target)
        if masks:
            surface = surface_scores(*masks, pair.grid.spacing_mm, tolerance_mm, pair.grid.diagonal_mm)
            hd95_mm, nsd = surface.hd95_mm, surface.nsd
        values = (*scores.values(), hd95_mm, nsd)
        rows += [ScoreRow(case, target.name, m, v) for m, v in zip(METRICS, values, strict=True)]
    return rows


def score_lesions(
    prediction: Volume, reference: Volume, targets: Sequence[Target], case: str, min_iou: float = DEFAULT_MIN_IOU
) -> list[ScoreRow]:
    """The lesion view: :data:`LESION_METRICS` for every target, arguments as for :func:`score_volume`.

    Args:
        prediction: ``(I,J,K)`` labels.
        reference: The same.
        targets: Classes and regions, which may overlap.
        case: The name in the rows.
        min_iou: From which overlap two components are the same lesion.
    """
    pair = _Pair.of(prediction, reference, targets, case)
    rows = []
    for target in targets:
        masks = pair.masks(target) or _NO_MASKS
        scores = lesion_scores(*masks, pair.grid.spacing_mm, min_iou)
        rows += [ScoreRow(case, target.name, metric, value) for metric, value in scores.as_dict().items()]
    return rows


@dataclass(frozen=True)
class _Pair:
    """Two label maps of one grid, looked at once for all targets.

    Attributes:
        predicted: Labels within the box that holds all foreground of both.
        referenced: The same.
        grid: Of the whole image.
        codes: The number in these maps of every label that was renamed.
        histogram: Of the whole image: predicted label by referenced label.
        boxes: For either map the box of every label from 1 on, None where it has no voxel.
    """

    predicted: Labels
    referenced: Labels
    grid: Grid
    codes: Mapping[int, int]
    histogram: NDArray[np.int64]
    boxes: tuple[Sequence[Box | None], Sequence[Box | None]]

    @classmethod
    def of(cls, prediction: Volume, reference: Volume, targets: Sequence[Target], case: str) -> _Pair:
        predicted = _whole_numbers(prediction, f"{case}: the prediction")
        referenced = _whole_numbers(reference, f"{case}: the reference")
        _same_grid(prediction.grid, reference.grid, case)
        # Most of an image is background in both: it is looked at once and then left out.
        seen = _union(_foreground_box(labels) for labels in (predicted, referenced)) or (slice(0),) * 3
        predicted, referenced, codes = _compact(predicted[seen], referenced[seen], targets)
        top = max(int(predicted.max(initial=0)), int(referenced.max(initial=0)))
        histogram = joint_histogram(predicted, referenced, top + 1)
        histogram[0, 0] += reference.array.size - referenced.size
        boxes = [find_objects(labels, top) if top else [] for labels in (predicted, referenced)]
        return cls(predicted, referenced, reference.grid, codes, histogram, (boxes[0], boxes[1]))

    def counts(self, target: Target) -> Counts:
        """Voxels of the target, over the whole image."""
        return counts_of(self._labels(target), self.histogram)

    def masks(self, target: Target) -> tuple[Mask, Mask] | None:
        """Prediction and reference of the target in the box around both; None where neither has it."""
        labels = self._labels(target)
        box = _union(boxes[label - 1] for boxes in self.boxes for label in labels if label <= len(boxes))
        return None if box is None else (_mask(self.predicted[box], labels), _mask(self.referenced[box], labels))

    def _labels(self, target: Target) -> list[int]:
        return [self.codes.get(label, label) for label in target.labels]


def _whole_numbers(volume: Volume, what: str) -> Labels:
    """The voxels as unsigned integers."""
    array = volume.array
    if array.ndim != 3:
        raise InputError(f"{what} has {len(array)} channels", expected="three axes, one label per voxel")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and np.array_equal(array, np.rint(array))):
            raise InputError(
                f"{what} has labels that are not whole numbers",
                mend="Resample label maps by nearest neighbour, or threshold the probabilities.",
            )
    elif array.dtype.kind not in "iub":
        raise InputError(f"{what} has labels of type {array.dtype}", expected="whole numbers")
    if array.dtype.kind in "fi" and array.size and array.min() < 0:
        raise InputError(
            f"{what} has negative labels", got=f"{array.min():g}", expected="0 for background, classes from 1"
        )
    return array.astype(np.min_scalar_type(int(array.max(initial=0))), copy=False)


def _same_grid(prediction: Grid, reference: Grid, case: str) -> None:
    if prediction.same_as(reference, AFFINE_TOLERANCE_MM):
        return
    mend = "Write predictions in the reference's grid, or pass --resample to take them there by nearest neighbour."
    if prediction.shape != reference.shape:
        raise InputError(
            f"{case}: prediction and reference have different grids",
            got=_told(prediction),
            expected=_told(reference),
            mend=mend,
        )
    raise InputError(
        f"{case}: prediction and reference lie in different places",
        got=f"voxels up to {prediction.distance_mm(reference):.4g} mm apart",
        expected=f"at most {AFFINE_TOLERANCE_MM:g} mm",
        mend=mend,
    )


def _told(grid: Grid) -> str:
    return f"{'x'.join(map(str, grid.shape))} voxels of {'x'.join(f'{s:.3g}' for s in grid.spacing_mm)} mm"


def _compact(prediction: Labels, reference: Labels, targets: Sequence[Target]) -> tuple[Labels, Labels, dict[int, int]]:
    """Both maps with small labels, and the new number of every label that was renamed.

    Large labels (FreeSurfer's reach 14,175) would make the joint histogram huge: where there are any, the labels that
    are asked for become 1, 2, 3..., all others 0.
    """
    if max(prediction.max(initial=0), reference.max(initial=0)) <= _SMALL:
        return np.ascontiguousarray(prediction), np.ascontiguousarray(reference), {}
    wanted = np.array(sorted({label for target in targets for label in target.labels}), dtype=np.int64)
    codes = {int(label): code for code, label in enumerate(wanted, start=1)}
    return _renamed(prediction, wanted), _renamed(reference, wanted), codes


def _renamed(labels: Labels, wanted: NDArray[np.int64]) -> Labels:
    place = np.minimum(np.searchsorted(wanted, labels), len(wanted) - 1)
    found = wanted[place] == labels
    return np.where(found, place + 1, 0).astype(np.min_scalar_type(len(wanted)))


def _union(boxes: Iterable[Box | None]) -> Box | None:
    """The smallest box around all that are not None."""
    known = [box for box in boxes if box is not None]
    if not known:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*known, strict=True))


def _foreground_box(labels: Labels) -> Box | None:
    slices = []
    for axis in range(3):
        plane = np.flatnonzero(labels.max(axis=tuple(a for a in range(3) if a != axis)))
        if not plane.size:
            return None
        slices.append(slice(int(plane[0]), int(plane[-1]) + 1))
    return tuple(slices)


def _mask(labels: Labels, wanted: Sequence[int]) -> Mask:
    mask: Mask = labels == wanted[0] if len(wanted) == 1 else np.isin(labels, wanted)
    return mask


def outcome_of(scores: Mapping[str, float]) -> Outcome:
    """What one case's eight metrics of one class say of its masks, by the policy of SPEC 7.

    ``missed``: the reference has the class, the prediction does not, so nothing is predicted falsely: specificity is
    1, or NaN where the reference leaves no background. ``false_alarms``: the other way round, so every voxel of the
    image is a negative and accuracy equals specificity. Two masks that merely do not touch are ``both`` there.
    """
    if math.isnan(scores["dice"]):
        return "absent"
    if scores["dice"] > 0:
        return "both"
    if math.isnan(scores["specificity"]) or scores["specificity"] == 1:
        return "missed"
    return "false_alarms" if scores["accuracy"] == scores["specificity"] else "both"


def summarise(
    rows: Iterable[ScoreRow], tolerance_mm: float | None, grid: str = "native", regions: Collection[str] = ()
) -> dict[str, Any]:
    """The content of ``summary.json``: per class and metric mean, SD, bootstrap interval and n, and what was missed.

    ``overall`` summarises each case's mean over its classes; ``regions``, which overlap them, are left out of it.
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        cells.setdefault(row.class_name, {}).setdefault(row.case, {})[row.metric] = row.value
    classes = {name: _summary_of_class(cases.values()) for name, cases in cells.items()}
    return {
        "classes": classes,
        "overall": _overall([cases for name, cases in cells.items() if name not in regions]),
        "regions": [name for name in cells if name in regions],
        "cases": len({case for cases in cells.values() for case in cases}),
        "tolerance_mm": tolerance_mm,
        "grid": grid,
    }


def _summary_of_class(cases: Collection[Mapping[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {m: summary_of([scores[m] for scores in cases]).as_dict() for m in METRICS}
    outcomes = [outcome_of(scores) for scores in cases]
    return summary | {name: outcomes.count(name) for name in ("missed", "false_alarms", "absent")}


def _overall(classes: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    overall = {}
    for metric in METRICS:
        by_case: dict[str, list[float]] = {}
        for cases in classes:
            for case, scores in cases.items():
                if not math.isnan(scores[metric]):
                    by_case.setdefault(case, []).append(scores[metric])
        overall[metric] = summary_of([float(np.mean(values)) for values in by_case.values()]).as_dict()
    return overall


def targets_of(task: Task) -> tuple[Target, ...]:
    """One target per class of the task, under its name."""
    return tuple(Target(name, (label,)) for label, name in task.classes.items())


def foreground_of(task: Task) -> Target:
    """The papers' single target: all classes merged."""
    return Target("foreground", tuple(task.classes))


def tolerance_of(task: Task) -> float | None:
    """The Decathlon's NSD tolerance for its own ten tasks, known by their folder's or their own name; else None."""
    known = {full.lower(): mm for full, mm in TOLERANCES_MM.items()}
    known |= {full.split("_")[1].lower(): mm for full, mm in TOLERANCES_MM.items()}
    names = (task.folder.resolve().name.lower(), task.name.lower())
    return next((known[name] for name in names if name in known), None)


def parse_region(text: str, classes: Mapping[int, str] | None = None) -> Target:
    """A region from ``NAME=LABEL,LABEL...``, labels by number or by class name.

    Raises:
        InputError: There is no ``=``, or a label is neither a number nor a class.
    """
    name, equals, members = text.partition("=")
    numbers = {known: label for label, known in (classes or {}).items()}
    try:
        labels = tuple(numbers[m] if m in numbers else int(m) for m in (part.strip() for part in members.split(",")))
    except ValueError as error:
        known = f"; the classes are {', '.join(numbers)}" if numbers else ""
        raise InputError(
            f"{text!r} is no region", expected=f"NAME=LABEL,LABEL such as whole_tumour=1,2,3,4{known}"
        ) from error
    if not equals:
        raise InputError(f"{text!r} is no region", expected="NAME=LABEL,LABEL")
    return Target(name.strip(), labels)


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
        dataset: A folder with dataset.json, or that file; by default one in or directly above ``references``.
        cases: Score only these references.
        allow_missing: Score a missing prediction as an empty one instead of refusing.
        resample: Take a prediction on another grid to the reference's by nearest neighbour instead of refusing.
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
    expected, found = label_maps_in(references), label_maps_in(predictions)
    if cases is not None:
        _refuse_missing(sorted(set(cases) - set(expected)), references, "")
        expected = {name: path for name, path in expected.items() if name in cases}
    missing = [name for name in expected if name not in found]
    if not allow_missing:
        _refuse_missing(missing, predictions, "Predict them, or pass --allow-missing to score them as missed.")
    targets = targets if targets is not None else targets_of(task) if task else None
    extra = tuple(r if isinstance(r, Target) else parse_region(r, task.classes if task else None) for r in regions)
    tolerance_mm = tolerance_mm if tolerance_mm is not None else tolerance_of(task) if task else None
    settings = _Settings(None if targets is None else tuple(targets), extra, tolerance_mm, resample, lesion_min_iou)
    jobs = [_Job(name, found.get(name), path, settings) for name, path in expected.items()]
    scored = _run(jobs, processes, progress)
    names = [region.name for region in extra]
    rows = _filled([row for case in scored for row in case.rows], names, METRICS)
    notes = _notes(scored, missing, sorted(set(found) - set(expected)) if cases is None else [], tolerance_mm)
    summary = summarise(rows, tolerance_mm, regions=names) | {"notes": notes}
    if lesion_min_iou is not None:
        lesions = _filled([row for case in scored for row in case.lesions], names, LESION_METRICS)
        summary["lesions"] = {"min_iou": lesion_min_iou, "classes": summarise_lesions(lesions)}
        write_scores(out / "lesions.csv", lesions)
    write_scores(out / "scores.csv", rows)
    write_json(out / "summary.json", summary)
    return summary


def summarise_lesions(rows: Iterable[ScoreRow]) -> dict[str, Any]:
    """Per class the totals over cases, and per metric mean, SD, interval and n; a case without lesions has no
    sensitivity and is left out of its mean.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault(row.class_name, {}).setdefault(row.metric, []).append(row.value)
    totals = ("lesions", "found", "false_positive_lesions")
    return {
        name: {metric: summary_of(values).as_dict() for metric, values in metrics.items()}
        | {f"total_{metric}": int(np.nansum(metrics[metric])) for metric in totals}
        for name, metrics in cells.items()
    }


def label_maps_in(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by case name, in order.

    Raises:
        InputError: The folder is missing, holds none, or holds a case twice (``a.nii`` and ``a.nii.gz``).
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", mend="Name a folder of .nii.gz files.")
    files = sorted(p for p in folder.iterdir() if p.name.endswith(ENDINGS) and not p.name.startswith("."))
    by_name = {case_name(path): path for path in files}
    if not files:
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
    unscored: list[int]
    resampled: bool


def _score_case(job: _Job) -> _Scored:
    reference = read_label_map(job.reference)
    if job.prediction is None:
        prediction = reference.with_array(np.zeros(reference.array.shape, dtype=np.uint8))
    else:
        prediction = read_label_map(job.prediction)
    settings = job.settings
    resampled = settings.resample and not prediction.grid.same_as(reference.grid)
    if resampled:
        prediction = resample_onto(prediction, reference.grid, 0)
    found = set(labels_in(prediction)) | set(labels_in(reference))
    classes = settings.targets
    if classes is None:
        classes = tuple(Target(str(label), (label,)) for label in sorted(found))
    targets = (*classes, *settings.regions)
    rows = score_volume(prediction, reference, targets, settings.tolerance_mm, job.case)
    lesions = []
    if settings.lesion_min_iou is not None:
        lesions = score_lesions(prediction, reference, targets, job.case, settings.lesion_min_iou)
    asked = {label for target in targets for label in target.labels}
    return _Scored(job.case, rows, lesions, sorted(found - asked), resampled)


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


def _filled(rows: list[ScoreRow], regions: Sequence[str], metrics: Sequence[str]) -> list[ScoreRow]:
    """Rows for every case and class: a label no map of a case holds is absent there (all NaN)."""
    by_cell: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        by_cell.setdefault((row.case, row.class_name), []).append(row)
    cases = list(dict.fromkeys(case for case, _ in by_cell))
    names = list(dict.fromkeys(name for _, name in by_cell))
    if len(by_cell) < len(cases) * len(names):  # only where classes are numbers found case by case
        names = [*sorted((n for n in names if n not in regions), key=int), *regions]
    absent = dict.fromkeys(metrics, math.nan)
    return [
        row
        for case in cases
        for name in names
        for row in by_cell.get((case, name)) or [ScoreRow(case, name, m, v) for m, v in absent.items()]
    ]


def _notes(scored: Sequence[_Scored], missing: list[str], unpaired: list[str], tolerance_mm: float | None) -> list[str]:
    """What a reader of the numbers has to know, in sentences."""
    notes = []
    if missing:
        notes.append(f"Predictions missing, scored as missed: {', '.join(missing)}.")
    if unpaired:
        notes.append(f"Predictions without a reference, not scored: {', '.join(unpaired)}.")
    resampled = [case.case for case in scored if case.resampled]
    if resampled:
        notes.append(f"Predictions taken to the reference's grid by nearest neighbour: {', '.join(resampled)}.")
    unscored = {case.case: case.unscored for case in scored if case.unscored}
    if unscored:
        told = "; ".join(f"{case} {', '.join(map(str, labels))}" for case, labels in unscored.items())
        notes.append(f"Labels that belong to no class, not scored: {told}.")
    if tolerance_mm is None:
        notes.append("NSD needs a tolerance: pass --tolerance-mm.")
    return notes
