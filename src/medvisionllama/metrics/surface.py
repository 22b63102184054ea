"""How far apart two surfaces lie: HD95 and normalised surface Dice, in millimetres.

A mask has two kinds of surface here, as the two metrics are defined on different ones:

* *edge voxels*, foreground voxels with a background neighbour across a face: HD95 (MONAI's definition);
* *surface elements*, the voxel corners whose eight neighbours are not all alike, each with the area of the piece of
  surface that runs through them: NSD (Nikolov et al., arXiv:1809.04430; MONAI's ``use_subvoxels=True``).

Outside the image everything is background, so an object at the border has a surface there.

Distances are exact and asked for at surface points alone. Along one axis, the distance to the other surface is made for
every voxel of the box at once; across the other two it is looked up in rings of growing distance, until no farther ring
can matter: HD95 needs no distance beyond its percentile, NSD none beyond its tolerance. Whatever lies farther off, and
boxes with little in them, are left to a k-d tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import KDTree

from medvisionllama.metrics.boxes import Box, occupied_planes

Mask = NDArray[np.bool_]
Points = NDArray[np.intp]
Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

# A surface exactly on the tolerance counts as within it, whatever the last bit of the spacing says.
TOLERANCE_SLACK = 1e-6
# What a k-d tree costs in voxels of a box to be filled: to build for each point in it, to ask for each point.
TREE_COSTS = (100, 1000)
# About so many lines are looked up around a point before a tree is cheaper; each is followed by steps of these sizes.
LINES = 1024
LINE_STEPS = (1, 2, 4, 8, 16)
LINE_REACH = sum(LINE_STEPS)  # any distance up to here is a sum of some of them
CACHE_BYTES = 1 << 18  # what is passed over several times is cut into blocks of this size
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
        """From each of ``points`` to the nearest of ``others``; inf where that was not needed.

        Not needed are distances beyond ``limit_mm``, and all but the ``enough`` smallest.
        """
        wanted = len(points) if enough is None else enough
        rings = _rings(self.spacing_mm)
        if math.prod(rings.padded(self.shape)) > TREE_COSTS[0] * len(others) + TREE_COSTS[1] * len(points):
            distances, reached_mm = np.full(len(points), math.inf), -math.inf
        else:
            distances = _ring_distances_mm(points, others, self.shape, rings, limit_mm, wanted)
            reached_mm = rings.reach_mm
        left = np.flatnonzero(np.isinf(distances))
        if len(points) - len(left) < wanted and reached_mm < limit_mm:
            tree = KDTree(self._positions_mm(others), leafsize=32)
            beyond = 1.001 * limit_mm + min(self.spacing_mm) / 2  # the tree leaves its bound out
            distances[left], _ = tree.query(self._positions_mm(points[left]), distance_upper_bound=beyond)
        return distances

    def _positions_mm(self, points: Points) -> NDArray[np.float64]:
        """``(n,3)``, up to a common shift."""
        positions = np.stack(np.unravel_index(points, self.shape), axis=1).astype(np.float64)
        positions *= self.spacing_mm
        return positions


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
            elements.append(_moved(mixed, padded.shape, shape, start))
            # A padded voxel lies one step on from the unpadded one, a corner at its voxel's lower end.
            edges = np.flatnonzero(_edge_voxels(padded))
            edge_voxels.append(_moved(edges, padded.shape, shape, (start[0] - 1, start[1] - 1, start[2] - 1)))
    return _Surface(np.concatenate(edge_voxels), np.concatenate(elements), np.concatenate(element_areas))


def _moved(points: Points, shape: tuple[int, ...], into: tuple[int, ...], corner: Sequence[int]) -> Points:
    """Flat indices in a box of ``shape`` as those in a box of shape ``into``, where it begins at ``corner``."""
    i, j, k = corner
    rows, planes = points // shape[2], points // (shape[1] * shape[2])
    moved = points + rows * (into[2] - shape[2])
    moved += planes * ((into[1] - shape[1]) * into[2]) + ((i * into[1] + j) * into[2] + k)
    return moved


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


@dataclass(frozen=True)
class _Rings:
    """Steps across the lines along J and K, nearest first, those of one length together.

    Attributes:
        i_mm: Distance of two voxels on a line.
        rings: The square of the length in mm², and ``(n,2)`` steps.
        reach_mm: Up to where they are complete.
        pad: The largest step along J and along K.
    """

    i_mm: float
    rings: tuple[tuple[float, Points], ...]
    reach_mm: float
    pad: tuple[int, int]

    def padded(self, shape: Shape) -> Shape:
        """A box of ``shape`` with room for all steps around every point of it."""
        return (shape[0], shape[1] + 2 * self.pad[0], shape[2] + 2 * self.pad[1])

    def flat(self, shape: Shape) -> Iterator[tuple[float, list[int]]]:
        """Every ring's square, and its steps in a flattened array of ``shape`` from the corner of the padding on."""
        for square_mm2, steps in self.rings:
            yield square_mm2, ((steps + self.pad) @ np.array([shape[2], 1])).tolist()


