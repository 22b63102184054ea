"""What training minimises. Axes: ``B`` batch, ``C`` output channels, ``I J K`` voxels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

LossName = Literal["dice_ce", "ce", "dice_bce", "bce"]

# Keeps the ratio defined where a class is absent from prediction and label; nnU-Net's value.
SMOOTH = 1e-5


def segmentation_loss(logits_BCIJK: Tensor, label_BIJK: Tensor, name: LossName) -> Tensor:
    """One number for a batch.

    Args:
        logits_BCIJK: Scores before softmax (``dice_ce``, ``ce``; channel 0 is background) or sigmoid (``dice_bce``,
            ``bce``; channel ``c`` is the target with label ``c + 1``).
        label_BIJK: Whole numbers, 0 for background.
        name: ``ce`` is v1's loss, ``dice_bce`` v2's, ``dice_ce`` ours and nnU-Net's.

    Returns:
        A scalar in float32, whatever the precision of the logits.
    """
    logits = logits_BCIJK.float()
    if name in ("dice_ce", "ce"):
        entropy = cross_entropy(logits, label_BIJK.long())
        if name == "ce":
            return entropy
        target = _masks(label_BIJK, logits.shape[1] - 1)
        return entropy + soft_dice_loss(torch.softmax(logits, 1)[:, 1:], target)
    target = _masks(label_BIJK, logits.shape[1])
    entropy = binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    return entropy if name == "bce" else entropy + soft_dice_loss(torch.sigmoid(logits), target)


def _masks(label_BIJK: Tensor, classes: int) -> Tensor:
    """``(B,classes,I,J,K)``: where the label is 1, 2, ... Booleans: an eighth of the memory of a one-hot tensor."""
    values = torch.arange(1, classes + 1, device=label_BIJK.device)
    return label_BIJK[:, None] == values[:, None, None, None]


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
    return 1 - ((2 * both + SMOOTH) / (either + SMOOTH)).mean()
