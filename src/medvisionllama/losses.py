"""What training minimises. Axes: ``B`` batch, ``C`` output channels, ``I J K`` voxels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

LossName = Literal["dice_ce", "ce", "dice_bce", "bce"]
LOSSES: tuple[str, ...] = get_args(LossName)

# Keeps the ratio defined where a class is absent from prediction and label; nnU-Net's value.
SMOOTH = 1e-5


def segmentation_loss(logits_BCIJK: Tensor, label_BIJK: Tensor, name: LossName) -> Tensor:
    """One number for a batch.

    Args:
        logits_BCIJK: Scores before softmax (``dice_ce``, ``ce``; channel 0 is background) or sigmoid (``dice_bce``,
            ``bce``; channel ``c`` is the target with label ``c + 1``).
        label_BIJK: Whole numbers, 0 for background.
        name: ``ce`` is v1's loss, ``dice_bce`` v2's, ``dice_ce`` ours and nnU-Net's.
    """
    logits = logits_BCIJK.float()
    label = label_BIJK.long()
    if name in ("dice_ce", "ce"):
        entropy = cross_entropy(logits, label)
        if name == "ce":
            return entropy
        target = one_hot(label, logits.shape[1]).movedim(-1, 1)[:, 1:]
        return entropy + soft_dice_loss(torch.softmax(logits, 1)[:, 1:], target)
    target = one_hot(label, logits.shape[1] + 1).movedim(-1, 1)[:, 1:].to(logits.dtype)
    entropy = binary_cross_entropy_with_logits(logits, target)
    return entropy if name == "bce" else entropy + soft_dice_loss(torch.sigmoid(logits), target)


def soft_dice_loss(probability_BCIJK: Tensor, target_BCIJK: Tensor) -> Tensor:
    """``1 - mean(2 sum(p t) / (sum(p) + sum(t)))``, per case and channel, then averaged.

    Per case, not over the batch: a step on two machines is then the mean of their halves.
    """
    voxels = (2, 3, 4)
    both = (probability_BCIJK * target_BCIJK).sum(voxels)
    either = probability_BCIJK.sum(voxels) + target_BCIJK.sum(voxels)
    return 1 - ((2 * both + SMOOTH) / (either + SMOOTH)).mean()
