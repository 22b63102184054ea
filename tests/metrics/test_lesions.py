"""Lesions counted by hand."""

import math
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import generate_binary_structure, label

from medvisionllama.metrics.lesions import LESION_METRICS, _matches, lesion_scores

MM = (1.0, 1.0, 1.0)


def boxes(*corners, edge=4, shape=(40, 40, 12)):
    mask = np.zeros(shape, bool)
    for i, j, k in corners:
        mask[i : i + edge, j : j + edge, k : k + edge] = True
    return mask


def test_found_missed_and_invented():
    reference = boxes((2, 2, 2), (20, 2, 2), (2, 20, 2))
    prediction = boxes((3, 2, 2), (20, 2, 2), (30, 30, 2), (20, 30, 2))
    scores = lesion_scores(prediction, reference, MM)
    assert (scores.lesions, scores.found, scores.predicted, scores.false_positives) == (3, 2, 4, 2)
    assert scores.sensitivity == pytest.approx(2 / 3)


@pytest.mark.parametrize(("min_iou", "found"), [(0.1, 1), (0.6, 1), (0.61, 0), (1.0, 0)])
def test_the_threshold_decides(min_iou, found):
    # Shifted by one of four voxels: 48 shared of 80.
    assert lesion_scores(boxes((3, 2, 2)), boxes((2, 2, 2)), MM, min_iou).found == found


def test_one_prediction_over_two_lesions_finds_one():
    reference = boxes((2, 2, 2), (8, 2, 2))
    prediction = np.zeros_like(reference)
    prediction[2:12, 2:6, 2:6] = True
    scores = lesion_scores(prediction, reference, MM)
    assert (scores.lesions, scores.found, scores.predicted) == (2, 1, 1)
    back = lesion_scores(reference, prediction, MM)
    assert (back.lesions, back.found, back.false_positives) == (1, 1, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.5), st.sampled_from([0.01, 0.1, 0.3, 0.6]))
def test_matches_are_those_of_a_plain_search(seed, density, min_iou):
    generator = np.random.default_rng(seed)
    a, b = (generator.random((9, 8, 7)) < density for _ in range(2))
    b = np.where(generator.random(a.shape) < 0.7, a, b)
    (one, m), (other, n) = (label(mask, generate_binary_structure(3, 3)) for mask in (a, b))
    overlaps = {
        (p, r): np.count_nonzero((one == p) & (other == r)) / np.count_nonzero((one == p) | (other == r))
        for p in range(1, m + 1)
        for r in range(1, n + 1)
    }
    found = 0
    for (p, r), overlap in sorted(overlaps.items(), key=lambda item: -item[1]):
        if overlap >= min_iou and (p, r) in overlaps:
            found += 1
            overlaps = {pair: o for pair, o in overlaps.items() if pair[0] != p and pair[1] != r}
    assert lesion_scores(a, b, MM, min_iou).found == found


def test_pairs_are_counted_as_numbers_not_as_columns():
    labels = np.repeat(np.arange(1, 9, dtype=np.int32), 50_000)
    start = process_time()
    assert _matches(labels, labels, 0.1) == 8
    ours = process_time() - start
    start = process_time()
    np.unique(np.stack([labels, labels]), axis=1, return_counts=True)
    assert ours < (process_time() - start) / 3


def test_volumes_are_millilitres():
    scores = lesion_scores(boxes((2, 2, 2), (9, 9, 2)), boxes((2, 2, 2)), (0.5, 0.5, 5.0))
    assert (scores.volume_ml, scores.predicted_volume_ml) == pytest.approx((0.08, 0.16))
    assert scores.as_dict()["volume_difference_ml"] == pytest.approx(0.08)
    assert tuple(scores.as_dict()) == LESION_METRICS


def test_connectivity():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert [lesion_scores(mask, mask, MM, connectivity=c).lesions for c in (1, 2, 3)] == [2, 2, 1]


def test_nothing_to_find():
    none, some = boxes(), boxes((2, 2, 2))
    false = lesion_scores(some, none, MM)
    assert (false.lesions, false.false_positives) == (0, 1)
    assert math.isnan(false.sensitivity)
    assert lesion_scores(none, some, MM).sensitivity == 0
    empty = lesion_scores(none, none, MM)
    assert (empty.lesions, empty.predicted, empty.volume_ml) == (0, 0, 0)


@pytest.mark.parametrize("arguments", [{"min_iou": 0.0}, {"min_iou": 1.5}])
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="intersection"):
        lesion_scores(boxes(), boxes(), MM, **arguments)
    with pytest.raises(ValueError, match="alike"):
        lesion_scores(boxes(), boxes(shape=(3, 3, 3)), MM)
