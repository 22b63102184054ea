"""The benchmark of the metrics: that it compares like with like. Its figures belong to benchmarks/."""

import numpy as np
import pytest

from medvisionllama.evaluate import Target, score_volume
from medvisionllama.experiments.benchmarks import metrics as benchmark
from medvisionllama.geometry import Volume


def test_every_rival_scores_the_same_masks(monkeypatch):
    pytest.importorskip("monai")
    bodies = Volume(benchmark._bodies((32, 30, 28), 3), np.diag([1.0, 1.5, 1.0, 1.0]))
    monkeypatch.setattr(benchmark, "_masks", lambda data, many: [benchmark.Masks("small", bodies, [1, 2, 3])])
    (compared,) = benchmark.benchmark_metrics(with_large=False, repeats=1)["masks"]
    assert compared["labels"] == [1, 2, 3]
    for name in ("monai", "monai_on_cut_masks"):
        assert compared[name]["hd95_mm_apart"] < 1e-5
        assert compared[name]["nsd_apart"] < 1e-5
        ratio = compared[name]["processor_s"] / compared["ours"]["processor_s"]
        assert compared[name]["ratio"] == pytest.approx(ratio)


def test_rivals_are_timed_as_often_as_ours(monkeypatch):
    bodies = Volume(benchmark._bodies((24, 24, 24), 2), np.eye(4))
    calls = []

    def rival(*_):
        calls.append(1)
        return 0.0, 0.0

    monkeypatch.setattr(benchmark, "_rivals", lambda: {"rival": rival})
    monkeypatch.setattr(benchmark, "_masks", lambda data, many: [benchmark.Masks("small", bodies, [1, 2])])
    (compared,) = benchmark.benchmark_metrics(with_large=False, repeats=3)["masks"]
    assert len(calls) == 1 + 2 * 3 * 2  # a warm-up; whole and cut masks, three times two classes
    for time in (compared["ours"], compared["rival"], compared["rival_on_cut_masks"]):
        assert time["processor_s_per_class"] == pytest.approx(time["processor_s"] / 2)


def test_what_leaves_the_image_does_not_come_back():
    labels = np.arange(1, 28).reshape(3, 3, 3)
    shifted = benchmark.moved(labels, (1, -2, 0))
    np.testing.assert_array_equal(shifted[1:, :1], labels[:2, 2:])
    assert np.count_nonzero(shifted) == 2 * 1 * 3
    np.testing.assert_array_equal(benchmark.moved(labels, (0, 0, 0)), labels)
    assert not benchmark.moved(labels, (3, 0, 0)).any()


def test_bodies_are_as_many_as_asked_for_and_about_as_full():
    labels = benchmark._bodies((60, 60, 70), 104)
    assert set(np.unique(labels)) == set(range(105))
    assert 0.2 < np.count_nonzero(labels) / labels.size < 0.35


def test_the_shift_is_what_is_scored():
    bodies = Volume(benchmark._bodies((40, 40, 40), 1), np.diag([0.8, 0.8, 0.8, 1.0]))
    masks = benchmark.Masks("one", bodies, [1])
    rows = score_volume(masks.shifted(), bodies, [Target("1", (1,))], 2.0, "")
    (hd95,) = (row.value for row in rows if row.metric == "hd95_mm")
    assert 3.0 < hd95 < 3.0 * np.sqrt(3) + 0.8


def test_the_large_case_small(monkeypatch):
    monkeypatch.setattr(benchmark, "LARGE_SHAPE", (60, 60, 70))
    result = benchmark.score_large()
    assert result["classes"] == 104
    assert result["peak_gb"] >= result["peak_gb_before_scoring"] > 0
    assert 0 < result["mean_dice"] < 1