@lru_cache(maxsize=32)
def _rings(spacing_mm: Spacing) -> _Rings:
    i_mm, j_mm, k_mm = spacing_mm
    # About LINES lines cross a disc of this radius. No farther than lines are followed: a nearer point may be beyond.
    radius_mm = min(math.sqrt(LINES * j_mm * k_mm / math.pi), LINE_REACH * i_mm)
    pad = (math.floor(radius_mm / j_mm), math.floor(radius_mm / k_mm))
    steps = np.array(list(itertools.product(*(range(-p, p + 1) for p in pad))), dtype=np.intp)
    squares = np.square(steps * np.array([j_mm, k_mm])).sum(axis=1)
    lengths = [float(square) for square in np.unique(squares) if square <= radius_mm**2]
    rings = tuple((square, steps[squares == square]) for square in lengths)
    return _Rings(i_mm, rings, math.sqrt(lengths[-1]), pad)


def _ring_distances_mm(
    points: Points, others: Points, shape: Shape, rings: _Rings, limit_mm: float, enough: int
) -> NDArray[np.float64]:
    """As :meth:`_Surfaces.distances_mm`, but inf wherever the rings do not reach."""
    padded = rings.padded(shape)
    steps = _steps_along_lines(others, shape, rings, limit_mm).reshape(-1)
    squares = np.square(np.arange(256) * rings.i_mm)
    squares[LINE_REACH + 1 :] = math.inf
    squares_mm2 = np.empty(len(points))
    # Points stand at the corner of their own padding, which the rings' steps start from.
    left, at, best = np.arange(len(points)), _moved(points, shape, padded, (0, 0, 0)), np.full(len(points), math.inf)
    for across, offsets in rings.flat(padded):
        open_ = best > across  # the others are settled: no line from here on is nearer
        count = int(np.count_nonzero(open_))
        if len(points) - count >= enough or across > limit_mm**2:
            break
        if count < 7 / 8 * len(left):
            squares_mm2[left] = best
            kept = np.flatnonzero(open_)
            left, at, best = left.take(kept), at.take(kept), best.take(kept)
        # Shifting the array is cheaper than shifting every index; "wrap" spares a look at the bounds, which hold.
        fewest = steps[offsets[0] :].take(at, mode="wrap")
        for offset in offsets[1:]:
            np.minimum(fewest, steps[offset:].take(at, mode="wrap"), out=fewest)
        np.minimum(best, squares.take(fewest) + across, out=best)
    squares_mm2[left] = np.where(best > across, math.inf, best)
    return np.sqrt(squares_mm2)


