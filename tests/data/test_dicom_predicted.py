"""A DICOM series through `predict`: the same answer as for the same image in NIfTI, in the series' own grid."""

from pathlib import Path

import numpy as np
import pytest
from dicom_series import AXES, affine_of, write_series
from test_dicom_seg import voxels_by_hand, voxels_of

import medvisionllama as mvl
from medvisionllama.cli import main
from medvisionllama.data.dicom import read_series
from medvisionllama.data.nifti import read_label_map, read_volume, write_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.geometry import Volume, to_ras

pytestmark = pytest.mark.usefixtures("own_cache")
CLASSES = {1: "Anterior", 2: "Posterior"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    return write_phantom_task(folder / "task", cases=8, settings=PhantomSettings(spacing_mm=(2.2, 2.8)))


@pytest.fixture(scope="module")
def run(phantom: Path) -> Path:
    folder = phantom.parent / "run"
    quick = ["--model", "vit-u", "--steps", "60", "--model.depth", "1", "--recipe.precision", "float32"]
    assert main(["train", str(phantom), "--run", str(folder), *quick]) == 0
    return folder


@pytest.fixture(scope="module", params=["axial", "oblique", "sagittal"])
def scan(request: pytest.FixtureRequest, phantom: Path) -> Volume:
    """A phantom's voxels in whole numbers, which NIfTI and DICOM hold alike, placed in the scanner's way."""
    image = read_volume(sorted((phantom / "imagesTr").glob("*.nii.gz"))[0])
    values = np.rint(1000 * (image.array - image.array.min()) / np.ptp(image.array)).astype(np.int16)
    return Volume(values, affine_of(AXES[request.param], image.spacing_mm, (12.5, -40.25, 7.0)))


def test_a_series_is_segmented_as_its_nifti(scan: Volume, run: Path, tmp_path: Path) -> None:
    series = write_series(tmp_path / "Study 1.5 head", scan)
    write_volume(scan, tmp_path / "scan.nii.gz")
    out = tmp_path / "out"
    assert main(["predict", str(run), str(series), "--out", str(out), "--dicom-seg"]) == 0
    assert main(["predict", str(run), str(tmp_path / "scan.nii.gz"), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["Study 1.5 head.dcm", "Study 1.5 head.nii.gz", "scan.nii.gz"]
    from_dicom, from_nifti = (read_label_map(out / f"{name}.nii.gz") for name in ("Study 1.5 head", "scan"))
    assert from_dicom.grid.same_as(read_series(series).grid)
    assert len(np.unique(from_nifti.array)) > 1, "there is something to compare"
    assert np.array_equal(to_ras(from_dicom).array, to_ras(from_nifti).array)
    assert voxels_by_hand(out / "Study 1.5 head.dcm") == voxels_of(from_dicom, CLASSES)
    assert np.array_equal(mvl.load(run).segment(series).array, from_dicom.array)


def test_a_series_is_called_as_its_folder_from_within(
    scan: Volume, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_series(tmp_path / "head", scan))
    assert main(["predict", str(run), ".", "--out", str(tmp_path / "out")]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["head.nii.gz"]


@pytest.mark.real_data
def test_the_real_series_is_segmented(real_data: Path, run: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom" / "Study1_HCropVolume"
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path), "--dicom-seg"]) == 0
    label_map = read_label_map(tmp_path / "Study1_HCropVolume.nii.gz")
    assert label_map.grid.same_as(read_series(folder).grid)
    assert voxels_by_hand(tmp_path / "Study1_HCropVolume.dcm") == voxels_of(label_map, CLASSES)


def test_what_cannot_be_is_told_before_any_work(
    scan: Volume, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, series = (write_series(tmp_path / name, scan) for name in ("alone", "both"))
    write_volume(scan, tmp_path / "scan.nii.gz")
    write_volume(scan, series / "scan.nii.gz")
    out = ["--out", str(tmp_path / "out")]
    for arguments, told in (
        ([str(tmp_path / "scan.nii.gz"), *out, "--dicom-seg"], "needs a DICOM series"),
        ([str(alone), "--out", str(alone), "--dicom-seg"], "would be a second series"),
        ([str(series), *out], "holds NIfTI and DICOM files"),
        ([str(run), *out], "holds no NIfTI file and no DICOM series"),
        (["--part", "test", "--dicom-seg"], "Leave out --out and --dicom-seg"),
    ):
        capsys.readouterr()
        assert main(["predict", str(run), *arguments]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
