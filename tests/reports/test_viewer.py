"""What the viewer is given: volumes that another reader takes for what they are."""

import base64
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from page_reader import Page
from run_maker import make_run

from medvisionllama.errors import InputError
from medvisionllama.reports import page as page_module
from medvisionllama.reports.page import write_page
from medvisionllama.reports.run_contents import Picture
from medvisionllama.reports.viewer import VIEWER_FILE, copy_viewer, cropped, nifti_bytes, viewer_is_there, write_case

OBLIQUE = np.array([[0.9, -0.2, 0.0, -7.0], [0.2, 1.1, 0.3, 5.0], [0.0, -0.3, 2.0, 11.5], [0, 0, 0, 1.0]])


def made(reference: bool = True) -> Picture:
    generator = np.random.default_rng(0)
    image, labels = generator.integers(0, 255, (5, 6, 7), np.uint8), generator.integers(0, 3, (5, 6, 7), np.uint8)
    return Picture("a", image, labels, labels if reference else None, OBLIQUE)


def test_nibabel_reads_the_same_voxels_in_the_same_place() -> None:
    picture = made()
    read = nibabel.Nifti1Image.from_bytes(nifti_bytes(picture.image, picture.affine))
    assert (np.asarray(read.dataobj) == picture.image).all()
    assert read.affine == pytest.approx(OBLIQUE, abs=1e-6)
    assert read.header.get_zooms() == pytest.approx(picture.spacing_mm, abs=1e-6)
    assert read.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("largest", [255, 256, 1003, 40_000])
def test_label_values_of_any_size_are_kept(largest: int) -> None:
    labels = np.array([0, 2, largest, 1], np.int32).reshape(2, 2, 1)
    read = nibabel.Nifti1Image.from_bytes(nifti_bytes(labels, np.eye(4)))
    assert (np.asarray(read.dataobj) == labels).all()
    assert read.get_data_dtype().itemsize == (1 if largest < 256 else 2 if largest < 2**15 else 4)


def test_a_case_is_a_script_that_hands_over_its_volumes(tmp_path: Path) -> None:
    picture = made()
    case = write_case(picture, "a, best", {1: "front", 2: "back"}, tmp_path, "case-1")
    name, volumes = json.loads("[" + (tmp_path / "case-1.js").read_text().removeprefix("receiveCase(")[:-3] + "]")
    assert name == case.file == "case-1"
    assert set(volumes) == {"image", "prediction", "reference"}
    read = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volumes["reference"])))
    assert (np.asarray(read.dataobj) == picture.reference).all()
    assert [entry["name"] for entry in case.as_dict()["classes"]] == ["front", "back"]


def test_without_reference_none_is_handed_over(tmp_path: Path) -> None:
    case = write_case(made(reference=False), "a", {1: "front"}, tmp_path, "case-1")
    assert not case.has_reference
    assert '"reference"' not in (tmp_path / "case-1.js").read_text()
    assert case.classes == {1: "front", 2: "2"}, "a label value without a name is called by its number"


def test_a_huge_case_is_cropped_and_stays_in_its_place() -> None:
    image = np.zeros((60, 70, 80), np.uint8)
    labels = image.copy()
    image[30, 40, 50] = labels[30, 40, 50] = 1
    part = cropped(Picture("a", image, labels, None, OBLIQUE))
    assert part.image.shape < image.shape
    (found,) = np.argwhere(part.prediction)
    assert part.image[tuple(found)] == 1
    assert part.affine[:3, :3] @ found + part.affine[:3, 3] == pytest.approx(
        OBLIQUE[:3, :3] @ [30, 40, 50] + OBLIQUE[:3, 3]
    )


def test_where_niivue_is_missing_the_page_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "viewer_is_there", lambda: False)
    page = Page(write_page([make_run(tmp_path / "run", cases=1)], tmp_path / "out"))
    assert "npm ci --prefix viewer" in page.text
    assert len(page.all("img")) == 1
    assert page.all("script") == []
    assert not (tmp_path / "out" / "viewer").exists()


def test_the_viewers_file_is_copied_with_its_licences(tmp_path: Path) -> None:
    assert not viewer_is_there(tmp_path)
    (tmp_path / VIEWER_FILE).write_text("viewer")
    (tmp_path / "LICENCES.txt").write_text("licences")
    assert viewer_is_there(tmp_path)
    copy_viewer(tmp_path / "out", tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["LICENCES.txt", VIEWER_FILE]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the viewer"):
        copy_viewer(tmp_path / "file", tmp_path)
