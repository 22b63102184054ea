"""Voxels that know where they lie: a grid, its way to another grid, and the way back.

Axes are those of SPEC: ``M`` modalities, ``I J K`` voxel axes. World coordinates are RAS+ millimetres, as in NIfTI.
No file access here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.optimize import linear_sum_assignment

Shape = tuple[int, int, int]
Array = NDArray[Any]
Affine = NDArray[np.float64]

AFFINE_TOLERANCE_MM = 1e-3
# Share of a voxel by which rounding may put a place on the wrong side of an edge.
ROUNDING = 1e-6


# Compared by same_as: == on arrays gives an array.
@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: how many along each axis, and the affine that takes voxel indices to RAS+ millimetres.

    Raises:
        ValueError: An axis holds no voxel, or the affine is not 4x4, not finite, ends in another row than 0 0 0 1,
            or is singular.
    """

    shape: Shape
    affine: Affine

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid has at least one voxel along each of three axes, not {self.shape}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"an affine is a 4x4 matrix, not {affine.shape}")
        if not np.isfinite(affine).all():
            raise ValueError("the affine holds NaN or infinite numbers")
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError(f"an affine's last row is 0 0 0 1, not {affine[3]}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # Of directions, not of the matrix: the voxels of a microscope are small, yet take up room.
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise ValueError("the affine is singular: voxel axes have no length, or lie in one plane")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along I, J and K."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def orientation(self) -> str:
        """Three letters: the body direction each voxel axis points to most nearly, such as ``RAS`` or ``LPS``."""
        axes, flips = closest_axes(self.affine)
        return "".join("LR"[s] if a == 0 else "PA"[s] if a == 1 else "IS"[s] for a, s in zip(axes, flips, strict=True))

    @property
    def diagonal_mm(self) -> float:
        """Length of the box the voxels fill; an oblique affine does not change it."""
        return float(np.linalg.norm(np.array(self.shape) * self.spacing_mm))

    def distance_mm(self, other: Grid) -> float:
        """The farthest any corner voxel's centre lies from its namesake in ``other`` (inf where the shapes differ)."""
        if self.shape != other.shape:
            return float("inf")
        last = np.array(self.shape) - 1
        corners = np.array(np.meshgrid(*[(0, n) for n in last], indexing="ij")).reshape(3, -1)
        homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
        shift = (self.affine - other.affine) @ homogeneous
        return float(np.linalg.norm(shift[:3], axis=0).max())

    def same_as(self, other: Grid, tolerance_mm: float = AFFINE_TOLERANCE_MM) -> bool:
        """Whether every voxel lies within ``tolerance_mm`` of its namesake."""
        return self.distance_mm(other) <= tolerance_mm

    def with_spacing(self, spacing_mm: tuple[float, float, float]) -> Grid:
        """The grid of nearest whole size that fills the same box at another spacing."""
        extent = np.array(self.shape) * self.spacing_mm
        shape = np.maximum(1, np.round(extent / spacing_mm)).astype(int)
        return self.with_shape((int(shape[0]), int(shape[1]), int(shape[2])))

    def with_shape(self, shape: Shape) -> Grid:
        """The grid of another size that fills the same box: outer faces of the outer voxels coincide."""
        scale = np.array(self.shape) / np.array(shape)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * scale
        affine[:3, 3] = self.affine[:3, 3] + self.affine[:3, :3] @ (scale / 2 - 0.5)
        return Grid(shape, affine)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or label map together with its place in the world.

    Attributes:
        array: ``(I,J,K)``, or ``(M,I,J,K)`` for several modalities.
        affine: 4x4, voxel indices to RAS+ millimetres.
    """

    array: Array
    affine: Affine

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4):
            raise ValueError(f"a volume is (I,J,K) or (M,I,J,K), not {self.array.shape}")
        object.__setattr__(self, "affine", self.grid.affine)

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        i, j, k = self.array.shape[-3:]
        return Grid((i, j, k), self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along I, J and K."""
        return self.grid.spacing_mm

    def with_array(self, array: Array) -> Volume:
        """Other voxels in the same place."""
        return replace(self, array=array)


def closest_axes(affine: Affine) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For each voxel axis the nearest world axis (0 R, 1 A, 2 S), and 1 where it points that way, 0 where against.

    No two voxel axes share a world axis, however oblique the affine: the assignment with the largest sum of
    absolute direction cosines wins.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    _, voxel_axis = linear_sum_assignment(-np.abs(cosines))
    world = np.argsort(voxel_axis)
    signs = [int(cosines[world[axis], axis] > 0) for axis in range(3)]
    return (int(world[0]), int(world[1]), int(world[2])), (signs[0], signs[1], signs[2])


def ras_grid(grid: Grid) -> Grid:
    """The same places with axes permuted and flipped so that I, J, K run nearest to right, anterior, superior.

    An oblique affine stays oblique.
    """
    return _rearranged(grid, *_way_to_ras(grid))


def to_ras(volume: Volume) -> Volume:
    """The volume on :func:`ras_grid`: nothing is interpolated. :func:`onto_axes_of` is the way back."""
    return _rearrange(volume, *_way_to_ras(volume.grid))


def seen_in_ras_order(array: Array, grid: Grid) -> Array:
    """An array ``(...,I,J,K)`` on ``grid`` seen in RAS order: a view, so that writing to it writes to the array."""
    return _turned(array, *_way_to_ras(grid))


def onto_axes_of(volume: Volume, original: Grid) -> Volume:
    """Undo :func:`to_ras`: voxels in RAS order back in the axis order and directions of ``original``.

    Sizes may differ from the original's; the directions alone are taken.
    """
    world, signs = closest_axes(original.affine)
    return _rearrange(volume, list(world), [sign == 0 for sign in signs])


def _way_to_ras(grid: Grid) -> tuple[list[int], list[bool]]:
    world, signs = closest_axes(grid.affine)
    order = [world.index(axis) for axis in range(3)]
    return order, [signs[axis] == 0 for axis in order]


def _rearrange(volume: Volume, order: list[int], flips: list[bool]) -> Volume:
    """Take voxel axes in ``order``, then reverse those flagged; the affine follows so that no voxel moves."""
    array = np.ascontiguousarray(_turned(volume.array, order, flips))
    return Volume(array, _rearranged(volume.grid, order, flips).affine)


def _turned(array: Array, order: list[int], flips: list[bool]) -> Array:
    lead = array.ndim - 3
    array = array.transpose(*range(lead), *[lead + axis for axis in order])
    return np.flip(array, tuple(lead + axis for axis, flip in enumerate(flips) if flip))


def _rearranged(grid: Grid, order: list[int], flips: list[bool]) -> Grid:
    i, j, k = (grid.shape[axis] for axis in order)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, order]
    for axis, (size, flip) in enumerate(zip((i, j, k), flips, strict=True)):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (size - 1)
            affine[:3, axis] *= -1
    return Grid((i, j, k), affine)


