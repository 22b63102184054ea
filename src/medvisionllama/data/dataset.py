"""Batches drawn from prepared cases (:mod:`.prepare`).

Axes: ``B`` batch, ``M`` modalities, ``I J K`` voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from medvisionllama.data.mirroring import ANY_MIRRORING, Mirroring
from medvisionllama.data.prepare import PreparedCase, prepare, refuse_unusable
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, Shape
from medvisionllama.label_reading import EVERY_VOXEL_ITS_CLASS, LabelReading

__all__ = ["Batch", "BatchSource", "PreparedCase", "prepare", "refuse_unusable"]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step trains on.

    Attributes:
        image: ``(B,M,I,J,K)`` float32.
        label: ``(B,I,J,K)`` uint8.
        cases: Their names.
        positions: Where each stands in the endless sequence of draws; with the seed it fixes all that happens to it.
        spacing_mm: ``(B,3)`` float32, of the voxels along I, J, K.
    """

    image: Tensor
    label: Tensor
    cases: tuple[str, ...]
    positions: tuple[int, ...]
    spacing_mm: Tensor


@dataclass(frozen=True)
class BatchSource:
    """An endless sequence of patches in which everything drawn is a function of the seed and the position.

    Each pass over the cases is a permutation of its own, so that every case is seen equally often; a resumed run, or
    one of several processes, draws what one uninterrupted process would have drawn there.

    Attributes:
        cases: To draw from.
        window: Voxels of a patch along I, J, K; smaller cases are padded with zeros on all sides.
        batch_size: ``B``.
        foreground_share: How often a patch is centred on a foreground voxel of a class drawn evenly.
        seed: Of all draws.
        reading: What a loss is told of the labels.
        mirroring: What augmentation is told of sides.

    Raises:
        InputError: The seed is negative.
    """

    cases: Sequence[PreparedCase]
    window: Shape
    batch_size: int
    foreground_share: float
    seed: int
    reading: LabelReading = EVERY_VOXEL_ITS_CLASS
    mirroring: Mirroring = ANY_MIRRORING

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("the seed of the draws", got=str(self.seed), expected="0 or more")

    def batch(self, step: int) -> Batch:
        """The patches of step ``step``, counted from 0."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        cases = [self._case(position) for position in positions]
        modalities = self.cases[0].image.shape[0]
        image = np.zeros((self.batch_size, modalities, *self.window), np.float32)
        label = np.zeros((self.batch_size, *self.window), np.uint8)
        for place, (case, position) in enumerate(zip(cases, positions, strict=True)):
            start = self._first_voxel(case, np.random.default_rng([self.seed, 1, position]))
            _cut(np.asarray(case.image), start, image[place])
            _cut(np.asarray(case.label), start, label[place])
        return Batch(
            image=torch.from_numpy(image),
            label=torch.from_numpy(label),
            cases=tuple(case.name for case in cases),
            positions=tuple(positions),
            spacing_mm=torch.tensor([case.spacing_mm for case in cases]),
        )

    def _case(self, position: int) -> PreparedCase:
        epoch, place = divmod(position, len(self.cases))
        return self.cases[int(_order(self.seed, epoch, len(self.cases))[place])]

    def _first_voxel(self, case: PreparedCase, draw: np.random.Generator) -> list[int]:
        """The first voxel of the patch along each axis; negative where the case is smaller than the patch."""
        room = [size - window for size, window in zip(case.label.shape, self.window, strict=True)]
        forced, at = draw.random() < self.foreground_share, draw.random(3)
        class_draw, voxel_draw = draw.random(2)
        # Where the case is smaller, the padding before it is that of sliding_window.
        starts = [int(at[axis] * (r + 1)) if r > 0 else -(-r // 2) for axis, r in enumerate(room)]
        if not forced or not len(case.places):
            return starts
        classes = np.unique(case.places[:, 0])
        places = case.places[case.places[:, 0] == classes[int(class_draw * len(classes))], 1:]
        voxel = places[int(voxel_draw * len(places))]
        middle = [int(v) - w // 2 for v, w in zip(voxel, self.window, strict=True)]
        return [min(max(m, 0), r) if r > 0 else s for m, r, s in zip(middle, room, starts, strict=True)]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Array:
    """In which order an epoch goes through so many cases."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def _cut(array: Array, start: Sequence[int], patch: Array) -> None:
    """Copy into ``patch`` what of ``array`` lies from ``start`` on along the last three axes; its rest is left."""
    taken: list[slice | EllipsisType] = [...]
    placed: list[slice | EllipsisType] = [...]
    for first, length, size in zip(start, patch.shape[-3:], array.shape[-3:], strict=True):
        begin, end = max(first, 0), min(first + length, size)
        taken.append(slice(begin, end))
        placed.append(slice(begin - first, end - first))
    patch[tuple(placed)] = array[tuple(taken)]
