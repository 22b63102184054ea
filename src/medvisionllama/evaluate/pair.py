"""One prediction against one reference: all targets from one look at the two label maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medvisionllama.data.nifti import case_name, read_label_map
from medvisionllama.errors import InputError
from medvisionllama.evaluate.targets import Target, check_settings
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Grid, Volume, resample_onto
from medvisionllama.metrics.boxes import box_of
from medvisionllama.metrics.lesions import DEFAULT_MIN_IOU, lesion_scores
from medvisionllama.metrics.overlap import Counts, counts_of, joint_histogram, label_counts, overlap_scores
from medvisionllama.metrics.surface import surface_scores
from medvisionllama.run_folder import METRICS, ScoreRow

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Box = tuple[slice, ...]

_SMALL = 255  # labels up to here are counted as they are
_NO_MASKS: tuple[Mask, Mask] = (np.zeros((1, 1, 1), dtype=np.bool_), np.zeros((1, 1, 1), dtype=np.bool_))


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
        InputError: Another grid, more than one channel, labels that are no whole numbers, or an array without its
            place.
    """
    predicted, referenced = _read(prediction, "the prediction"), _read(reference, "the reference")
    name = case or ("" if isinstance(prediction, Volume) else case_name(prediction))
    if targets is None:
        found = set(labels_in(predicted, _called(prediction, "the prediction")))
        found |= set(labels_in(referenced, _called(reference, "the reference")))
        targets = [Target(str(label), (label,)) for label in sorted(found)]
    return score_volume(predicted, referenced, targets, tolerance_mm, name)


def _read(volume: Volume | Path | str, what: str) -> Volume:
    if isinstance(volume, Volume):
        return volume
    if not isinstance(volume, Path | str):
        raise InputError(
            f"{what} does not say where its voxels lie",
            got=f"{type(volume).__name__}",
            expected="a Volume, or the path of a NIfTI file",
            mend="Give the array its affine: Volume(array, affine).",
        )
    return read_label_map(volume)


def _called(volume: Volume | Path | str, otherwise: str) -> str:
    return otherwise if isinstance(volume, Volume) else str(volume)


def labels_in(volume: Volume, name: str = "the label map") -> list[int]:
    """The foreground labels of a label map, in order; an error about it calls it ``name``."""
    return [label for label in label_counts(_whole_numbers(volume, name)) if label > 0]


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
        InputError: The grids differ (by more than 1e-3 mm), a map has four axes, labels are no whole numbers, two
            targets share a name, or the tolerance is negative.
    """
    check_settings(targets, tolerance_mm)
    pair = _Pair.of(prediction, reference, targets, case)
    rows = []
    for target in targets:
        counts = pair.counts(target)
        scores = overlap_scores(counts)
        hd95_mm = nsd = math.nan
        masks = pair.masks(target)
        if masks:
            surface = surface_scores(*masks, pair.grid.spacing_mm, tolerance_mm, pair.grid.diagonal_mm)
            hd95_mm, nsd = surface.hd95_mm, surface.nsd
        values = (*scores.values(), hd95_mm, nsd)
        rows += [ScoreRow(case, target.name, m, v, counts.outcome) for m, v in zip(METRICS, values, strict=True)]
    return rows


def where_labelled(prediction: Volume, reference: Volume, ignored: int | None, case: str) -> tuple[Volume, Volume]:
    """Both label maps, 0 wherever nobody has labelled the reference; as they are where the task ignores nothing.

    Args:
        prediction: ``(I,J,K)`` labels.
        reference: The same, on the same grid.
        ignored: The label of voxels that nobody has labelled; None for no such.
        case: The name in errors.

    Raises:
        InputError: The grids differ.
    """
    if ignored is None:
        return prediction, reference
    _same_grid(prediction.grid, reference.grid, case)
    labelled = reference.array != ignored
    return (
        prediction.with_array(np.where(labelled, prediction.array, 0)),
        reference.with_array(np.where(labelled, reference.array, 0)),
    )


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
        seen = _union(box_of(labels) for labels in (predicted, referenced)) or (slice(0),) * 3
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
    mend = "Write predictions in the reference's grid; `medvisionllama evaluate --resample` scores them as they are."
    if prediction.shape != reference.shape:
        raise InputError(
            f"{case}: prediction and reference have different grids",
            got=f"{_told(prediction)}, its centre {_centres_apart_mm(prediction, reference):.4g} mm away",
            expected=_told(reference),
            mend=mend,
        )
    raise InputError(
        f"{case}: prediction and reference lie in different places",
        got=f"voxels up to {prediction.distance_mm(reference):.4g} mm apart",
        expected=f"at most {AFFINE_TOLERANCE_MM:g} mm",
        mend=mend,
    )


def onto_reference(prediction: Volume, reference: Grid, case: str) -> tuple[Volume, str]:
    """The prediction on the reference's grid by nearest neighbour, and what was lost on the way, if all was.

    A place outside the prediction's image is background there, which would turn a wrong affine into a missed structure.

    Raises:
        InputError: The two images do not overlap anywhere.
    """
    if not _overlap(prediction.grid, reference):
        raise InputError(
            f"{case}: the prediction lies wholly outside the reference's image",
            got=f"centres {_centres_apart_mm(prediction.grid, reference):.4g} mm apart",
            mend="Mend the affine of one of them: nothing can be resampled.",
        )
    resampled = resample_onto(prediction, reference, 0)
    before, after = box_of(prediction.array != 0), box_of(resampled.array != 0)
    if before is None or after is not None:
        return resampled, ""
    middle = np.array([(s.start + s.stop - 1) / 2 for s in before])
    away = prediction.affine[:3, :3] @ middle + prediction.affine[:3, 3] - _centre_mm(reference)
    return resampled, f"{case} ({float(np.linalg.norm(away)):.4g} mm from the middle of the reference's image)"


def _centre_mm(grid: Grid) -> NDArray[np.float64]:
    centre: NDArray[np.float64] = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    return centre


def _centres_apart_mm(one: Grid, other: Grid) -> float:
    return float(np.linalg.norm(_centre_mm(one) - _centre_mm(other)))


def _overlap(one: Grid, other: Grid) -> bool:
    """Whether two images may share a place: along no voxel axis of either does one end before the other begins."""
    for own, another in ((one, other), (other, one)):
        faces = np.array(list(np.ndindex(2, 2, 2))) * another.shape - 0.5
        world = faces @ another.affine[:3, :3].T + another.affine[:3, 3]
        corners = (world - own.affine[:3, 3]) @ np.linalg.inv(own.affine[:3, :3]).T
        if ((corners.max(axis=0) <= -0.5) | (corners.min(axis=0) >= np.array(own.shape) - 0.5)).any():
            return False
    return True


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


def _mask(labels: Labels, wanted: Sequence[int]) -> Mask:
    mask: Mask = labels == wanted[0] if len(wanted) == 1 else np.isin(labels, wanted)
    return mask
