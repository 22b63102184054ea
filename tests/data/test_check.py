import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medvisionllama.data.check import Report, check_task
from medvisionllama.data.nifti import read_label_map, read_volume, write_label_map, write_volume
from medvisionllama.data.oddities import faces_value
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume

SETTINGS = PhantomSettings(spacing_mm=(2.6, 3.4))
IMAGE, LABEL = "imagesTr/phantom_001.nii.gz", "labelsTr/phantom_001.nii.gz"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_task(tmp_path_factory.mktemp("sound") / "Phantom", 4, settings=SETTINGS)


@pytest.fixture
def task(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "Phantom"))


def describe(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def change_image(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    volume = read_volume(folder / IMAGE)
    write_volume(volume.with_array(change(volume.array.copy())), folder / IMAGE)


def change_label(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    volume = read_label_map(folder / LABEL)
    write_label_map(volume.with_array(change(volume.array.copy())), folder / LABEL)


def the_error(folder: Path, file: str, case: str = "phantom_001") -> str:
    """The one error a spoilt copy gives: it names case and file, and how to mend it."""
    report = check_task(folder)
    assert len(report.errors) == 1, report.errors
    error = report.errors[0]
    assert (error.case, Path(error.file)) == (case, folder / file)
    assert error.mend
    assert str(folder) not in error.fault or "same voxels" in error.fault
    return error.fault


def the_notes(folder: Path) -> str:
    report = check_task(folder)
    assert report.errors == []
    return "\n".join(report.notes)


def test_a_sound_task_gives_no_error(task: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_task(task, progress=lambda done, total: seen.append((done, total)))
    assert (report.cases, report.errors) == (4, [])
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_report_is_the_promised_json(task: Path) -> None:
    (task / LABEL).unlink()
    told = json.loads(json.dumps(check_task(task).to_dict()))
    assert set(told) == {"cases", "errors", "notes"}
    assert set(told["errors"][0]) == {"case", "file", "fault", "mend"}
    assert Report(0).to_dict() == {"cases": 0, "errors": [], "notes": []}


def test_a_label_that_is_missing(task: Path) -> None:
    (task / LABEL).unlink()
    assert "does not exist" in the_error(task, LABEL)


def test_an_image_that_is_missing(task: Path) -> None:
    (task / IMAGE).unlink()
    assert "does not exist" in the_error(task, IMAGE)


@pytest.mark.parametrize("entry", [f"./{IMAGE}", {"image": f"./{IMAGE}"}])
def test_an_image_listed_without_a_label(task: Path, entry: object) -> None:
    describe(task, lambda d: d["training"].__setitem__(1, entry))
    assert "no label in dataset.json" in the_error(task, IMAGE)


@pytest.mark.parametrize("file", [IMAGE, LABEL])
def test_a_truncated_gzip(task: Path, file: str) -> None:
    content = (task / file).read_bytes()
    (task / file).write_bytes(content[: len(content) * 2 // 3])
    assert "damaged" in the_error(task, file)


@pytest.mark.parametrize("file", [IMAGE, LABEL])
def test_a_file_that_is_not_nifti(task: Path, file: str) -> None:
    (task / file).write_bytes(gzip.compress(b"a text " * 100))
    assert "not a NIfTI file" in the_error(task, file)


def test_four_axes_where_three_were_promised(task: Path) -> None:
    change_image(task, lambda array: np.stack([array, array]))
    assert "2 channels, but dataset.json names 1: MRI T1" in the_error(task, IMAGE)


def test_three_axes_where_two_channels_were_promised(task: Path) -> None:
    describe(task, lambda d: d.update(modality={"0": "T1", "1": "T2"}))
    report = check_task(task)
    assert len(report.errors) == 4
    assert all("1 channels, but dataset.json names 2: T1, T2" in error.fault for error in report.errors)


def test_a_label_map_with_four_axes(task: Path) -> None:
    label = nib.load(task / LABEL)
    nib.save(nib.Nifti1Image(np.stack([np.asarray(label.dataobj)] * 2, -1), label.affine), task / LABEL)
    assert "2 channels" in the_error(task, LABEL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(task: Path, value: float) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[0, 0, :3] = value
        return array

    change_image(task, spoil)
    assert "3 voxels that are NaN or infinite" in the_error(task, IMAGE)


def test_labels_that_are_no_numbers(task: Path) -> None:
    label = nib.load(task / LABEL)
    array = label.get_fdata(dtype=np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, label.affine), task / LABEL)
    assert "NaN" in the_error(task, LABEL)


def test_labels_between_the_classes(task: Path) -> None:
    label = nib.load(task / LABEL)
    nib.save(nib.Nifti1Image(label.get_fdata(dtype=np.float32) * 0.5, label.affine), task / LABEL)
    assert "no class numbers: got 0.5" in the_error(task, LABEL)


def test_values_that_dataset_json_does_not_name(task: Path) -> None:
    change_label(task, lambda array: np.where(array == 2, 7, array))
    assert "values 7, which" in the_error(task, LABEL)


def test_a_label_of_another_shape(task: Path) -> None:
    change_label(task, lambda array: array[:-1])
    assert "voxels, but its image" in the_error(task, LABEL)


@pytest.mark.parametrize(("shift_mm", "faulty"), [(0.5, True), (0.0011, True), (0.0005, False)])
def test_a_label_that_lies_elsewhere(task: Path, shift_mm: float, faulty: bool) -> None:
    label = read_label_map(task / LABEL)
    affine = label.affine.copy()
    affine[0, 3] += shift_mm
    write_label_map(Volume(label.array, affine), task / LABEL)
    if faulty:
        assert f"{shift_mm:.3g} mm from its image" in the_error(task, LABEL)
    else:
        assert check_task(task).errors == []


def test_a_label_turned_about_with_the_same_shape(task: Path) -> None:
    label = read_label_map(task / LABEL)
    write_label_map(Volume(label.array, label.affine @ np.diag([-1, 1, 1, 1])), task / LABEL)
    assert "mm from its image" in the_error(task, LABEL)


def test_the_same_image_under_two_names(task: Path) -> None:
    volume = read_volume(task / "imagesTr/phantom_000.nii.gz")
    write_volume(volume, task / "imagesTr/plain.nii")
    content = (task / "imagesTr/plain.nii").read_bytes()
    (task / IMAGE).write_bytes(gzip.compress(content, compresslevel=1))
    shutil.copy(task / "labelsTr/phantom_000.nii.gz", task / LABEL)
    (task / "imagesTr/plain.nii").unlink()
    assert "same voxels as" in the_error(task, IMAGE)


def test_a_training_image_that_is_also_in_the_test_part(task: Path) -> None:
    (task / "imagesTs").mkdir()
    shutil.copy(task / IMAGE, task / "imagesTs/held_out.nii.gz")
    describe(task, lambda d: d.update(test=["./imagesTs/held_out.nii.gz"]))
    assert "same voxels as" in the_error(task, "imagesTs/held_out.nii.gz", "held_out")


def test_a_case_listed_twice(task: Path) -> None:
    describe(task, lambda d: d["training"].append(d["training"][1]))
    assert "lists the case phantom_001 2 times" in the_error(task, "dataset.json")


def test_several_faults_are_all_told(task: Path) -> None:
    (task / "imagesTr/phantom_000.nii.gz").unlink()
    (task / "labelsTr/phantom_000.nii.gz").write_bytes(b"")
    change_label(task, lambda array: array + 5)
    assert len(check_task(task).errors) == 3


def test_folders_without_a_task(tmp_path: Path) -> None:
    report = check_task(tmp_path)
    assert (report.cases, len(report.errors)) == (0, 1)
    assert (report.errors[0].file, report.errors[0].fault) == (str(tmp_path), "is empty")
    (tmp_path / "dataset.json").write_text("{")
    assert Path(check_task(tmp_path).errors[0].file) == tmp_path / "dataset.json"
    assert "not JSON" in check_task(tmp_path).errors[0].fault
    with pytest.raises(InputError, match="does not exist"):
        check_task(tmp_path / "none")
    with pytest.raises(InputError, match="is a file"):
        check_task(tmp_path / "dataset.json")


# --- oddities: notes, no errors ---


def test_nothing_odd_nothing_noted(tmp_path: Path) -> None:
    """The negative control of all notes: RAS, one type, own origins, whole and listed."""
    rng = np.random.default_rng(0)
    describe_to = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "numTraining": 3, "training": []}
    for number in range(1, 4):
        affine = np.eye(4)
        affine[:3, 3] = rng.normal(size=3)
        name = f"case_{number}.nii.gz"
        write_volume(Volume(rng.normal(size=(6, 6, 6)).astype(np.float32), affine), tmp_path / "imagesTr" / name)
        write_label_map(Volume(rng.integers(0, 2, (6, 6, 6)), affine), tmp_path / "labelsTr" / name)
        describe_to["training"].append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})  # type: ignore[attr-defined]
    (tmp_path / "dataset.json").write_text(json.dumps(describe_to))
    assert check_task(tmp_path).to_dict() == {"cases": 3, "errors": [], "notes": []}


def test_files_that_are_not_listed(task: Path) -> None:
    shutil.copy(task / IMAGE, task / "imagesTr/stray.nii.gz")
    (task / "labelsTr/._phantom_001.nii.gz").write_bytes(b"macOS")
    notes = the_notes(task)
    assert "imagesTr holds files that dataset.json does not list: stray.nii.gz; labelsTr lacks stray.nii.gz" in notes
    assert "1 files whose names begin with ._" in notes


def test_numbers_that_do_not_add_up(task: Path) -> None:
    describe(task, lambda d: d.update(numTraining=5))
    assert "numTraining 5, but lists 4" in the_notes(task)


def test_stored_types_and_float_labels(task: Path) -> None:
    label = nib.load(task / LABEL)
    nib.save(nib.Nifti1Image(label.get_fdata(dtype=np.float32), label.affine), task / LABEL)
    change_image(task, lambda array: (array / array.max() * 255).astype(np.uint8))
    notes = the_notes(task)
    assert "images are stored in different types: float32 in 3, uint8 in 1" in notes
    assert "label maps are stored in different types: uint8 in 3, float32 in 1" in notes
    assert "stored as floats, but whole numbers, in phantom_001" in notes


def test_scales_orientations_and_class_numbers(task: Path) -> None:
    describe(task, lambda d: d.update(labels={"0": "background", "1": "A", "2": "P", "9": "never"}))
    notes = the_notes(task)
    assert "intensity scales differ" in notes
    assert "orientations differ" in notes
    assert "class numbers have gaps: 1, 2, 9" in notes
    assert "1 of 3 classes never occur: never" in notes


def test_a_constant_background_that_is_not_zero(task: Path) -> None:
    change_image(task, lambda array: np.pad(array[1:-1, 1:-1, 1:-1], 1, constant_values=-4.5))
    assert "background is constant but not 0 (-4.5) in phantom_001" in the_notes(task)


def test_faces_know_their_value() -> None:
    array = np.random.default_rng(0).normal(size=(6, 7, 8))
    assert faces_value(array) is None
    assert faces_value(np.pad(array, 1)) == 0
    array[0] = 3
    assert faces_value(array) is None  # 86 of 292
    array[-1] = 3
    assert faces_value(array) == 3


def test_label_maps_that_are_empty_or_nearly(task: Path) -> None:
    change_label(task, np.zeros_like)
    assert "without any foreground: phantom_001" in the_notes(task)

    def one_voxel(array: np.ndarray) -> np.ndarray:
        array[0, 0, 0] = 1
        return array

    change_label(task, one_voxel)
    assert "under 0.1% of the volume in phantom_001" in the_notes(task)


def test_two_crops_of_one_scan(task: Path) -> None:
    image = read_volume(task / "imagesTr/phantom_000.nii.gz")
    label = read_label_map(task / "labelsTr/phantom_000.nii.gz")
    write_volume(Volume(image.array[..., 2:6], image.affine), task / IMAGE)
    write_label_map(Volume(label.array[..., 2:6], label.affine), task / LABEL)
    assert "phantom_000 and phantom_001 share 4 slices" in the_notes(task)


def test_a_constant_image_and_ct_without_negatives(task: Path) -> None:
    describe(task, lambda d: d.update(modality={"0": "CT"}))
    change_image(task, lambda array: np.full_like(array, 7))
    notes = the_notes(task)
    assert "one value throughout: phantom_001" in notes
    assert "perhaps not in Hounsfield units" in notes


# --- the real sets ---


@pytest.fixture
def hippocampus(real_data: Path, tmp_path: Path) -> Path:
    """A small copy of Task04 beside which bad inputs are laid."""
    source, folder = real_data / "Task04_Hippocampus", tmp_path / "Task04"
    description = json.loads((source / "dataset.json").read_text())
    description["training"] = description["training"][:6]
    for entry in description["training"]:
        for path in entry.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, folder / path)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "faulty"),
    [
        ("imagesTr/hippocampus_118.nii.gz", "labelsTr/hippocampus_118.nii.gz"),
        ("labelsTr/hippocampus_010.nii.gz", "imagesTr/hippocampus_010.nii.gz"),
        ("labelsTr/hippocampus_281.nii.gz", "imagesTr/hippocampus_281.nii.gz"),
    ],
)
def test_bad_inputs_that_are_listed(real_data: Path, hippocampus: Path, file: str, faulty: str) -> None:
    shutil.copy(real_data / "bad_inputs" / file, hippocampus / file)
    name = Path(file).name
    entry = {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}
    describe(hippocampus, lambda d: d["training"].append(entry))
    assert "does not exist" in the_error(hippocampus, faulty, name.removesuffix(".nii.gz"))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["hippocampus_010", "hippocampus_281"])
