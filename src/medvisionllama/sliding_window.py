"""Segment a volume of any size through a window of one size, holding a band of planes alone.

Axes: ``B`` batch, ``M`` modalities, ``C`` output channels, ``I J K`` voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from medvisionllama.mapped import mapped_zeros

Shape = tuple[int, int, int]
Network = Callable[[Tensor], Tensor]

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


def sliding_window(network: Network, image_MIJK: Tensor, window: Shape, *, batch_size: int = 4) -> Tensor:
    """Logits ``(C,I,J,K)`` of a whole image, blended from overlapping windows; all are held at once.

    Args:
        network: ``(B,M,*window)`` to ``(B,C,*window)``.
        image_MIJK: Of any size; smaller ones are padded with zeros on all sides and the padding is cut off again.
        window: Voxels of a window along I, J, K.
        batch_size: Windows given to the network at once.
    """
    sweep = Sweep(network, image_MIJK, window, axis=0, batch_size=batch_size)
    blocks = []
    while sweep.finished < sweep.shape[0]:
        begin = sweep.finished
        sweep.advance(begin)
        blocks.append(sweep.logits((slice(begin, sweep.finished), slice(None), slice(None))))
    return torch.cat(blocks, 1)


class Sweep:
    """Windows swept over an image along one axis: the blended logits of planes that no later window touches.

    At any time a band of planes is held, one window thick: the sums that windows still add to, and finished planes
    until they are released.

    Args:
        network: ``(B,M,*window)`` to ``(B,C,*window)``.
        image_MIJK: Of any size; smaller ones are padded with zeros on all sides, and no padding is given out.
        window: Voxels of a window along I, J, K.
        axis: Which of I, J, K (0, 1, 2) is swept; the longest needs the least memory.
        batch_size: Windows given to the network at once.
        most_bytes: A larger band lies in a file instead, mapped into memory; its values are the same. None: never.
        scratch: The folder of that file, which has no name and goes with the process; None for the system's own.
    """

    def __init__(
        self,
        network: Network,
        image_MIJK: Tensor,
        window: Shape,
        axis: int,
        *,
        batch_size: int = 4,
        most_bytes: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._network, self._window, self.axis, self.device = network, window, axis, image_MIJK.device
        self._batch_size, self._most_bytes, self._scratch = batch_size, most_bytes, scratch
        i, j, k = image_MIJK.shape[1:]
        self.shape: Shape = (i, j, k)
        missing = [max(0, w - s) for w, s in zip(window, self.shape, strict=True)]
        self._before = [m // 2 for m in missing]
        margins = [n for m, b in zip(missing[::-1], self._before[::-1], strict=True) for n in (b, m - b)]
        self._image = pad(image_MIJK, margins) if any(margins) else image_MIJK
        starts = [window_starts(s, w) for s, w in zip(self._image.shape[1:], window, strict=True)]
        self._rows = starts[axis]
        self._across = list(itertools.product(*starts[:axis], [0], *starts[axis + 1 :]))
        self._weight = gaussian_weight(window).to(image_MIJK.device)
        self._row = 0
        self._origin = 0  # the padded plane at which the band begins
        self._total: Tensor | None = None
        self._weights: Tensor | None = None
        self.finished = 0
        """Planes ``[0, finished)`` along the axis are final."""

    @torch.no_grad()
    def advance(self, release: int) -> None:
        """Give the network the next row of windows; finished planes before ``release`` may be forgotten."""
        start = self._rows[self._row]
        self._move_to(min(start, release + self._before[self.axis]))
        for first in range(0, len(self._across), self._batch_size):
            corners = [list(corner) for corner in self._across[first : first + self._batch_size]]
            for corner in corners:
                corner[self.axis] = start
            self._add(corners)
        self._row += 1
        padded = self._image.shape[1 + self.axis]
        end = self._rows[self._row] if self._row < len(self._rows) else padded
        self.finished = min(end - self._before[self.axis], self.shape[self.axis])

    @torch.no_grad()
    def logits(self, place: tuple[slice, slice, slice]) -> Tensor:
        """``(C,...)``, the weighted mean of the windows' answers at a place of finished planes not yet released."""
        assert self._total is not None
        assert self._weights is not None
        shifts = list(self._before)
        shifts[self.axis] -= self._origin
        i, j, k = (
            slice(s + shift, e + shift)
            for (s, e, _), shift in zip(
                (p.indices(n) for p, n in zip(place, self.shape, strict=True)), shifts, strict=True
            )
        )
        return self._total[:, i, j, k] / self._weights[i, j, k]

    def _add(self, corners: Sequence[Sequence[int]]) -> None:
        windows = [self._cut(self._image[0], corner) for corner in corners]
        answers = self._network(torch.stack([self._image[:, i, j, k] for i, j, k in windows]))
        total, weights = self._band(answers.shape[1], answers.device)
        for corner, answer in zip(corners, answers, strict=True):
            in_band = list(corner)
            in_band[self.axis] -= self._origin
            i, j, k = self._cut(weights, in_band)
            # Channel by channel: what a conversion to float32 and to the band's device takes stays small.
            for channel, logits in zip(total, answer, strict=True):
                channel[i, j, k].addcmul_(logits.to(channel), self._weight)
            weights[i, j, k] += self._weight

    def _cut(self, of: Tensor, corner: Sequence[int]) -> tuple[slice, slice, slice]:
        i, j, k = (slice(c, c + w) for c, w in zip(corner, self._window, strict=True))
        assert all(s.stop <= n for s, n in zip((i, j, k), of.shape, strict=True))
        return i, j, k

    def _band(self, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The sums of weighted logits ``(C,...)`` and of weights; made when the first answer tells ``C``."""
        if self._total is None or self._weights is None:
            shape = list(self._image.shape[1:])
            # A plane more than a window: the last finished one is a neighbour of what the next row finishes.
            shape[self.axis] = min(shape[self.axis], self._window[self.axis] + 1)
            large = self._most_bytes is not None and 4 * channels * math.prod(shape) > self._most_bytes
            device = torch.device("cpu") if large else device
            self._weight = self._weight.to(device)
            self._weights = torch.zeros(shape, device=device)
            wanted = (channels, *shape)
            self._total = (
                torch.from_numpy(mapped_zeros(wanted, np.float32, self._scratch))
                if large
                else torch.zeros(wanted, device=device)
            )
        return self._total, self._weights

    def _move_to(self, origin: int) -> None:
        step = origin - self._origin
        self._origin = origin
        if self._total is None or self._weights is None or step == 0:
            return
        length = self._weights.shape[self.axis]
        kept = length - step
        for channel in (*self._total, self._weights):
            channel.narrow(self.axis, 0, kept).copy_(channel.narrow(self.axis, step, kept).clone())
            channel.narrow(self.axis, kept, step).zero_()


def mirrored(network: Network, axes: Sequence[int], *, sides: Sequence[int] | None = None, sigmoid: bool) -> Network:
    """The network shown every mirror image of a window along ``axes`` as well.

    Its answer are the logits of the mean of all their probabilities: softmax (or sigmoid) of it is that mean.

    Args:
        network: ``(B,M,I,J,K)`` to ``(B,C,I,J,K)``.
        axes: Of 0, 1, 2 for I, J, K.
        sides: For each channel the one it is in a mirror along I, where classes are left and right; None: itself.
        sigmoid: Whether each channel is a target by itself.
    """
    flips = [[2 + axis for axis in chosen] for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]

    def log_probability(windows: Tensor, flip: list[int]) -> Tensor:
        logits = network(windows.flip(flip)).float().flip(flip)
        if sides is not None and 2 in flip:
            logits = logits[:, list(sides)]
        # Sigmoid: beside the log of the probability that of its complement, which their difference is the logit of.
        return torch.cat([logsigmoid(logits), logsigmoid(-logits)], 1) if sigmoid else logits.log_softmax(1)

    def mean(windows: Tensor) -> Tensor:
        total = log_probability(windows, flips[0])
        for flip in flips[1:]:
            total = torch.logaddexp(total, log_probability(windows, flip))
        if sigmoid:
            yes, no = total.chunk(2, 1)
            return yes - no
        return total - math.log(len(flips))

    return mean if axes else network
