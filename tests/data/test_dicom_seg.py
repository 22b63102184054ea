"""Label maps to DICOM segmentations and back: through highdicom, and through plain pydicom and known places."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import AFFINES, SHAPE, centres_mm, only, picture, write_series

from medvisionllama.data.dicom import read_series, read_slices
from medvisionllama.data.dicom_seg import refuse_seg, write_seg
from medvisionllama.data.nifti import read_label_map, write_label_map
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, Volume, to_ras

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

CLASSES = {1: "Anterior", 2: "Posterior"}


@pytest.fixture(params=AFFINES, ids=list(AFFINES))
def image(request: pytest.FixtureRequest) -> Volume:
    return Volume(picture(), AFFINES[request.param])


@pytest.fixture
def axial() -> Volume:
    return Volume(picture(), AFFINES["axial"])


def labels(image: Volume, values: tuple[int, ...] = (0, 1, 2), seed: int = 3) -> Volume:
    return image.with_array(np.random.default_rng(seed).choice(values, image.array.shape).astype(np.uint8))


def on_series_grid(folder: Path, values: tuple[int, ...] = (0, 1, 2)) -> Volume:
    return labels(read_series(folder), values)


def voxels_by_hand(path: Path) -> dict[str, set[tuple[float, ...]]]:
    """Places (RAS, 0.01 mm) of every segment's voxels, by the frames' own positions, with pydicom and NumPy alone."""
    file = pydicom.dcmread(path)
    names = {item.SegmentNumber: item.SegmentLabel for item in file.SegmentSequence}
    shared = file.SharedFunctionalGroupsSequence[0]
    down_mm, along_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    along, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient).reshape(2, 3)
    bits = np.unpackbits(np.frombuffer(file.PixelData, np.uint8), bitorder="little")
    size = file.Rows * file.Columns
    found: dict[str, set[tuple[float, ...]]] = {name: set() for name in names.values()}
    for n, frame in enumerate(file.PerFrameFunctionalGroupsSequence):
        rows, columns = np.nonzero(bits[n * size : (n + 1) * size].reshape(file.Rows, file.Columns))
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient)
        lps = position + columns[:, None] * along_mm * along + rows[:, None] * down_mm * down
        name = names[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        found[name] |= {tuple(place) for place in (np.round(lps * (-1, -1, 1), 2) + 0.0).tolist()}
    return found


def voxels_of(label_map: Volume, classes: dict[int, str]) -> dict[str, set[tuple[float, ...]]]:
    places = np.round(centres_mm(label_map), 2) + 0.0
    flat = label_map.array.ravel()
    return {name: {tuple(p) for p in places[flat == value].tolist()} for value, name in classes.items()}


def read_by_source(path: Path, folder: Path, like: Volume) -> Array:
    """The label map a segmentation holds, each frame asked for by the image it belongs to, in the series' order."""
    seg = highdicom.seg.segread(path)
    uids = [one.header.SOPInstanceUID for one in read_slices(folder)]
    frames: Array = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert frames.T.shape == like.array.shape
    return frames.T


