"""The largest connected component of a class: what is left of it when stray islands are taken away.

Voxels are neighbours where they share a face, an edge or a corner, as in nnU-Net.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def keep_largest(label_map_IJK: NDArray[Any], labels: Collection[int]) -> NDArray[Any]:
    """A label map in which only the largest component of each of ``labels`` is left; the rest of it becomes 0.

    Of two components of equal size the one with the first voxel (I slowest) stays. A label map with nothing to take
    away is returned itself.
    """
    boxes: list[Any] = ndimage.find_objects(label_map_IJK, max_label=max(labels)) if labels else []
    cleaned = label_map_IJK
    for label in sorted(labels):
        box = boxes[label - 1]
        if box is None:  # no voxel has the label
            continue
        components, count = ndimage.label(label_map_IJK[box] == label, _NEIGHBOURS)
        if count > 1:
            cleaned = label_map_IJK.copy() if cleaned is label_map_IJK else cleaned
            largest = np.bincount(components.ravel())[1:].argmax() + 1
            cleaned[box][(components > 0) & (components != largest)] = 0
    return cleaned