def test_bad_labels_beside_an_image_they_do_not_fit(real_data: Path, hippocampus: Path, name: str) -> None:
    shutil.copy(real_data / "bad_inputs/labelsTr" / f"{name}.nii.gz", hippocampus / "labelsTr/hippocampus_001.nii.gz")
    fault = the_error(hippocampus, "labelsTr/hippocampus_001.nii.gz", "hippocampus_001")
    assert "but its image 35x51x35" in fault


@pytest.mark.real_data
def test_the_whole_hippocampus_task(real_data: Path) -> None:
    start = time.perf_counter()
    report = check_task(real_data / "Task04_Hippocampus")
    assert time.perf_counter() - start < 10
    assert (report.cases, report.errors) == (234, [])
    notes = "\n".join(report.notes)
    assert "stored as floats, but whole numbers, in hippocampus_003, hippocampus_243" in notes
    assert "maxima from 112 to 1.704e+06" in notes
    assert "origins are shared" in notes
    assert "case numbers have gaps: 234 cases from 1 to 394" in notes
    assert "images are stored in different types: float32 in 185, uint8 in 49" in notes


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "cases", "said"),
    [
        ("BraTS2013_2ch", 2, ["constant but not 0", "LPS"]),
        ("BraTS_MET_4ch_unlabelled", 1, ["no case has a label"]),
        ("TotalSeg_CT", 2, ["ct_torso and ct_torso_slab share 30 slices", "55 of 117 classes never occur", "int32"]),
        ("TotalSeg_CT_aorta", 1, ["LPS"]),
        ("TotalSeg_MR", 1, ["27 of 50 classes never occur"]),
        ("pyradiomics_lesions", 3, ["slices are over 3 times", "under 0.1% of the volume in brain2"]),
        ("sct_spinal_cord", 3, ["orientations differ", "under 0.1% of the volume in t2star_gm"]),
    ],
)
def test_real_sets_are_sound_and_their_oddities_told(
    real_data: Path, tmp_path: Path, folder: str, cases: int, said: list[str]
) -> None:
    description = json.loads((real_data / folder / "dataset.json").read_text())
    description["training"] = description["training"][:cases]  # two of BraTS2013 will do
    description["numTraining"] = len(description["training"])
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        if (real_data / folder / part).is_dir():
            (tmp_path / part).symlink_to(real_data / folder / part, target_is_directory=True)
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    report = check_task(tmp_path)
    assert (report.cases, report.errors) == (cases, [])
    for part in said:
        assert part in "\n".join(report.notes)
