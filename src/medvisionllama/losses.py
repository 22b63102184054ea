"""What training minimises. Axes: ``B`` batch, ``C`` output channels, ``I J K`` voxels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medvisionllama.label_reading import EVERY_VOXEL_ITS_CLASS, LabelReading

LossName = Literal["dice_ce", "ce", "dice_bce", "bce"]

# Keeps the ratio defined where a class is absent from prediction and label; nnU-Net's value.
SMOOTH = 1e-5


def segmentation_loss(
    logits_BCIJK: Tensor, label_BIJK: Tensor, name: LossName, reading: LabelReading = EVERY_VOXEL_ITS_CLASS
) -> Tensor:
    """One number for a batch.

    Args:
        logits_BCIJK: Scores before softmax (``dice_ce``, ``ce``; channel 0 is background) or sigmoid (``dice_bce``,
            ``bce``; channel ``c`` is the target with label ``c + 1``).
        label_BIJK: Whole numbers, 0 for background.
        name: ``ce`` is v1's loss, ``dice_bce`` v2's, ``dice_ce`` ours and nnU-Net's.
        reading: Which voxels count, and for sigmoid losses which classes make a target.

    Returns:
        A scalar in float32, whatever the precision of the logits. With an ignored number, entropy is the mean over
        each case's voxels that count, then over cases; a case without any costs nothing.

    Raises:
        ValueError: Regions with a softmax loss: they overlap, classes do not.
    """
    logits = logits_BCIJK.float()
    if reading.regions and name in ("dice_ce", "ce"):
        raise ValueError(f"the loss {name} compares classes that exclude one another, but regions overlap")
    if reading.ignored is not None:
        return _where_labelled(logits, label_BIJK, name, reading, label_BIJK != reading.ignored)
    if name in ("dice_ce", "ce"):
        entropy = cross_entropy(logits, label_BIJK.long())
        if name == "ce":
            return entropy
        target = _masks(label_BIJK, logits.shape[1] - 1)
        return entropy + soft_dice_loss(torch.softmax(logits, 1)[:, 1:], target)
    target = _targets(label_BIJK, logits.shape[1], reading)
    entropy = binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    return entropy if name == "bce" else entropy + soft_dice_loss(torch.sigmoid(logits), target)


def _where_labelled(
    logits: Tensor, label_BIJK: Tensor, name: LossName, reading: LabelReading, counts_BIJK: Tensor
) -> Tensor:
    """The same over the voxels that count."""
    entropy_BIJK, probability, target = _voxel_by_voxel(logits, label_BIJK, name, reading, counts_BIJK)
    voxels = (1, 2, 3)
    counted = counts_BIJK.sum(voxels).clamp_min(1)
    entropy = (entropy_BIJK.sum(voxels) / counted).mean()
    return entropy if name in ("ce", "bce") else entropy + soft_dice_loss(probability, target)


def _voxel_by_voxel(
    logits: Tensor, label_BIJK: Tensor, name: LossName, reading: LabelReading, counts_BIJK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy ``(B,I,J,K)``, probability and target ``(B,channels,I,J,K)``; 0 where a voxel does not count."""
    known = torch.where(counts_BIJK, label_BIJK, 0)
    if name in ("dice_ce", "ce"):
        entropy_BIJK = cross_entropy(logits, known.long(), reduction="none")
        probability, target = torch.softmax(logits, 1)[:, 1:], _masks(known, logits.shape[1] - 1)
    else:
        target = _targets(known, logits.shape[1], reading)
        entropy_BIJK = binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").mean(1)
        probability = torch.sigmoid(logits)
    return entropy_BIJK * counts_BIJK, probability * counts_BIJK[:, None], target & counts_BIJK[:, None]


def _targets(label_BIJK: Tensor, channels: int, reading: LabelReading) -> Tensor:
    """``(B,channels,I,J,K)``: the mask of each sigmoid target."""
    if not reading.regions:
        return _masks(label_BIJK, channels)
    return torch.stack([_any_of(label_BIJK, region) for region in reading.regions], dim=1)


def _any_of(label_BIJK: Tensor, classes: tuple[int, ...]) -> Tensor:
    inside = label_BIJK == classes[0]
    for number in classes[1:]:
        inside |= label_BIJK == number
    return inside


def _masks(label_BIJK: Tensor, classes: int) -> Tensor:
    """``(B,classes,I,J,K)``: where the label is 1, 2, ... Booleans: an eighth of the memory of a one-hot tensor."""
    values = torch.arange(1, classes + 1, device=label_BIJK.device)
    return label_BIJK[:, None] == values[:, None, None, None]


class LossOfPieces:
    """The loss of one case that is looked at piece by piece, so that its logits are never held at once.

    Args:
        name: See :func:`segmentation_loss`.
        reading: Likewise.
    """

    def __init__(self, name: LossName, reading: LabelReading = EVERY_VOXEL_ITS_CLASS) -> None:
        self._name: LossName = name
        self._reading = reading
        self._entropy, self._voxels = 0.0, 0
        self._both: Tensor | float = 0.0
        self._either: Tensor | float = 0.0

    def add(self, logits_CIJK: Tensor, label_IJK: Tensor) -> None:
        """Take a piece in: pieces are any size and do not overlap."""
        logits, label, reading = logits_CIJK.float()[None], label_IJK[None], self._reading
        counts = torch.ones_like(label, dtype=torch.bool) if reading.ignored is None else label != reading.ignored
        entropy, probability, target = _voxel_by_voxel(logits, label, self._name, reading, counts)
        self._entropy += float(entropy.sum(dtype=torch.float64))
        self._voxels += int(counts.sum())
        voxels = (0, 2, 3, 4)
        inside = target.sum(voxels, dtype=torch.float64)
        self._both = self._both + (probability * target).sum(voxels, dtype=torch.float64)
        self._either = self._either + probability.sum(voxels, dtype=torch.float64) + inside

    def value(self) -> float:
        """What :func:`segmentation_loss` says of all pieces together, to rounding."""
        entropy = self._entropy / max(1, self._voxels)
        if self._name in ("ce", "bce"):
            return entropy
        return entropy + float(_dice_cost(torch.as_tensor(self._both), torch.as_tensor(self._either)))


def soft_dice_loss(probability_BCIJK: Tensor, target_BCIJK: Tensor) -> Tensor:
    """``1 - mean(2 sum(p t) / (sum(p) + sum(t)))``, per case and channel, then averaged.

    Per case, not over the batch: a step on two machines is then the mean of their halves. A class that is in neither
    prediction nor label costs nothing; one that is predicted though absent costs nearly 1, with next to no gradient
    until hardly anything of it is predicted, hence the cross-entropy beside it.

    Args:
        probability_BCIJK: Foreground channels, 0 to 1.
        target_BCIJK: Their masks, booleans or 0 and 1.
    """
    voxels = (2, 3, 4)
    both = (probability_BCIJK * target_BCIJK).sum(voxels)
    either = probability_BCIJK.sum(voxels) + target_BCIJK.sum(voxels)
    return _dice_cost(both, either)


def _dice_cost(both: Tensor, either: Tensor) -> Tensor:
    return 1 - ((2 * both + SMOOTH) / (either + SMOOTH)).mean()
