"""From every point of one set to the nearest of another, both on the voxels of one box.

Distances are exact, and sought no farther than asked for. Along the first axis, the way to the other set is made for
every voxel of the box at once; across the other two it is looked up in rings of growing distance, until no farther ring
can matter. Whatever lies farther off, and boxes with little in them, are left to a k-d tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from medvisionllama.metrics.boxes import CACHE_BYTES, Points, Shape, Spacing, moved_into

# What a k-d tree costs in voxels of a box to be filled: to build for each point in it, to ask for each point.
TREE_COSTS = (100, 1000)
# About so many lines are looked up around a point before a tree is cheaper; each is followed by steps of these sizes.
LINES = 1024
LINE_STEPS = (1, 2, 4, 8, 16)
LINE_REACH = sum(LINE_STEPS)  # any distance up to here is a sum of some of them


def distances_mm(
    points: Points,
    others: Points,
    shape: Shape,
    spacing_mm: Spacing,
    limit_mm: float = math.inf,
    enough: int | None = None,
) -> NDArray[np.float64]:
    """From each of ``points`` to the nearest of ``others``; inf where that was not needed.

    Not needed are distances beyond ``limit_mm``, and all but the ``enough`` smallest.
    """
    wanted = len(points) if enough is None else enough
    rings = _rings(spacing_mm)
    if math.prod(rings.padded(shape)) > TREE_COSTS[0] * len(others) + TREE_COSTS[1] * len(points):
        distances, reached_mm = np.full(len(points), math.inf), -math.inf
    else:
        distances = _ring_distances_mm(points, others, shape, rings, limit_mm, wanted)
        reached_mm = rings.reach_mm
    left = np.flatnonzero(np.isinf(distances))
    if len(points) - len(left) < wanted and reached_mm < limit_mm:
        tree = KDTree(_positions_mm(others, shape, spacing_mm), leafsize=32)
        beyond = 1.001 * limit_mm + min(spacing_mm) / 2  # the tree leaves its bound out
        distances[left], _ = tree.query(_positions_mm(points[left], shape, spacing_mm), distance_upper_bound=beyond)
    return distances


def _positions_mm(points: Points, shape: Shape, spacing_mm: Spacing) -> NDArray[np.float64]:
    """``(n,3)``, up to a common shift."""
    positions = np.stack(np.unravel_index(points, shape), axis=1).astype(np.float64)
    positions *= spacing_mm
    return positions


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
    """As :func:`distances_mm`, but inf wherever the rings do not reach."""
    padded = rings.padded(shape)
    steps = _steps_along_lines(others, shape, rings, limit_mm).reshape(-1)
    squares = np.square(np.arange(256) * rings.i_mm)
    squares[LINE_REACH + 1 :] = math.inf
    squares_mm2 = np.empty(len(points))
    # Points stand at the corner of their own padding, which the rings' steps start from.
    at = moved_into(points, shape, padded, (0, 0, 0))
    left, best = np.arange(len(points)), np.full(len(points), math.inf)
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
