"""Overlap metrics against counts by hand and their identities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medvisionllama.metrics.overlap import Counts, counts_of, joint_histogram, label_counts, overlap_scores

MASK = arrays(bool, (3, 4, 2))
LABELS = arrays(np.uint8, (3, 4, 2), elements=st.integers(0, 4))


def test_known_by_hand():
    scores = overlap_scores(Counts(true_positives=6, false_positives=2, false_negatives=4, true_negatives=88))
    assert scores == {
        "dice": 12 / 18,
        "jaccard": 6 / 12,
        "accuracy": 94 / 100,
        "precision": 6 / 8,
        "recall": 6 / 10,
        "specificity": 88 / 90,
    }


def test_empty_masks():
    assert all(math.isnan(value) for value in overlap_scores(Counts(0, 0, 0, 9)).values())
    missed, invented = overlap_scores(Counts(0, 0, 3, 7)), overlap_scores(Counts(0, 3, 0, 7))
    for scores in (missed, invented):
        assert [scores[m] for m in ("dice", "jaccard", "precision", "recall")] == [0, 0, 0, 0]
        assert scores["accuracy"] == 0.7
    assert missed["specificity"] == 1
    assert invented["specificity"] == 0.7


def test_a_full_reference_has_no_specificity():
    assert math.isnan(overlap_scores(Counts(5, 0, 5, 0))["specificity"])


@given(prediction=MASK, reference=MASK)
def test_counts_are_those_of_numpy(prediction, reference):
    counts = Counts.of(prediction, reference)
    assert counts == Counts(
        int((prediction & reference).sum()),
        int((prediction & ~reference).sum()),
        int((~prediction & reference).sum()),
        int((~prediction & ~reference).sum()),
    )


@given(prediction=MASK, reference=MASK)
def test_identities(prediction, reference):
    scores = overlap_scores(Counts.of(prediction, reference))
    swapped = overlap_scores(Counts.of(reference, prediction))
    same = pytest.approx
    assert scores["jaccard"] == same(scores["dice"] / (2 - scores["dice"]), nan_ok=True)
    assert swapped["dice"] == same(scores["dice"], nan_ok=True)
    assert swapped["accuracy"] == same(scores["accuracy"], nan_ok=True)
    assert (swapped["precision"], swapped["recall"]) == same((scores["recall"], scores["precision"]), nan_ok=True)
    if scores["precision"] and scores["recall"]:
        harmonic = 2 / (1 / scores["precision"] + 1 / scores["recall"])
        assert scores["dice"] == same(harmonic, nan_ok=True)


@settings(max_examples=50)
@given(prediction=LABELS, reference=LABELS, wanted=st.sets(st.integers(1, 9), min_size=1))
def test_one_histogram_counts_every_union(prediction, reference, wanted):
    histogram = joint_histogram(prediction, reference, 5)
    assert histogram.sum() == prediction.size
    expected = Counts.of(np.isin(prediction, list(wanted)), np.isin(reference, list(wanted)))
    assert counts_of(wanted, histogram) == expected


def test_the_histogram_crosses_chunks(monkeypatch):
    labels = np.arange(1000, dtype=np.uint8) % 7
    monkeypatch.setattr("medvisionllama.metrics.overlap._CHUNK", 64)
    assert np.array_equal(joint_histogram(labels, labels, 7), np.diag(np.bincount(labels)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_labels_are_counted(dtype):
    labels = np.array([[3, 0, 3], [200, 0, 0]], dtype=dtype)
    assert label_counts(labels) == {0: 3, 3: 2, 200: 1}


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Counts.of(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
