import json
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvisionllama.data.splits import Splits, make_splits, read_splits, write_splits
from medvisionllama.errors import InputError

CASES = [f"case_{number:03d}" for number in range(100)]


def patient_of_scan(case: str) -> str:
    """``p03_s1`` is a scan of ``p03``."""
    return case.split("_")[0]


SCANS = [f"p{patient:02d}_s{scan}" for patient in range(30) for scan in range(1 + patient % 4)]


def test_a_hundred_cases_are_divided_as_promised() -> None:
    splits = make_splits(CASES)
    assert len(splits.test) == 10
    assert [len(fold) for fold in splits.folds] == [18] * 5
    parts = [splits.test, *splits.folds]
    assert Counter(case for part in parts for case in part) == Counter(CASES)
    assert len(splits.training(0)) == 72


@given(st.lists(st.text(min_size=1), min_size=2, max_size=40, unique=True), st.integers(0, 99), st.randoms())
def test_no_case_is_lost_or_in_two_parts(names: list[str], seed: int, random: object) -> None:
    splits = make_splits(names, seed)
    assert sorted([*splits.test, *(case for fold in splits.folds for case in fold)]) == sorted(names)
    for fold in range(len(splits.folds)):
        training, validation = set(splits.training(fold)), set(splits.validation(fold))
        assert training
        assert validation
        assert not training & validation
        assert training | validation | set(splits.test) == set(names)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert make_splits(names, seed) == splits


def test_another_seed_gives_other_parts_the_same_seed_the_same() -> None:
    assert make_splits(CASES, 1).test != make_splits(CASES, 0).test
    # The order is that of SHA-256, so it changes on no machine and with no version.
    names = [f"c{number}" for number in range(10)]
    first = min(names, key=lambda name: sha256(f"split/0/{name}".encode()).hexdigest())
    assert make_splits(names).test == (first,) == ("c0",)


@pytest.mark.parametrize("patient_of", [patient_of_scan, r"^(p\d+)_s", r"^p\d+"])
def test_no_patient_is_in_two_parts(patient_of: object) -> None:
    splits = make_splits(SCANS, patient_of=patient_of)  # type: ignore[arg-type]
    parts = [splits.test, *splits.folds]
    holders = Counter(patient for part in parts for patient in {patient_of_scan(case) for case in part})
    assert set(holders.values()) == {1}
    assert len(holders) == 30
    assert {patient_of_scan(case) for case in splits.test} != set()


def test_without_patients_the_same_scans_do_leak() -> None:
    """The negative control: what the test above would see if patients were not heeded."""
    parts = [make_splits(SCANS).test, *make_splits(SCANS).folds]
    holders = Counter(patient for part in parts for patient in {patient_of_scan(case) for case in part})
    assert max(holders.values()) > 1


@pytest.mark.parametrize("patient_of", [None, patient_of_scan])
def test_small_training_parts_are_nested_and_whole_patients(patient_of: object) -> None:
    splits = make_splits(SCANS, patient_of=patient_of)  # type: ignore[arg-type]
    for fold in range(5):
        parts = [set(splits.training(fold, fraction)) for fraction in (0.01, 0.1, 0.3, 0.99, 1.0)]
        assert all(small <= large for small, large in pairwise(parts))
        assert parts[0]
        for part in parts:
            patients = {splits.patients[case] for case in part}
            assert part == {case for case in splits.training(fold) if splits.patients[case] in patients}
        assert not parts[-1] & {*splits.test, *splits.validation(fold)}


def test_fractions_are_rounded_up_but_not_by_float_error() -> None:
    splits = make_splits(CASES, test_fraction=0, folds=10)
    assert [len(splits.training(0, f)) for f in (0.1, 0.3, 0.7)] == [9, 27, 63]
    assert len(splits.training(0, 0.101)) == 10


@pytest.mark.parametrize(
    ("cases", "test", "folds"),
    [(2, 0, [1, 1]), (3, 1, [1, 1]), (5, 1, [1, 1, 1, 1]), (6, 1, [1] * 5), (10, 1, [2, 2, 2, 2, 1])],
)
def test_tiny_sets_have_fewer_parts_but_none_empty(cases: int, test: int, folds: list[int]) -> None:
    splits = make_splits(CASES[:cases])
    assert (len(splits.test), [len(fold) for fold in splits.folds]) == (test, folds)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ([], {}, "0 cases"),
        (["a"], {}, "1 cases"),
        (["a_1", "a_2"], {"patient_of": "^a"}, "2 cases of 1 patients"),
        (["a", "a", "b"], {}, "names of their own: got a"),
        (["a", "b"], {"folds": 1}, "two folds"),
        (["a", "b"], {"test_fraction": 1.0}, "test fraction"),
        (["a", "b"], {"patient_of": "^x"}, "finds no patient in the case name a"),
        (["a", "b"], {"patient_of": "("}, "no regular expression"),
        (["p1", "b"], {"patient_of": r"^(?:p(\d))?"}, "finds no patient in the case name b"),
        (["p1", "b"], {"patient_of": r"^(p?)"}, "finds no patient in the case name b"),
    ],
)
def test_splits_that_cannot_be_drawn(names: list[str], options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_splits(names, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_fractions_and_folds_that_there_are_not(fraction: float) -> None:
    splits = make_splits(CASES)
    with pytest.raises(InputError, match="fraction"):
        splits.training(0, fraction)
    for fold in (-1, 5):
        with pytest.raises(InputError, match="0 to 4"):
            splits.validation(fold)
        with pytest.raises(InputError, match="0 to 4"):
            splits.training(fold)


@pytest.mark.parametrize("patient_of", [None, patient_of_scan])
def test_the_file_gives_back_the_same_splits(tmp_path: Path, patient_of: object) -> None:
    splits = make_splits(SCANS, seed=3, patient_of=patient_of)  # type: ignore[arg-type]
    write_splits(splits, tmp_path / "splits.json")
    again = read_splits(tmp_path / "splits.json")
    assert again == splits
    assert again.training(2, 0.3) == splits.training(2, 0.3)


def test_splits_of_other_cases_are_told_by_name(tmp_path: Path) -> None:
    splits = make_splits(CASES)
    splits.verify(reversed(CASES))
    with pytest.raises(InputError, match="not in the data set: case_007") as raised:
        splits.verify(case for case in CASES if case != "case_007")
    assert "not in the splits" not in str(raised.value)
    with pytest.raises(InputError, match="not in the splits: new"):
        splits.verify([*CASES, "new"], where="splits.json")


@pytest.mark.parametrize(
    "spoil",
    [
        {"test": None},
        {"folds": 3},
        {"seed": "x"},
        {"patients": []},
        {"test": ["a"], "folds": [["a"], ["b"]]},
        {"test": [], "folds": [["a", "a"], ["b"]]},
        {"test": [], "folds": [["a"], ["b"]], "patients": {"a": "p", "b": "p"}},
    ],
)
def test_files_that_hold_no_sound_splits(tmp_path: Path, spoil: dict[str, object]) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"seed": 0, "test": [], "folds": [["a"], ["b"]], "patients": {}} | spoil))
    with pytest.raises(InputError, match="splits"):
        read_splits(path)


@pytest.mark.parametrize("content", ["[]", "{", "{}"])
def test_files_that_hold_no_splits(tmp_path: Path, content: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"splits\.json"):
        read_splits(path)
    with pytest.raises(InputError, match="cannot read"):
        read_splits(tmp_path / "none.json")


def test_a_case_without_patient_is_refused() -> None:
    with pytest.raises(InputError, match="no patient for the case b"):
        Splits(0, ("a",), (("b",),), {"a": "a"})
