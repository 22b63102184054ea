"""How many voxels two masks share: Dice, Jaccard, accuracy, precision, recall, specificity from four counts.

Everything follows from one joint histogram of two label maps, so that any number of classes and unions of classes
costs one pass over the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20  # voxels counted at a time: the indices of a chunk stay in the processor's cache


@dataclass(frozen=True)
class Counts:
    """Voxels by what prediction and reference say of them."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def predicted(self) -> int:
        """Voxels in the prediction."""
        return self.true_positives + self.false_positives

    @property
    def referenced(self) -> int:
        """Voxels in the reference."""
        return self.true_positives + self.false_negatives

    @property
    def outcome(self) -> Literal["both", "missed", "false_alarms", "absent"]:
        """Which of the two masks have any voxel: both, the reference alone, the prediction alone, neither."""
        if self.referenced:
            return "both" if self.predicted else "missed"
        return "false_alarms" if self.predicted else "absent"

    @classmethod
    def of(cls, prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Counts:
        """Count two masks of one shape."""
        if prediction.shape != reference.shape:
            raise ValueError(f"masks are of one shape, not {prediction.shape} and {reference.shape}")
        both = int(np.count_nonzero(prediction & reference))
        predicted, referenced = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
        negatives = prediction.size - predicted - referenced + both
        return cls(both, predicted - both, referenced - both, negatives)


def overlap_scores(counts: Counts) -> dict[str, float]:
    """The six overlap metrics.

    Both masks empty: all NaN, since there is nothing to find. One empty: Dice, Jaccard, precision and recall are 0.
    Specificity is NaN where the reference leaves no background.
    """
    tp, fp, fn, tn = counts.true_positives, counts.false_positives, counts.false_negatives, counts.true_negatives
    if counts.predicted == counts.referenced == 0:
        return dict.fromkeys(("dice", "jaccard", "accuracy", "precision", "recall", "specificity"), math.nan)
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "jaccard": tp / (tp + fp + fn),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "specificity": tn / (tn + fp) if tn + fp else math.nan,
    }


def joint_histogram(prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: int) -> NDArray[np.int64]:
    """``(labels,labels)``: how many voxels the prediction gives the row's label and the reference the column's.

    Args:
        prediction: Integers from 0 to ``labels - 1``, any shape.
        reference: The same.
        labels: One more than the largest label.
    """
    histogram = np.zeros(labels * labels, dtype=np.int64)
    p, r = prediction.reshape(-1), reference.reshape(-1)
    small = np.min_scalar_type(histogram.size)
    for start in range(0, p.size, _CHUNK):
        pairs = p[start : start + _CHUNK].astype(small)
        pairs *= labels
        pairs += r[start : start + _CHUNK]
        histogram += np.bincount(pairs, minlength=histogram.size)
    return histogram.reshape(labels, labels)


def counts_of(labels: Iterable[int], histogram: NDArray[np.int64]) -> Counts:
    """The counts of the union of ``labels``; a label outside the histogram has no voxels."""
    wanted = np.zeros(len(histogram), dtype=np.bool_)
    wanted[[label for label in labels if label < len(histogram)]] = True
    tp = int(histogram[np.ix_(wanted, wanted)].sum())
    predicted, referenced = int(histogram[wanted].sum()), int(histogram[:, wanted].sum())
    return Counts(tp, predicted - tp, referenced - tp, int(histogram.sum()) - predicted - referenced + tp)


def label_counts(labels: NDArray[np.integer]) -> dict[int, int]:
    """How many voxels hold each label found, in order of the labels; no label is negative."""
    if labels.dtype.itemsize > 2:
        found, counts = np.unique(labels, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))
    flat = labels.reshape(-1)
    total = np.zeros(np.iinfo(labels.dtype).max + 1, dtype=np.int64)
    for start in range(0, flat.size, _CHUNK):
        total += np.bincount(flat[start : start + _CHUNK], minlength=total.size)
    return {int(label): int(total[label]) for label in np.flatnonzero(total)}
