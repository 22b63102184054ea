"""nnU-Net's raw layout and plain folders give the same Task as the Decathlon's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medvisionllama.data.check import check_task
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.mirroring import Mirroring
from medvisionllama.data.nifti import read_volume, write_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.task import Case, Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PhantomSettings(spacing_mm=(2.6, 3.4), channels=2)
    return write_phantom_task(tmp_path_factory.mktemp("layouts") / "Phantom", 3, settings=settings)


@pytest.fixture
def nnunet(decathlon: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_Phantom"
    shutil.copytree(decathlon / "labelsTr", folder / "labelsTr")
    for path in (decathlon / "imagesTr").iterdir():
        volume = read_volume(path)
        for number, channel in enumerate(volume.array):
            name = path.name.replace(".nii.gz", f"_{number:04d}.nii.gz")
            write_volume(volume.with_array(channel), folder / "imagesTr" / name)
    description = {
        "channel_names": {"0": "MRI T1", "1": "MRI T2"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def plain(decathlon: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    shutil.copytree(decathlon / "imagesTr", folder / "images")
    shutil.copytree(decathlon / "labelsTr", folder / "labels")
    return folder


def assert_same_cases(task: Task, reference: Task) -> None:
    assert [case.name for case in task.cases] == [case.name for case in reference.cases]
    for case, other in zip(task.cases, reference.cases, strict=True):
        for mine, theirs in ((case.read_image(), other.read_image()), (case.read_label(), other.read_label())):
            np.testing.assert_array_equal(mine.array, theirs.array)
            np.testing.assert_array_equal(mine.affine, theirs.affine)


def test_nnu_net_raw_gives_the_same_task(decathlon: Path, nnunet: Path) -> None:
    task, reference = read_task(nnunet), read_task(decathlon)
    assert (task.modalities, task.classes) == (reference.modalities, reference.classes)
    assert_same_cases(task, reference)
    assert [path.name for path in task.cases[0].files] == [
        "phantom_000_0000.nii.gz",
        "phantom_000_0001.nii.gz",
        "phantom_000.nii.gz",
    ]
    report = check_task(nnunet)
    assert (report.cases, report.errors) == (3, [])
    assert not any("does not list" in note for note in report.notes)


def test_plain_folders_give_the_same_cases(decathlon: Path, plain: Path) -> None:
    task = read_task(plain)
    assert (task.name, task.modalities) == ("mine", ("channel 0", "channel 1"))
    assert dict(task.classes) == {1: "1", 2: "2"}
    assert_same_cases(task, read_task(decathlon))
    report = check_task(plain)
    assert report.errors == []
    assert any("there is no dataset.json" in note for note in report.notes)


def test_masks_is_another_word_for_labels(plain: Path) -> None:
    (plain / "labels").rename(plain / "masks")
    assert len(read_task(plain).cases) == 3


def test_images_of_a_test_part_have_no_label(nnunet: Path) -> None:
    (nnunet / "imagesTs").mkdir()
    for number in range(2):
        shutil.copy(nnunet / f"imagesTr/phantom_000_000{number}.nii.gz", nnunet / f"imagesTs/new_000{number}.nii.gz")
    (unlabelled,) = read_task(nnunet).unlabelled
    assert (unlabelled.name, unlabelled.label, len(unlabelled.files)) == ("new", None, 2)
    with pytest.raises(InputError, match="new has no label"):
        unlabelled.read_label()


def test_a_missing_channel_is_told(nnunet: Path) -> None:
    (nnunet / "imagesTr/phantom_001_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="every channel of phantom_001: got 0000, expected 0000, 0001"):
        read_task(nnunet)
    assert len(check_task(nnunet).errors) == 1


def test_a_file_without_a_channel_number_is_told(nnunet: Path) -> None:
    (nnunet / "imagesTr/phantom_001_0001.nii.gz").rename(nnunet / "imagesTr/stray.nii.gz")
    with pytest.raises(InputError, match=r"stray\.nii\.gz does not say which channel"):
        read_task(nnunet)


def test_channels_on_different_grids_are_told(nnunet: Path) -> None:
    path = nnunet / "imagesTr/phantom_001_0001.nii.gz"
    volume = read_volume(path)
    write_volume(Volume(volume.array[1:], volume.affine), path)
    (error,) = check_task(nnunet).errors
    assert error.case == "phantom_001"
    assert "does not lie on the grid" in error.fault


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file_ending": ".nrrd"}, "files that are not read"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order"),
        ({"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [3]}, "regions_class_order"),
        ({"labels": {"background": 0, "whole": [1, 0]}, "regions_class_order": [1]}, "positive"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "ignore"),
        ({"labels": {"background": 0, "a": 1, "b": 2}, "mirror_swaps": [[1, 3]]}, "mirror_swaps"),
        ({"labels": {"background": 0, "a": 1, "b": 2}, "mirror_swaps": [1, 2]}, "mirror_swaps"),
    ],
)
def test_what_is_not_read_of_nnu_net_is_refused(nnunet: Path, change: dict[str, object], said: str) -> None:
    path = nnunet / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=said):
        read_task(nnunet)


BRATS = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_regions_and_the_ignore_label_are_read(nnunet: Path) -> None:
    path = nnunet / "dataset.json"
    changes = {"labels": BRATS, "regions_class_order": [1, 2, 3], "mirror_swaps": [[1, 2]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    task = read_task(nnunet)
    assert dict(task.regions) == {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (task.region_values, task.ignored) == ((1, 2, 3), 4)
    assert dict(task.classes) == {1: "label 1", 2: "label 2", 3: "enhancing"}
    assert task.mirroring == Mirroring(swaps=((1, 2),))


@pytest.mark.parametrize("layout", ["nnunet", "plain"])
def test_lone_images_and_labels_are_told(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    images, labels = ("imagesTr", "labelsTr") if layout == "nnunet" else ("images", "labels")
    (folder / labels / "phantom_000.nii.gz").rename(folder / labels / "other.nii.gz")
    with pytest.raises(InputError, match="names no label for phantom_000"):
        read_task(folder)
    errors = {error.case: error.fault for error in check_task(folder).errors}
    assert set(errors) == {"phantom_000", "other"}
    assert "does not exist" in errors["other"]
    assert "no label" in errors["phantom_000"]
    assert (folder / images).is_dir()


def test_plain_folders_without_images_or_with_a_damaged_label(plain: Path) -> None:
    (plain / "labels/phantom_000.nii.gz").write_bytes(b"")
    assert len(read_task(plain).cases) == 3
    (error,) = check_task(plain).errors
    assert error.case == "phantom_000"
    shutil.rmtree(plain / "images")
    (plain / "images").mkdir()
    with pytest.raises(InputError, match="holds no NIfTI file"):
        read_task(plain)


def test_a_decathlon_task_that_lost_its_description_is_not_guessed_at(decathlon: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(decathlon, tmp_path / "lost")
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"holds no dataset\.json"):
        read_task(folder)


def test_a_case_names_all_its_files() -> None:
    case = Case("a", Path("a_0000.nii"), Path("l.nii"), (Path("a_0001.nii"),))
    assert case.files == (Path("a_0000.nii"), Path("a_0001.nii"), Path("l.nii"))
