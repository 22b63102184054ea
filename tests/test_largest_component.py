"""Known answers, by hand and by another connected-components program."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from medvisionllama.largest_component import keep_largest


def test_islands_go_and_the_largest_stays() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:4, 1:4, 1:4] = 1  # 27 voxels
    labels[6:8, 6:8, 6:8] = 1  # 8
    labels[0, 8, 8] = 1  # 1
    labels[6:8, 1, 1] = 2
    expected = labels.copy()
    expected[6:8, 6:8, 6:8] = 0
    expected[0, 8, 8] = 0
    kept = labels.copy()
    np.testing.assert_array_equal(keep_largest(labels, [1]), expected)
    np.testing.assert_array_equal(labels, kept)


def test_other_classes_are_left_alone() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 0, 0] = labels[4, 4, 4] = labels[4, 4, 3] = 2
    labels[2, 2, 2] = labels[0, 4, 0] = labels[0, 4, 1] = 1
    cleaned = keep_largest(labels, [1])
    assert (cleaned == 2).sum() == 3
    assert (cleaned == 1).sum() == 2
    assert cleaned[2, 2, 2] == 0


def test_corners_join_voxels() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 1
    labels[3, 0, 0] = labels[3, 0, 1] = 1
    assert keep_largest(labels, [1]).sum() == 3


def test_nothing_to_take_away_gives_the_same_array() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3] = 3
    for chosen in ([], [3], [1, 7]):
        assert keep_largest(labels, chosen) is labels


def test_it_agrees_with_a_graph_of_neighbours() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels = (generator.random((12, 13, 14)) < 0.06).astype(np.uint8) * 5
        voxels = np.argwhere(labels == 5)
        near = cKDTree(voxels).query_pairs(1.8, output_type="ndarray")  # a corner is 1.73 away
        graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(voxels),) * 2)
        _, part = connected_components(graph, directed=False)
        expected = np.zeros_like(labels)
        expected[tuple(voxels[part == np.bincount(part).argmax()].T)] = 5
        assert part.max() > 1
        np.testing.assert_array_equal(keep_largest(labels, [5]), expected)