def test_a_segmentation_comes_back(image: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", image)
    label_map = on_series_grid(folder)
    write_seg(label_map, folder, CLASSES, tmp_path / "out" / "seg.dcm")
    assert np.array_equal(read_by_source(tmp_path / "out" / "seg.dcm", folder, label_map), label_map.array)
    assert voxels_by_hand(tmp_path / "out" / "seg.dcm") == voxels_of(label_map, CLASSES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seg.dcm"]


def test_slices_in_another_order_would_be_noticed(image: Volume, tmp_path: Path) -> None:
    """Negative control: what a shuffled list of source images would do."""
    folder = write_series(tmp_path / "series", image)
    label_map = on_series_grid(folder)
    write_seg(label_map.with_array(label_map.array[:, :, ::-1]), folder, CLASSES, tmp_path / "seg.dcm")
    assert not np.array_equal(read_by_source(tmp_path / "seg.dcm", folder, label_map), label_map.array)
    assert voxels_by_hand(tmp_path / "seg.dcm") != voxels_of(label_map, CLASSES)


def test_a_label_map_that_went_through_nifti_still_fits(image: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", image)
    write_label_map(on_series_grid(folder), tmp_path / "labels.nii.gz")
    label_map = read_label_map(tmp_path / "labels.nii.gz")
    write_seg(label_map, folder, CLASSES, tmp_path / "seg.dcm")
    assert voxels_by_hand(tmp_path / "seg.dcm") == voxels_of(on_series_grid(folder), CLASSES)


def test_patient_and_study_are_the_series_and_the_rest_is_told(axial: Volume, tmp_path: Path) -> None:
    def change(k: int, file: Any) -> None:
        file.SpecificCharacterSet = "ISO_IR 100"
        file.PatientName, file.PatientID, file.StudyDate, file.SeriesNumber = "Müller^Jörg", "7", "20200119", 4

    folder = write_series(tmp_path / "series", axial, change)
    classes = {1: "hippocampe postérieur", 2: "海馬"}
    write_seg(on_series_grid(folder), folder, classes, tmp_path / "seg.dcm")
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(folder / "IM0000")
    for keyword in ("PatientName", "PatientID", "StudyDate", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value, keyword
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.SeriesNumber == 1004
    assert (seg.Modality, seg.SegmentationType, seg.BitsAllocated) == ("SEG", "BINARY", 1)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == list(classes.values())
    assert all(item.SegmentAlgorithmType == "AUTOMATIC" for item in seg.SegmentSequence)
    assert "not a medical device" in seg.ContentDescription


def test_classes_with_gaps_become_segments_without(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial)
    classes = {9: "nine", 4: "four", 200: "never"}
    label_map = on_series_grid(folder, (0, 4, 9))
    write_seg(label_map, folder, classes, tmp_path / "seg.dcm")
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [(s.SegmentNumber, s.SegmentLabel) for s in segments] == [(1, "four"), (2, "nine"), (3, "never")]
    assert voxels_by_hand(tmp_path / "seg.dcm") == voxels_of(label_map, classes)


def test_nothing_found_is_a_segmentation_too(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial)
    empty = on_series_grid(folder, (0,))
    write_seg(empty, folder, CLASSES, tmp_path / "seg.dcm")
    assert voxels_by_hand(tmp_path / "seg.dcm") == {"Anterior": set(), "Posterior": set()}
    assert not read_by_source(tmp_path / "seg.dcm", folder, empty).any()


def test_what_does_not_fit_is_refused(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial)
    good, path = on_series_grid(folder), tmp_path / "seg.dcm"
    shifted = good.affine.copy()
    shifted[0, 3] += 0.1
    for label_map, target, told in (
        (Volume(good.array, shifted), path, "does not lie on the grid.*0.1 mm off"),
        (Volume(good.array[:-1], good.affine), path, "does not lie on the grid"),
        (to_ras(good), path, "does not lie on the grid"),
        (on_series_grid(folder, (0, 1, 5)), path, "no class: got 5, expected 1, 2"),
        (good, folder / "seg.dcm", "second series"),
        (good, next(folder.iterdir()) / "seg.dcm", "cannot write"),
    ):
        with pytest.raises(InputError, match=told):
            write_seg(label_map, folder, CLASSES, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["series"]
    assert len(list(folder.iterdir())) == SHAPE[2]


SEG_FAULTS: dict[str, tuple[Callable[[int, Any], None], str]] = {
    "no frame of reference": (only(2, FrameOfReferenceUID=None), "lack FrameOfReferenceUID"),
    "no study": (only(2, StudyInstanceUID=None), "lack StudyInstanceUID"),
    "one number for all": (lambda k, file: setattr(file, "SOPInstanceUID", "1.2.3"), "share a SOPInstanceUID"),
}


@pytest.mark.parametrize("fault", SEG_FAULTS)
def test_a_series_that_cannot_be_segmented_is_told_before_any_work(fault: str, axial: Volume, tmp_path: Path) -> None:
    change, told = SEG_FAULTS[fault]
    folder = write_series(tmp_path / "series", axial, change)
    assert np.array_equal(read_series(folder).array, axial.array)
    for work in (
        lambda: refuse_seg(folder, tmp_path),
        lambda: write_seg(on_series_grid(folder), folder, CLASSES, tmp_path / "s.dcm"),
    ):
        with pytest.raises(InputError, match=told):
            work()


def test_headers_that_highdicom_refuses_are_told(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial, lambda k, file: setattr(file, "PatientSex", "NEUTERED"))
    with pytest.raises(InputError, match=r"do not fit into a DICOM segmentation.*NEUTERED"):
        write_seg(on_series_grid(folder), folder, CLASSES, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_what_is_not_installed_is_told(axial: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "series", axial)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert np.array_equal(read_series(folder).array, axial.array), "reading does not need it"
    with pytest.raises(InputError, match=r"needs highdicom, which is not installed.*medvisionllama\[dicom\]"):
        refuse_seg(folder, tmp_path)


def test_only_a_series_can_be_segmented_in_dicom(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a DICOM series"):
        refuse_seg(tmp_path, tmp_path / "out")


@pytest.mark.real_data
def test_the_real_series_gets_a_segmentation(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom" / "Study1_HCropVolume"
    refuse_seg(folder, tmp_path)
    image = read_series(folder)
    label_map = image.with_array((image.array > 60).astype(np.uint8) + (image.array > 100))
    write_seg(label_map, folder, CLASSES, tmp_path / "seg.dcm")
    assert np.array_equal(read_by_source(tmp_path / "seg.dcm", folder, label_map), label_map.array)
    assert voxels_by_hand(tmp_path / "seg.dcm") == voxels_of(label_map, CLASSES)
