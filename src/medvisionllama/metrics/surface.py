"""How far apart two surfaces lie: HD95 and normalised surface Dice, in millimetres.

A mask has two kinds of surface here, as the two metrics are defined on different ones:

* *edge voxels*, foreground voxels with a background neighbour across a face: HD95 (MONAI's definition);
* *surface elements*, the voxel corners whose eight neighbours are not all alike, each with the area of the piece of
  surface that runs through them: NSD (Nikolov et al., arXiv:1809.04430; MONAI's ``use_subvoxels=True``).

Outside the image everything is background, so an object at the border has a surface there.

HD95 needs no distance beyond its percentile and NSD none beyond its tolerance, which is what makes them quick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvisionllama.metrics.boxes import CACHE_BYTES, Box, Points, Shape, Spacing, moved_into, occupied_planes
from medvisionllama.metrics.elements import element_areas_mm2
from medvisionllama.metrics.nearest import distances_mm

Mask = NDArray[np.bool_]

# A surface exactly on the tolerance counts as within it, whatever the last bit of the spacing says.
TOLERANCE_SLACK = 1e-6
# A mask this much smaller than its box is split at its gaps first: stray voxels would blow up the box.
SPARSE_FILL = 0.02
SPARSE_VOXELS = 1 << 18


@dataclass(frozen=True)
class SurfaceScores:
    """HD95 in mm and NSD in 0..1 (NaN where no tolerance was given)."""

    hd95_mm: float
    nsd: float


def surface_scores(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float | None, diagonal_mm: float | None = None
) -> SurfaceScores:
    """Compare the surfaces of two masks.

    Args:
        prediction: ``(I,J,K)``, bool.
        reference: The same shape.
        spacing_mm: Distance between voxel centres along each axis.
        tolerance_mm: How far apart surfaces may lie and still agree; None leaves NSD out (NaN).
        diagonal_mm: HD95 where one mask is empty; by default the diagonal of the arrays given. Pass the whole image's
            where these are crops of it.

    Both empty: NaN and NaN. One empty: the diagonal and 0.

    HD95 is the larger of the two directed 95th percentiles (linear between order statistics).

    Raises:
        ValueError: The shapes differ, or spacing or tolerance is no length.
    """
    _check(prediction, reference, spacing_mm, tolerance_mm)
    if not prediction.any() and not reference.any():
        return SurfaceScores(math.nan, math.nan)
    # Lines run along the first axis: make that the finest, so that they cover the most.
    order = np.argsort(spacing_mm, kind="stable")
    i_mm, j_mm, k_mm = (spacing_mm[axis] for axis in order)
    pair = _Surfaces.of(prediction.transpose(order), reference.transpose(order), (i_mm, j_mm, k_mm))
    if pair is None:
        diagonal = diagonal_mm or float(np.linalg.norm(np.multiply(prediction.shape, spacing_mm)))
        return SurfaceScores(diagonal, math.nan if tolerance_mm is None else 0.0)
    return SurfaceScores(pair.hd_mm(95), math.nan if tolerance_mm is None else pair.nsd(tolerance_mm))


def _check(prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float | None) -> None:
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(f"masks are (I,J,K) and alike, not {prediction.shape} and {reference.shape}")
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(f"masks are bool, not {prediction.dtype} and {reference.dtype}")
    if len(spacing_mm) != 3 or not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing is three positive lengths in mm, not {spacing_mm}")
    if tolerance_mm is not None and not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"a tolerance is a length of 0 mm or more, not {tolerance_mm}")


def _pieces(mask: Mask, corner: Shape = (0, 0, 0)) -> Iterator[Box]:
    """Boxes that together hold the whole mask, no two of them touching; usually one.

    A large and nearly empty box, as a few stray voxels make it, is cut at its empty planes, again and again: one empty
    plane is enough for the surfaces on both sides not to meet.

    Args:
        mask: What to box.
        corner: Where the mask's own first voxel lies in the array that the boxes are for.
    """
    if mask.size <= SPARSE_VOXELS:
        if mask.any():
            i, j, k = corner
            yield slice(i, i + mask.shape[0]), slice(j, j + mask.shape[1]), slice(k, k + mask.shape[2])
        return
    planes = occupied_planes(mask)
    if not planes[0].size:
        return
    box = [slice(int(occupied[0]), int(occupied[-1]) + 1) for occupied in planes]
    inner = mask[tuple(box)]
    if inner.size > SPARSE_VOXELS and np.count_nonzero(inner) < SPARSE_FILL * inner.size:
        for axis, occupied in enumerate(planes):
            gaps = np.flatnonzero(np.diff(occupied) > 1) + 1
            if not gaps.size:
                continue
            for run in np.split(occupied, gaps):
                box[axis] = slice(int(run[0]), int(run[-1]) + 1)
                i, j, k = (c + s.start for c, s in zip(corner, box, strict=True))
                yield from _pieces(mask[tuple(box)], (i, j, k))
            return
    i_box, j_box, k_box = (slice(c + s.start, c + s.stop) for c, s in zip(corner, box, strict=True))
    yield i_box, j_box, k_box


@dataclass(frozen=True)
class _Surface:
    """One mask's surface; points are flat indices into the box of :class:`_Surfaces`, ascending."""

    edge_voxels: Points
    elements: Points
    areas_mm2: NDArray[np.float64]


