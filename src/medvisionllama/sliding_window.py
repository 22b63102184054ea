"""Segment a volume of any size through a window of one size.

Axes: ``M`` modalities, ``C`` output channels, ``I J K`` voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

Shape = tuple[int, int, int]

# nnU-Net's figures: windows overlap by half, and the Gaussian's SD is an eighth of the window.
OVERLAP = 0.5
SIGMA = 0.125


def window_starts(size: int, window: int, overlap: float = OVERLAP) -> list[int]:
    """Where windows begin along one axis: evenly spread, from face to face, never more than ``1 - overlap`` apart."""
    if size <= window:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(size - window) // stride) + 1
    return [round(step * (size - window) / (count - 1)) for step in range(count)]


def gaussian_weight(window: Shape) -> Tensor:
    """``(I,J,K)`` weights that trust a window's middle more than its rim; the largest is 1, none is 0."""
    axes = []
    for size in window:
        distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        axes.append(torch.exp(-0.5 * (distance / (size * SIGMA)) ** 2))
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return (weight / weight.max()).clamp_min(1e-3)


def sliding_window(
    network: Callable[[Tensor], Tensor], image_MIJK: Tensor, window: Shape, *, batch_size: int = 4
) -> Tensor:
    """Logits ``(C,I,J,K)`` of a whole image, blended from overlapping windows.

    Args:
        network: ``(B,M,*window)`` to ``(B,C,*window)``.
        image_MIJK: Of any size; smaller ones are padded with zeros on all sides and the padding is cut off again.
        window: Voxels of a window along I, J, K.
        batch_size: Windows given to the network at once.
    """
    size = image_MIJK.shape[1:]
    missing = [max(0, w - s) for w, s in zip(window, size, strict=True)]
    before = [m // 2 for m in missing]
    padded = pad(image_MIJK, [n for m, b in zip(missing[::-1], before[::-1], strict=True) for n in (b, m - b)])
    starts = list(itertools.product(*(window_starts(s, w) for s, w in zip(padded.shape[1:], window, strict=True))))
    weight = gaussian_weight(window).to(image_MIJK.device)
    total, weights = None, torch.zeros(padded.shape[1:], device=image_MIJK.device)
    for first in range(0, len(starts), batch_size):
        places = [
            (slice(None), *(slice(s, s + w) for s, w in zip(start, window, strict=True)))
            for start in starts[first : first + batch_size]
        ]
        logits = network(torch.stack([padded[place] for place in places])).float()
        if total is None:
            total = torch.zeros((logits.shape[1], *padded.shape[1:]), device=image_MIJK.device)
        for place, window_logits in zip(places, logits, strict=True):
            total[place] += window_logits * weight
            weights[place[1:]] += weight
    assert total is not None
    i, j, k = (slice(b, b + s) for b, s in zip(before, size, strict=True))
    return total.div_(weights)[:, i, j, k]
