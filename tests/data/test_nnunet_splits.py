"""What is written for nnU-Net is the same task, split the same way, when it is read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import write_label_map
from medvisionllama.data.nnunet_splits import splits_final, write_nnunet
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.splits import Splits, make_splits, read_splits
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError


def phantom(folder: Path, channels: int = 1) -> tuple[Task, Splits]:
    settings = PhantomSettings(spacing_mm=(2.6, 3.0), channels=channels)
    task = read_task(write_phantom_task(folder, cases=8, settings=settings))
    return task, make_splits([case.name for case in task.cases])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("copy", [True, False])
def test_the_raw_folder_is_the_same_task(tmp_path: Path, channels: int, copy: bool) -> None:
    task, splits = phantom(tmp_path / "task", channels)
    written = write_nnunet(task, splits, tmp_path / "out", 4, copy=copy)
    assert written.raw.name.startswith("Dataset004_")
    again = read_task(written.raw)
    assert (again.modalities, dict(again.classes)) == (task.modalities, dict(task.classes))
    assert {c.name for c in again.cases} == {c.name for c in task.cases} - set(splits.test)
    assert {c.name for c in again.unlabelled} == set(splits.test)
    for case in again.cases:
        (image, label), (was, was_label) = case.read_pair(), task.case(case.name).read_pair()
        np.testing.assert_array_equal(np.squeeze(image.array), np.squeeze(was.array))
        np.testing.assert_array_equal(label.array, was_label.array)
        assert image.grid.same_as(was.grid)
    assert {path.name for path in (written.raw / "labelsTs").iterdir()} == {f"{name}.nii.gz" for name in splits.test}
    links = [path.is_symlink() for path in sorted((written.raw / "labelsTr").iterdir())]
    assert set(links) == {not copy}


def test_a_description_as_nnunet_reads_it(tmp_path: Path) -> None:
    task, splits = phantom(tmp_path / "task", 2)
    written = write_nnunet(task, splits, tmp_path / "out", 7)
    description = json.loads((written.raw / "dataset.json").read_text())
    assert description == {
        "channel_names": {"0": "MRI T1", "1": "MRI T2"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": len(task.cases) - len(splits.test),
        "file_ending": ".nii.gz",
    }
    images = sorted(path.name for path in (written.raw / "imagesTr").iterdir())
    assert len(images) == 2 * description["numTraining"]
    assert images[0].endswith("_0000.nii.gz")
    assert images[1].endswith("_0001.nii.gz")


def test_the_folds_are_ours_and_the_test_part_is_in_none(tmp_path: Path) -> None:
    task, splits = phantom(tmp_path / "task")
    written = write_nnunet(task, splits, tmp_path / "out", 4)
    content = json.loads(written.splits.read_text())
    assert written.splits == tmp_path / "out" / "nnUNet_preprocessed" / written.raw.name / "splits_final.json"
    for fold, part in enumerate(content):
        assert part == {"train": list(splits.training(fold)), "val": list(splits.validation(fold))}
        assert not set(part["train"]) & set(part["val"])
        assert not set(splits.test) & {*part["train"], *part["val"]}
    back = Splits.from_nnunet(content, splits.test)
    assert [set(fold) for fold in back.folds] == [set(fold) for fold in splits.folds]
    assert back.training(0) == splits.training(0)
    read = read_splits(written.splits)  # by itself it knows no test part
    assert (read.test, read.folds) == ((), back.folds)


def test_few_shot_trains_on_the_cases_we_train_on() -> None:
    splits = make_splits([f"case_{n:02d}" for n in range(40)])
    small = splits_final(splits, 0.1)
    assert [fold["train"] for fold in small] == [list(splits.training(k, 0.1)) for k in range(5)]
    assert [fold["val"] for fold in small] == [fold["val"] for fold in splits_final(splits)]


def test_what_nobody_labelled_gets_the_number_after_the_classes(tmp_path: Path) -> None:
    task, splits = phantom(tmp_path / "task")
    for case in task.cases:
        label = case.read_label()
        array = label.array.copy()
        array[:, :, ::2] = 7
        assert case.label is not None
        write_label_map(label.with_array(array), case.label)
    sparse = replace(task, ignored=7)
    written = write_nnunet(sparse, splits, tmp_path / "out", 4)
    labels = json.loads((written.raw / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 3}
    assert written.notes == (
        "ignored voxels are 3 in the label maps written, not 7: nnU-Net wants the number after the classes",
    )
    for again in read_task(written.raw).cases:
        was = sparse.case(again.name).read_label().array
        np.testing.assert_array_equal(again.read_label().array, np.where(was == 7, 3, was))
        assert np.any(was == 7)  # and the task's own files are as they were
    right = write_nnunet(replace(task, ignored=3), splits, tmp_path / "right", 4)
    assert (right.notes, all(path.is_symlink() for path in (right.raw / "labelsTr").iterdir())) == ((), True)


def test_cases_of_another_split_are_not_left_to_be_trained_on(tmp_path: Path) -> None:
    task, splits = phantom(tmp_path / "task")
    written = write_nnunet(task, splits, tmp_path / "out", 4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    write_nnunet(task, splits, tmp_path / "out", 4)  # the same again is the same
    other = make_splits([case.name for case in task.cases], seed=1)
    assert set(other.test) != set(splits.test)
    with pytest.raises(InputError, match="files that are not of this split: got images"):
        write_nnunet(task, other, tmp_path / "out", 4)
    with pytest.raises(InputError, match=f"of this number: got {written.raw.name}"):
        write_nnunet(replace(task, name="Another"), splits, tmp_path / "out", 4)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    task, splits = phantom(tmp_path / "task")
    with pytest.raises(InputError, match="1 to 999"):
        write_nnunet(task, splits, tmp_path / "out", 0)
    label = task.cases[0].label
    assert label is not None
    label.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"labelsTr/.* does not exist"):
        write_nnunet(task, splits, tmp_path / "out", 5)
    (tmp_path / "kept").rename(label)
    gap = Task(task.name, task.folder, task.modalities, {1: "Anterior", 4: "Posterior"}, task.cases)
    with pytest.raises(InputError, match="without a gap"):
        write_nnunet(gap, splits, tmp_path / "out", 4)
    other = make_splits(["a", "b", "c"])
    with pytest.raises(InputError, match="not in the"):
        write_nnunet(task, other, tmp_path / "out", 4)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"train": ["b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}], "validate a case twice"),
        ([{"train": ["b"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}], "fold 1 of .* got a difference in c"),
        ([{"train": [], "val": ["a"]}, {"train": ["a"], "val": ["b"]}], "fold 0 of .* got a difference in b"),
        ([{"val": ["a"]}], "cannot be understood: got KeyError"),
        (["a", "b"], "cannot be understood: got TypeError"),
        ([{"train": 3, "val": ["a"]}], "cannot be understood: got TypeError"),
    ],
)
def test_folds_of_nnunet_that_are_none_are_refused(content: list, told: str, tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=told):
        read_splits(tmp_path / "splits_final.json")


@pytest.mark.real_data
def test_task04_links_and_splits(real_data: Path, tmp_path: Path) -> None:
    task = read_task(real_data / "Task04_Hippocampus")
    names = [case.name for case in task.cases]
    splits = make_splits(names)
    written = write_nnunet(task, splits, tmp_path, 4)
    assert sum(len(fold["val"]) for fold in json.loads(written.splits.read_text())) + len(splits.test) == len(names)
    images = [path for part in ("imagesTr", "imagesTs") for path in (written.raw / part).iterdir()]
    assert {path.name.removesuffix("_0000.nii.gz") for path in images} == set(names)
    assert all(path.is_symlink() for path in images)