def _steps_along_lines(others: Points, shape: Shape, rings: _Rings, limit_mm: float) -> NDArray[np.uint8]:
    """For every voxel of a box, the steps to the nearest of ``others`` along the first axis; then padded for ``rings``.

    More than :data:`LINE_REACH` where there is none within that reach or within ``limit_mm``.
    """
    nowhere = np.uint8(2 * LINE_REACH)
    steps = np.full(shape, nowhere)
    steps.reshape(-1)[others] = 0
    padded = np.full(rings.padded(shape), nowhere)
    j_pad, k_pad = rings.pad
    rows = max(1, CACHE_BYTES // (shape[0] * shape[2]))
    for j in range(0, shape[1], rows):
        block = steps[:, j : j + rows].copy()
        if not block.all():
            _follow_lines(block, limit_mm / rings.i_mm)
            padded[:, j_pad + j : j_pad + j + block.shape[1], k_pad : k_pad + shape[2]] = block
    return padded


def _follow_lines(steps: NDArray[np.uint8], limit: float) -> None:
    """Turn an array that is 0 at points into the steps to the nearest along the first axis, at least to ``limit``."""
    farther = np.empty_like(steps)
    reached = 0
    for step in LINE_STEPS:
        if reached > limit:
            break
        np.add(steps, np.uint8(step), out=farther)
        np.minimum(steps[step:], farther[:-step], out=steps[step:])
        np.minimum(steps[:-step], farther[step:], out=steps[:-step])
        reached += step


@lru_cache(maxsize=32)
def element_areas_mm2(spacing_mm: Spacing) -> NDArray[np.float64]:
    """``(256,)``: the area of the surface through a voxel corner, by the code of its eight neighbours.

    The surface of marching cubes through the mid-points of the cube's edges (Lorensen and Cline 1987; the choice at
    ambiguous faces is theirs: corners of the rarer kind stay apart unless they share an edge). So the area is a sum
    over groups of such corners joined by edges, and there are only six shapes of group.
    """
    i_mm, j_mm, k_mm = spacing_mm
    codes, normals = _patches()
    patches_mm2 = np.linalg.norm(normals * np.array([j_mm * k_mm, i_mm * k_mm, i_mm * j_mm]), axis=1)
    areas: NDArray[np.float64] = np.bincount(codes, patches_mm2, minlength=256).astype(np.float64)
    areas.setflags(write=False)
    return areas


@lru_cache(maxsize=1)
def _patches() -> tuple[Points, NDArray[np.float64]]:
    """Every planar patch of all 256 surfaces: its code, and its area vector for a unit cube, ``(patches,3)``."""
    codes: list[int] = []
    normals = []
    for code in range(256):
        corners = np.array([code >> bit & 1 for bit in range(8)], dtype=np.bool_).reshape(2, 2, 2)
        groups, count = label(corners if corners.sum() <= 4 else ~corners)
        for group in range(1, count + 1):
            normals.append(_patch_normals(np.argwhere(groups == group)))
            codes += [code] * len(normals[-1])
    return np.array(codes), np.concatenate(normals)


def _patch_normals(corners: Points) -> NDArray[np.float64]:
    """``(patches,3)``: area vectors (absolute, for a unit cube) of the planar patches that cut ``corners`` off.

    Args:
        corners: ``(n,3)`` of 0 and 1, n from 1 to 4, joined by edges of the cube.
    """
    unit = np.eye(3)
    steps = [np.flatnonzero(a != b) for a, b in itertools.combinations(corners, 2)]
    along = [int(step[0]) for step in steps if len(step) == 1]  # the axis of each edge within the group
    if len(corners) == 1:  # a triangle
        return np.full((1, 3), 1 / 8)
    if len(corners) == 2:  # a rectangle along the edge
        return np.array([(1 - unit[along[0]]) / 2])
    if len(corners) == 3:  # a triangle beside the two edges, a trapezium across
        return np.array([unit[3 - sum(along)] / 2, np.full(3, 3 / 8)])
    if len(along) == 4:  # a face: a rectangle half-way
        return unit[[3 - sum(set(along))]]
    neighbours = np.abs(corners[:, None] - corners).sum(axis=2) == 1
    if neighbours.sum(axis=1).max() == 3:  # a corner and its three neighbours: a hexagon
        return np.full((1, 3), 6 / 8)
    # A path along three different axes: a rectangle between two triangles, one beside the edge at each end.
    ends = np.flatnonzero(neighbours.sum(axis=1) == 1)
    first, last = ((corners[end] != corners[neighbours[end]][0]).argmax() for end in ends)
    return np.array([np.full(3, 4 / 8), (1 - unit[first]) / 4, (1 - unit[last]) / 4])
