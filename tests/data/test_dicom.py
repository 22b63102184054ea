"""DICOM series to volumes, against highdicom, plain pydicom and known places."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import (
    AFFINES,
    LPS_TO_RAS,
    SHAPE,
    centres_mm,
    looked_up,
    moved,
    only,
    picture,
    write_series,
)

from medvisionllama.data.dicom import is_dicom_folder, read_series, read_slices
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume, to_ras

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")


@pytest.fixture(params=AFFINES, ids=list(AFFINES))
def image(request: pytest.FixtureRequest) -> Volume:
    return Volume(picture(), AFFINES[request.param])


@pytest.fixture
def axial() -> Volume:
    return Volume(picture(), AFFINES["axial"])


def test_every_value_keeps_its_place(image: Volume, tmp_path: Path) -> None:
    read = read_series(write_series(tmp_path / "series", image))
    assert read.array.dtype == np.float32
    assert read.array.shape == image.array.shape
    assert np.array_equal(looked_up(read, centres_mm(image)), image.array.ravel())
    assert read.spacing_mm == pytest.approx((0.7, 0.9, 2.5))
    assert np.linalg.det(read.affine[:3, :3]) > 0


def test_highdicom_reads_the_same(image: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", image)
    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in sorted(folder.iterdir())])
    theirs = Volume(other.array, LPS_TO_RAS @ other.affine)
    ours = read_series(folder)
    assert np.array_equal(looked_up(ours, centres_mm(theirs)), theirs.array.ravel())


def test_left_is_still_left(image: Volume, tmp_path: Path) -> None:
    """The patient's left has positive x in DICOM, negative x in RAS, and comes first in a RAS volume."""
    left = (centres_mm(image)[:, 0] < centres_mm(image)[:, 0].mean()).reshape(image.array.shape)
    folder = write_series(tmp_path / "series", image.with_array(np.where(left, 1000, 0).astype(np.int16)))
    for path in folder.iterdir():
        file = pydicom.dcmread(path)
        along, down = np.array(file.ImageOrientationPatient).reshape(2, 3)
        rows, columns = np.indices(file.pixel_array.shape)
        x = file.ImagePositionPatient[0] + along[0] * 0.7 * columns + down[0] * 0.9 * rows
        assert np.array_equal(file.pixel_array == 1000, x > -centres_mm(image)[:, 0].mean())
    read = to_ras(read_series(folder))
    assert read.array[0].mean() > read.array[-1].mean()
    assert (centres_mm(read)[read.array.ravel() == 1000, 0] < centres_mm(image)[:, 0].mean()).all()


def test_names_and_numbers_do_not_matter(axial: Volume, tmp_path: Path) -> None:
    folders = [write_series(tmp_path / f"{seed}", axial, seed=seed) for seed in (1, 2)]
    orders = [[pydicom.dcmread(p).ImagePositionPatient[2] for p in sorted(f.iterdir())] for f in folders]
    assert orders[0] != orders[1], "the names do tell different orders"
    assert all(order != sorted(order) for order in orders)
    first, second = (read_series(folder) for folder in folders)
    assert np.array_equal(first.array, second.array)
    assert np.array_equal(first.affine, second.affine)


def test_slices_counted_up_and_down_are_one_volume(axial: Volume, tmp_path: Path) -> None:
    affine = axial.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (SHAPE[2] - 1)
    affine[:3, 2] *= -1
    down = Volume(axial.array[:, :, ::-1], affine)
    first, second = (read_series(write_series(tmp_path / n, v)) for n, v in (("up", axial), ("down", down)))
    assert np.array_equal(first.array, second.array)
    assert np.allclose(first.affine, second.affine)


def test_slope_and_intercept_are_each_slices_own(axial: Volume, tmp_path: Path) -> None:
    def change(k: int, file: Any) -> None:
        file.RescaleSlope, file.RescaleIntercept = 0.5 + k, -1024

    read = read_series(write_series(tmp_path / "series", axial, change))
    assert np.allclose(read.array, axial.array * (0.5 + np.arange(SHAPE[2])) - 1024)