def resize(array: Array, shape: Shape, order: Literal[0, 1]) -> Array:
    """Stretch the last three axes to ``shape``, the outer faces of the outer voxels held (:meth:`Grid.with_shape`).

    Args:
        array: ``(...,I,J,K)``.
        shape: The new ``(I,J,K)``.
        order: 0 for labels (nearest voxel), 1 for images and probabilities (linear, one axis after another).

    Edges are held, never extrapolated. Nearest takes the lower voxel at an exact tie. Whole numbers turn float where
    they are interpolated. An array that has the shape already is returned itself.
    """
    lead = array.ndim - 3
    for axis, size in enumerate(shape):
        array = _resize_axis(array, lead + axis, size, order)
    return array


def _resize_axis(array: Array, axis: int, size: int, order: Literal[0, 1]) -> Array:
    old_size = array.shape[axis]
    if size == old_size:
        return array
    centres = np.clip((np.arange(size) + 0.5) * old_size / size - 0.5, 0, old_size - 1)
    if order == 0:
        nearest: Array = np.take(array, np.ceil(centres - 0.5).astype(np.intp), axis)
        return nearest
    below = np.minimum(np.floor(centres).astype(np.intp), max(old_size - 2, 0))
    above = np.minimum(below + 1, old_size - 1)
    dtype = array.dtype if array.dtype.kind == "f" else np.float32
    weight = (centres - below).astype(dtype).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    result: Array = np.take(array, below, axis) * (1 - weight) + np.take(array, above, axis) * weight
    return result


def resample_onto(volume: Volume, grid: Grid, order: Literal[0, 1]) -> Volume:
    """Look ``volume`` up at the voxel centres of any other grid, however turned (0 nearest, 1 linear).

    Outside the box that the volume's voxels fill it is 0; between its outer voxels' centres and their outer faces the
    edge is held. For grids that fill the same box along the same axes, :func:`resize` does the same faster.
    """
    to_voxel = np.linalg.inv(volume.affine) @ grid.affine
    channels = volume.array.reshape(-1, *volume.grid.shape)
    dtype = volume.array.dtype if order == 0 else np.result_type(volume.array.dtype, np.float32)
    channels = channels.astype(dtype, copy=False)
    found = np.zeros((len(channels), *grid.shape), dtype)
    plane = np.indices((1, *grid.shape[1:]), dtype=np.float64).reshape(3, -1)
    last = np.array(volume.grid.shape)[:, None] - 1
    for i in range(grid.shape[0]):  # plane by plane: the places of a whole CT would fill a machine's memory
        plane[0] = i
        where = to_voxel[:3, :3] @ plane + to_voxel[:3, 3:]
        inside = (np.abs(where - last / 2) <= last / 2 + 0.5 + ROUNDING).all(axis=0)
        where = np.clip(where[:, inside], 0, last)
        in_plane = found[:, i].reshape(len(channels), -1)
        if order == 0:
            # Rounded as in resize: the lower voxel at a tie, however a turned grid's arithmetic jitters about it.
            in_plane[:, inside] = channels[:, *np.ceil(where - 0.5 - ROUNDING).astype(np.intp)]
        else:
            for channel, values in zip(channels, in_plane, strict=True):
                values[inside] = map_coordinates(channel, where, order=1, mode="nearest")
    return Volume(found.reshape(*volume.array.shape[:-3], *grid.shape), grid.affine)
