"""Chosen on validation, where it helps and nowhere else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medvisionllama.cleanup import Trial, Trials, cleanable, labels_to_clean, read_trials, write_trials
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.errors import InputError
from medvisionllama.run_folder import RunFolder

PLAN = Plan(
    protocol="native",
    task="phantom",
    window=(8, 8, 8),
    spacing_mm=(1.0, 1.0, 1.0),
    intensity=(IntensityRule("zscore"),),
    classes={3: "liver", 7: "lesions"},
    training_cases=1,
    median_shape=(8, 8, 8),
)


def case() -> tuple[np.ndarray, np.ndarray]:
    """A liver of 8 voxels answered with an island of 4 beside it; two lesions, of 4 and 2 voxels, both found."""
    reference = np.zeros((12, 12, 12), np.uint8)
    reference[1:3, 1:3, 1:3] = 3
    reference[8:10, 1:3, 1] = 7
    reference[8:10, 6, 1] = 7
    prediction = reference.copy()
    prediction[5:7, 9:11, 9] = 3
    return prediction, reference


def test_an_organ_gains_and_scattered_lesions_lose() -> None:
    trials = Trials(PLAN)
    trials.add(*case())
    results = trials.results()
    assert results["liver"] == Trial(3, 1, 2 * 8 / (12 + 8), 1.0)
    assert results["lesions"] == Trial(7, 1, 1.0, 2 * 4 / (4 + 6))
    assert results["liver"].helps
    assert not results["lesions"].helps


def test_no_gain_is_no_reason() -> None:
    trials = Trials(PLAN)
    _, reference = case()
    trials.add(np.where(reference == 3, 3, 0).astype(np.uint8), np.where(reference == 3, 3, 0))
    assert not trials.results()["liver"].helps
    assert set(trials.results()) == {"liver"}, "a class in no case is not judged"


def test_the_mean_over_cases_decides_not_the_last_case() -> None:
    """A second case in which the larger component is the wrong one: 8 right voxels against 9 wrong ones."""
    trials = Trials(PLAN)
    prediction, reference = case()
    trials.add(prediction, reference)
    prediction[5:8, 9:12, 9] = 3
    trials.add(prediction, reference)
    liver = trials.results()["liver"]
    assert liver.cases == 2
    assert liver.dice == pytest.approx((16 / 20 + 16 / 25) / 2)
    assert liver.dice_cleaned == pytest.approx((1 + 0) / 2)
    assert not liver.helps


def test_voxels_nobody_labelled_are_not_judged() -> None:
    trials = Trials(PLAN)
    prediction, reference = case()
    labelled = np.ones(reference.shape, bool)
    labelled[5:7, 9:11, 9] = False  # where the island is
    trials.add(prediction, reference, labelled)
    assert trials.results()["liver"] == Trial(3, 1, 1.0, 1.0)


def test_regions_overlap_and_are_left_alone() -> None:
    assert cleanable(PLAN) == {"liver": 3, "lesions": 7}
    assert cleanable(replace(PLAN, protocol="paper", spacing_mm=None)) == {"foreground": 1}
    assert cleanable(replace(PLAN, regions={"whole": (3, 7)}, region_values=(3,))) == {}


def test_what_was_found_is_kept_and_folds_count_by_their_cases(tmp_path: Path) -> None:
    one, other, old = (RunFolder(tmp_path / name) for name in ("one", "other", "old"))
    for run in (one, other, old):
        run.path.mkdir()
    write_trials(one, {"liver": Trial(3, 1, 0.5, 0.9), "lesions": Trial(7, 4, 0.5, 0.5)})
    write_trials(other, {"liver": Trial(3, 9, 0.7, 0.6)})
    assert read_trials(one)["liver"] == Trial(3, 1, 0.5, 0.9)
    assert labels_to_clean([one, old]) == {3}
    assert labels_to_clean([one, other]) == frozenset(), "9 cases that lose 0.1 outweigh one that gains 0.4"
    assert labels_to_clean([old]) == frozenset()


@pytest.mark.parametrize("text", ['{"format": 99, "largest_component": {}}', "[]", '{"format": 1}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "postprocessing.json").write_text(text)
    with pytest.raises(InputError, match="predict RUN --part validation"):
        labels_to_clean([RunFolder(tmp_path)])