@dataclass(frozen=True)
class _Surfaces:
    """Two surfaces in one box, a voxel larger than both masks: it has one more plane of corners than of voxels."""

    shape: Shape
    spacing_mm: Spacing
    prediction: _Surface
    reference: _Surface

    @classmethod
    def of(cls, prediction: Mask, reference: Mask, spacing_mm: Spacing) -> _Surfaces | None:
        """The surfaces of both masks; None where either is empty."""
        pieces = [list(_pieces(mask)) for mask in (prediction, reference)]
        if not all(pieces):
            return None
        boxes = [box for side in pieces for box in side]
        low = [min(box[axis].start for box in boxes) for axis in range(3)]
        i, j, k = (max(box[axis].stop for box in boxes) - low[axis] + 1 for axis in range(3))
        areas = element_areas_mm2(spacing_mm)
        found = [
            _surface(mask, side, low, (i, j, k), areas)
            for mask, side in zip((prediction, reference), pieces, strict=True)
        ]
        return cls((i, j, k), spacing_mm, *found)

    def hd_mm(self, percentile: float) -> float:
        """The larger of the directed ``percentile``-th percentiles of the edge voxels' distances."""
        a, b = self.prediction.edge_voxels, self.reference.edge_voxels
        return max(self._directed_percentile_mm(a, b, percentile), self._directed_percentile_mm(b, a, percentile))

    def nsd(self, tolerance_mm: float) -> float:
        """The share of both surfaces' area that lies within ``tolerance_mm`` of the other."""
        limit = tolerance_mm * (1 + TOLERANCE_SLACK)
        near = total = 0.0
        for one, other in ((self.prediction, self.reference), (self.reference, self.prediction)):
            distances = self.distances_mm(one.elements, other.elements, limit_mm=limit)
            near += float(one.areas_mm2[distances <= limit].sum())
            total += float(one.areas_mm2.sum())
        return near / total

    def _directed_percentile_mm(self, points: Points, others: Points, percentile: float) -> float:
        """The percentile of the distances from ``points`` to ``others``, linear between order statistics."""
        position = percentile / 100 * (len(points) - 1)
        below = math.floor(position)
        above = min(below + 1, len(points) - 1)
        distances = self.distances_mm(points, others, enough=above + 1)
        low, high = np.partition(distances, (below, above))[[below, above]]
        return float(low + (high - low) * (position - below))

    def distances_mm(
        self, points: Points, others: Points, limit_mm: float = math.inf, enough: int | None = None
    ) -> NDArray[np.float64]:
        """:func:`~medvisionllama.metrics.nearest.distances_mm` in this box."""
        return distances_mm(points, others, self.shape, self.spacing_mm, limit_mm, enough)


def _surface(mask: Mask, pieces: list[Box], low: list[int], shape: Shape, areas: NDArray[np.float64]) -> _Surface:
    """The surface of a mask that lies in ``pieces``, in the box of ``shape`` that begins at ``low``."""
    edge_voxels, elements, element_areas = [], [], []
    for box in pieces:
        inner = mask[box]
        corner = [s.start - origin for s, origin in zip(box, low, strict=True)]
        planes = max(1, CACHE_BYTES // inner[0].size)
        for first in range(0, len(inner), planes):
            padded = _padded(inner, first, first + planes)
            start = (corner[0] + first, corner[1], corner[2])
            codes = _corner_codes(padded)
            if first + planes < len(inner):  # the last corners are the next block's first
                codes = codes[: planes * padded[0].size]
            # 0 and 255 are all background and all foreground; adding 1 wraps one around to 0 and makes the other 1.
            mixed = np.flatnonzero(codes + np.uint8(1) > 1)
            element_areas.append(areas[codes[mixed]])
            elements.append(moved_into(mixed, padded.shape, shape, start))
            # A padded voxel lies one step on from the unpadded one, a corner at its voxel's lower end.
            edges = np.flatnonzero(_edge_voxels(padded))
            edge_voxels.append(moved_into(edges, padded.shape, shape, (start[0] - 1, start[1] - 1, start[2] - 1)))
    return _Surface(np.concatenate(edge_voxels), np.concatenate(elements), np.concatenate(element_areas))


def _padded(mask: Mask, first: int, end: int) -> NDArray[np.uint8]:
    """Planes ``first`` to ``end`` of a mask with what lies around them: one voxel more on every side, or background."""
    i, j, k = mask[first:end].shape
    padded = np.zeros((i + 2, j + 2, k + 2), dtype=np.uint8)
    around = mask[max(first - 1, 0) : end + 1]
    before = 1 if first == 0 else 0
    padded[before : before + len(around), 1:-1, 1:-1] = around
    return padded


def _edge_voxels(padded: NDArray[np.uint8]) -> Mask:
    """Flattened: foreground voxels with a background neighbour across a face, without the first and last plane.

    The border of zeros lets a neighbour be a fixed step away in the flattened box: past the end of a row comes the
    border of the next.
    """
    flat = padded.reshape(-1)
    i, j, k = _flat_steps(padded.shape)
    inside = flat[: -2 * i] & flat[2 * i :]
    for step in (j, k):
        inside &= flat[i - step : -i - step]
        inside &= flat[i + step : flat.size - i + step]
    edges = np.zeros(flat.size, dtype=np.bool_)
    np.greater(flat[i:-i], inside, out=edges[i:-i])
    return edges


def _corner_codes(padded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flattened: at each voxel's upper corner one bit per neighbour, bit ``4i + 2j + k`` for that at ``(i,j,k)``.

    Meaningless, but 0, where the corner lies outside the box.
    """
    codes = padded.reshape(-1).copy()
    further = np.empty_like(codes)
    i, j, k = _flat_steps(padded.shape)
    for step, bits in ((k, 1), (j, 2), (i, 4)):
        np.left_shift(codes[step:], np.uint8(bits), out=further[step:])
        codes[:-step] |= further[step:]
    return codes


def _flat_steps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """How far the next voxel along I, J and K lies in a flattened box."""
    return (shape[1] * shape[2], shape[2], 1)
