"""Where in an array something is, and the same places in a larger array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Points = NDArray[np.intp]
Box = tuple[slice, slice, slice]
Planes = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
CACHE_BYTES = 1 << 18  # what is passed over several times is cut into blocks of this size
_NOWHERE = np.zeros(0, dtype=np.intp)


def occupied_planes(array: NDArray[Any]) -> Planes:
    """For every axis of ``(I,J,K)`` the indices of the planes that are not all zero, ascending."""
    if array.flags.f_contiguous and not array.flags.c_contiguous:  # as nibabel has them: quicker from the other end
        k, j, i = occupied_planes(array.T)
        return (i, j, k)
    if not array.size:
        return (_NOWHERE, _NOWHERE, _NOWHERE)
    # One pass over the whole array, then one over what that leaves: row by row, where maxima are quick.
    shadow: NDArray[Any] = array.max(axis=0)
    j, k = np.flatnonzero(shadow.max(axis=1)), np.flatnonzero(shadow.max(axis=0))
    if not j.size:
        return (_NOWHERE, _NOWHERE, _NOWHERE)
    i = np.flatnonzero(array[:, j[0] : j[-1] + 1, k[0] : k[-1] + 1].max(axis=1).max(axis=1))
    return (i, j, k)


def box_of(array: NDArray[Any]) -> Box | None:
    """The smallest box that holds all that is not zero; None where there is nothing."""
    i, j, k = occupied_planes(array)
    if not i.size:
        return None
    return (_from_to(i), _from_to(j), _from_to(k))


def _from_to(indices: NDArray[np.intp]) -> slice:
    return slice(int(indices[0]), int(indices[-1]) + 1)


def moved_into(points: Points, shape: tuple[int, ...], into: tuple[int, ...], corner: Sequence[int]) -> Points:
    """Flat indices in a box of ``shape`` as those in a box of shape ``into``, where it begins at ``corner``."""
    i, j, k = corner
    rows, planes = points // shape[2], points // (shape[1] * shape[2])
    moved = points + rows * (into[2] - shape[2])
    moved += planes * ((into[1] - shape[1]) * into[2]) + ((i * into[1] + j) * into[2] + k)
    return moved