def test_unsigned_big_endian_and_compressed_pixels(axial: Volume, tmp_path: Path) -> None:
    def unsigned(k: int, file: Any) -> None:
        file.PixelRepresentation = 0
        file.PixelData = (axial.array[:, :, k].T.astype(np.uint16) + 40000).tobytes()

    def run_length(k: int, file: Any) -> None:
        file.compress(pydicom.uid.RLELossless)

    def lossless(k: int, file: Any) -> None:
        file.compress(pydicom.uid.JPEGLSLossless)

    assert np.array_equal(read_series(write_series(tmp_path / "u", axial, unsigned)).array, axial.array + 40000.0)
    for name, change in (("rle", run_length), ("ls", lossless)):
        folder = write_series(tmp_path / name, axial, change)
        assert np.array_equal(read_series(folder).array, axial.array), name


def test_files_that_are_not_dicom_are_passed_over(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial)
    (folder / "LICENSE").write_text("free")
    (folder / "empty").touch()
    (folder / ".DS_Store").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "below").mkdir()
    assert np.array_equal(read_series(folder).array, axial.array)


def test_a_dicom_folder_is_known_by_its_files(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "above" / "series", axial)
    assert is_dicom_folder(folder)
    assert is_dicom_folder(str(folder))
    assert not is_dicom_folder(folder.parent)
    assert not is_dicom_folder(next(folder.iterdir()))
    assert not is_dicom_folder(tmp_path / "nothing")
    (folder.parent / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert not is_dicom_folder(folder.parent)


def cropped(k: int, file: Any) -> None:
    if k == 2:
        file.Rows -= 1
        file.PixelData = file.PixelData[: file.Rows * file.Columns * 2]


def compressed_as(syntax: str) -> Callable[[int, Any], None]:
    def change(k: int, file: Any) -> None:
        file.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        file["PixelData"].VR = "OB"
        file.file_meta.TransferSyntaxUID = syntax

    return change


JPEG_LOSSLESS, MPEG2 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.100"
FAULTS: dict[str, tuple[Callable[[int, Any], None], str]] = {
    "uneven": (moved(lambda k: (0, 0, 0.6 if k == 2 else 0)), "unevenly spaced.*0.6 mm"),
    "growing steps": (moved(lambda k: (0, 0, 0.1 * k * k)), "unevenly spaced"),
    "shifted sideways": (moved(lambda k: (1.0 if k == 2 else 0, 0, 0)), "unevenly spaced"),
    "tilted": (moved(lambda k: (0, 0.3 * k, 0)), "sheared.*6.8 degrees"),
    "a gap": (moved(lambda k: (0, 0, 2.5 if k > 2 else 0)), r"lacks slices.*1 gap\(s\).* 5 mm.*every 2.5 mm"),
    "the same place": (moved(lambda k: (0, 0, -2.5 * (k % 2))), r"several slices of one place: got 2 such pair"),
    "two series": (
        only(3, SeriesInstanceUID="1.2.3", SeriesDescription="scout"),
        "2 series.*1 of MR 'scout'.*4 of MR 'generated'",
    ),
    "a report": (only(3, SeriesInstanceUID="1.2.3", Modality="SR", Rows=None), "2 series.*SR"),
    "another size": (cropped, "differ in their columns and rows"),
    "another direction": (only(1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "differ in their directions"),
    "another pixel spacing": (only(1, PixelSpacing=[0.9, 0.8]), "differ in their pixel spacing"),
    "no position": (only(1, ImagePositionPatient=None), "does not say where it lies"),
    "an empty position": (only(1, ImagePositionPatient=""), "does not say where it lies"),
    "no orientation": (only(1, ImageOrientationPatient=None), "does not say where it lies"),
    "no pixel spacing": (only(1, PixelSpacing=None), "does not say where it lies"),
    "pixels without size": (only(1, PixelSpacing=[0, 0.7]), "no size"),
    "crooked directions": (only(1, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "right angles"),
    "colour": (only(1, SamplesPerPixel=3), "no slice of grey values.*3 value"),
    "several frames": (only(1, NumberOfFrames=4), "no slice of grey values.*4 frame"),
    "no pixels": (only(1, PixelData=None), "damaged"),
    "too few pixels": (only(1, PixelData=b"\0" * 10), "damaged"),
    "no bits": (only(1, BitsStored=None), "damaged"),
    "a stream that is none": (compressed_as(JPEG_LOSSLESS), "compressed as JPEG Lossless.*cannot be decoded"),
    "a video": (compressed_as(MPEG2), "compressed as MPEG2.*cannot be decoded.*python-gdcm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(fault: str, axial: Volume, tmp_path: Path) -> None:
    change, told = FAULTS[fault]
    with pytest.raises(InputError, match=told):
        read_series(write_series(tmp_path / "series", axial, change))


@pytest.mark.parametrize(
    "change",
    [moved(lambda k: (0, 0, 0.1 * (-1) ** k)), moved(lambda k: (0, 0.02 * k, 0)), moved(lambda k: (0, 0, 0.01 * k))],
    ids=["rounded", "leaning by half a degree", "wider by 0.4 %"],
)
def test_what_scanners_round_is_no_fault(change: Callable[[int, Any], None], axial: Volume, tmp_path: Path) -> None:
    """Negative control of the refusals above."""
    read = read_series(write_series(tmp_path / "series", axial, change))
    assert np.array_equal(read.array, axial.array)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_file_is_noticed(lost: int, axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial)
    read_slices(folder)[lost].path.unlink()
    with pytest.raises(InputError, match=r"lacks slices|unevenly spaced"):
        read_series(folder)


def test_a_copied_file_is_noticed(axial: Volume, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", axial)
    shutil.copy(folder / "IM0001", folder / "IM0001 (copy)")
    with pytest.raises(InputError, match=r"first IM0001 and IM0001 \(copy\).*Remove copies"):
        read_series(folder)


def test_one_slice_or_none_is_no_volume(axial: Volume, tmp_path: Path) -> None:
    one = write_series(tmp_path / "one", Volume(axial.array[:, :, :1], axial.affine))
    with pytest.raises(InputError, match="one slice only"):
        read_series(one)
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="holds no DICOM file"):
            read_series(place)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_is_told_and_nothing_else_is_raised(axial: Volume, tmp_path: Path) -> None:
    whole = write_series(tmp_path / "series", axial)
    victim = sorted(whole.iterdir())[0]
    content = victim.read_bytes()
    generator = np.random.default_rng(0)
    refused = []
    for _ in range(150):
        spoilt = bytearray(content)
        for place in generator.integers(132, len(content) - 100, size=4):
            spoilt[place] = generator.integers(256)
        victim.write_bytes(bytes(spoilt[: generator.integers(140, len(spoilt) + 1)]))
        try:
            read_series(whole)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(str(whole) in told for told in refused)


def test_what_is_not_installed_is_told(axial: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "series", axial)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert is_dicom_folder(folder)
    with pytest.raises(InputError, match=r"needs pydicom, which is not installed.*medvisionllama\[dicom\]"):
        read_series(folder)


@pytest.mark.real_data
def test_the_real_series(real_data: Path) -> None:
    folder = real_data / "dicom" / "Study1_HCropVolume"
    read = read_series(folder)
    assert read.array.shape == (35, 51, 32)
    assert np.array_equal(read.affine, np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]))
    for number in (1, 2, 10, 32):
        assert np.array_equal(read.array[:, :, number - 1].T, pydicom.dcmread(folder / f"{number}.dcm").pixel_array)
    by_name = np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.glob("*.dcm"))])
    assert not np.array_equal(read.array.T, by_name), "names are in another order"
