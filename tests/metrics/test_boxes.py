"""Boxes against a look at every voxel."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medvisionllama.metrics.boxes import box_of, occupied_planes


@given(
    arrays(np.uint8, st.tuples(*(st.integers(0, 4),) * 3), elements=st.sampled_from([0, 0, 0, 0, 1, 7])),
    st.sampled_from([np.ascontiguousarray, np.asfortranarray, lambda a: a.astype(bool), lambda a: a[::-1, :, ::-1]]),
)
def test_planes_and_box_are_those_of_every_voxel(array, form):
    array = form(array)
    voxels = np.argwhere(array)
    for axis, planes in enumerate(occupied_planes(array)):
        assert planes.tolist() == sorted(set(voxels[:, axis]))
    box = box_of(array)
    assert (box is None) == (len(voxels) == 0)
    if box is not None:
        assert [(s.start, s.stop) for s in box] == [(v.min(), v.max() + 1) for v in voxels.T]
