"""The plain way from an image on the model's grid to probabilities: everything at once, written for comparison."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from medvisionllama.geometry import Array, Shape, resize
from medvisionllama.sliding_window import gaussian_weight, window_starts


def plain_logits(network: Callable[[Tensor], Tensor], image_MIJK: Tensor, window: Shape) -> Tensor:
    """All windows one by one into one sum as large as the image."""
    size = image_MIJK.shape[1:]
    before = [max(0, w - s) // 2 for w, s in zip(window, size, strict=True)]
    after = [max(0, w - s) - b for w, s, b in zip(window, size, before, strict=True)]
    padded = pad(image_MIJK, [before[2], after[2], before[1], after[1], before[0], after[0]])
    starts = [window_starts(s, w) for s, w in zip(padded.shape[1:], window, strict=True)]
    total, weights = torch.zeros(()), torch.zeros(())
    for corner in itertools.product(*starts):
        i, j, k = (slice(c, c + w) for c, w in zip(corner, window, strict=True))
        logits = network(padded[None, :, i, j, k])[0].float()
        if not total.ndim:
            total, weights = torch.zeros((len(logits), *padded.shape[1:])), torch.zeros(padded.shape[1:])
        total[:, i, j, k] += logits * gaussian_weight(window)
        weights[i, j, k] += gaussian_weight(window)
    i, j, k = (slice(b, b + s) for b, s in zip(before, size, strict=True))
    return (total / weights)[:, i, j, k]


def plain_probabilities(logits: Sequence[Tensor], shape: Shape, sigmoid: bool = False) -> Array:
    """``(C,I,J,K)``: the mean of several members' probabilities, each stretched whole."""
    parts = [(each.sigmoid() if sigmoid else each.softmax(0)).numpy() for each in logits]
    mean: Array = np.mean([resize(part, shape, order=1) for part in parts], axis=0)
    return mean
