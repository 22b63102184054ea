"""How many lesions were found, for tasks with many small objects in which one large one hides the rest.

A lesion is a connected component. Predicted and reference lesions are matched one to one, greatest overlap first, where
their intersection over union reaches a threshold (the "naive threshold matching" of Kofler et al., panoptica,
arXiv:2312.02608).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

Mask = NDArray[np.bool_]

LESION_METRICS = (
    "lesions",
    "found",
    "lesion_sensitivity",
    "false_positive_lesions",
    "volume_ml",
    "predicted_volume_ml",
    "volume_difference_ml",
)
DEFAULT_MIN_IOU = 0.1


@dataclass(frozen=True)
class LesionScores:
    """Counts of lesions, and volumes in millilitres.

    Attributes:
        lesions: Lesions in the reference.
        found: Those with a match.
        predicted: Lesions in the prediction.
        volume_ml: Volume of the reference.
        predicted_volume_ml: Volume of the prediction.
    """

    lesions: int
    found: int
    predicted: int
    volume_ml: float
    predicted_volume_ml: float

    @property
    def sensitivity(self) -> float:
        """The share of lesions found; NaN where there are none to find."""
        return self.found / self.lesions if self.lesions else math.nan

    @property
    def false_positives(self) -> int:
        """Predicted lesions without a match."""
        return self.predicted - self.found

    def as_dict(self) -> dict[str, float]:
        """By the names of :data:`LESION_METRICS`."""
        difference = self.predicted_volume_ml - self.volume_ml
        counts = (self.lesions, self.found, self.sensitivity, self.false_positives)
        volumes = (self.volume_ml, self.predicted_volume_ml, difference)
        return {name: float(value) for name, value in zip(LESION_METRICS, (*counts, *volumes), strict=True)}


# Where neither mask has a voxel: there is no share of no lesions.
NO_LESIONS = LesionScores(0, 0, 0, 0.0, 0.0).as_dict()


def lesion_scores(
    prediction: Mask,
    reference: Mask,
    spacing_mm: tuple[float, float, float],
    min_iou: float = DEFAULT_MIN_IOU,
    connectivity: int = 3,
) -> LesionScores:
    """Match the lesions of two masks.

    Args:
        prediction: ``(I,J,K)``, bool.
        reference: The same shape.
        spacing_mm: For volumes.
        min_iou: The intersection over union from which two lesions are one, above 0 and at most 1. Above 0.5 no lesion
            can have two candidates.
        connectivity: 1 joins voxels across faces, 2 across edges too, 3 across corners too.

    Raises:
        ValueError: The shapes differ, or a setting is out of range.
    """
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(f"masks are (I,J,K) and alike, not {prediction.shape} and {reference.shape}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"an intersection over union is above 0 and at most 1, not {min_iou}")
    structure = generate_binary_structure(3, connectivity)
    predicted, predicted_count = label(prediction, structure)
    referenced, count = label(reference, structure)
    voxel_ml = math.prod(spacing_mm) / 1000
    return LesionScores(
        lesions=count,
        found=_matches(predicted, referenced, min_iou),
        predicted=predicted_count,
        volume_ml=int(np.count_nonzero(reference)) * voxel_ml,
        predicted_volume_ml=int(np.count_nonzero(prediction)) * voxel_ml,
    )


def _matches(predicted: NDArray[np.integer[Any]], referenced: NDArray[np.integer[Any]], min_iou: float) -> int:
    both = (predicted > 0) & (referenced > 0)
    # One number a pair: sorting numbers is many times quicker than sorting columns.
    base = int(referenced.max(initial=0)) + 1
    codes, shared = np.unique(predicted[both].astype(np.int64) * base + referenced[both], return_counts=True)
    pairs = np.divmod(codes, base)
    sizes = [np.bincount(labels.ravel()) for labels in (predicted, referenced)]
    union = sizes[0][pairs[0]] + sizes[1][pairs[1]] - shared
    overlap = shared / union
    taken: tuple[set[int], set[int]] = (set(), set())
    for index in np.argsort(-overlap, kind="stable"):
        one, other = int(pairs[0][index]), int(pairs[1][index])
        if overlap[index] >= min_iou and one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
    return len(taken[0])
