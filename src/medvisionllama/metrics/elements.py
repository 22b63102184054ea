"""The area of the surface through a voxel corner, for each of the 256 ways its eight neighbours can be."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from medvisionllama.metrics.boxes import Points, Spacing


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
