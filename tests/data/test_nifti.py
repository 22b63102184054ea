import gzip
import itertools
import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medvisionllama.data import nifti
from medvisionllama.data.nifti import (
    MOST_PROBABLE,
    case_name,
    probability_file,
    read_grid,
    read_label_map,
    read_volume,
    stored_type,
    write_label_map,
    write_volume,
)
from medvisionllama.errors import InputError
from medvisionllama.geometry import Grid, Volume

RNG = np.random.default_rng(0)
READERS = [read_volume, read_label_map, read_grid]


def float32_affine(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = np.asarray(matrix, np.float32)
    return affine


OBLIQUE = float32_affine([[0.9, -0.2, 0.1, -30], [0.25, 1.1, -0.15, 12.5], [-0.1, 0.2, 2.4, 7]])
ORIENTATIONS = [
    float32_affine(np.hstack([np.eye(3)[:, order] * signs * (0.8, 1.0, 1.3), [[3], [-4], [5]]]))
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sound file, 3x4x5 float32, for tests to spoil."""
    path = tmp_path / "image.nii.gz"
    write_volume(Volume(RNG.normal(size=(3, 4, 5)).astype(np.float32), OBLIQUE), path)
    return path


def save(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    """By nibabel alone: nothing of ours takes part."""
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (3, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", "int64", "float16"])
def test_an_image_comes_back(tmp_path: Path, ending: str, shape: tuple[int, ...], dtype: str) -> None:
    array = RNG.integers(0, 200, shape).astype(dtype)
    write_volume(Volume(array, OBLIQUE), tmp_path / f"image{ending}")
    back = read_volume(tmp_path / f"image{ending}")
    assert back.array.dtype == np.float32
    np.testing.assert_array_equal(back.array, array.astype(np.float32))
    np.testing.assert_array_equal(back.affine, OBLIQUE)


@pytest.mark.parametrize("affine", [*ORIENTATIONS, OBLIQUE])
def test_every_orientation_comes_back_exactly(tmp_path: Path, affine: np.ndarray) -> None:
    write_label_map(Volume(np.ones((2, 3, 4), np.uint8), affine), tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read_label_map(tmp_path / "label.nii.gz").affine, affine)
    np.testing.assert_array_equal(nib.load(tmp_path / "label.nii.gz").affine, affine)


def test_other_programs_read_what_was_written(tmp_path: Path) -> None:
    array = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    write_volume(Volume(array, ORIENTATIONS[7]), tmp_path / "image.nii.gz")
    theirs = nib.load(tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(theirs.get_fdata(), np.moveaxis(array, 0, -1))
    assert (int(theirs.header["sform_code"]), int(theirs.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(theirs.get_qform(), ORIENTATIONS[7], atol=1e-5)
    assert theirs.header.get_xyzt_units()[0] == "mm"


def test_a_shear_is_left_to_the_sform(tmp_path: Path) -> None:
    sheared = float32_affine([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    write_volume(Volume(np.zeros((3, 4, 5), np.float32), sheared), tmp_path / "image.nii")
    assert int(nib.load(tmp_path / "image.nii").header["qform_code"]) == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "image.nii").affine, sheared)


def test_slope_and_offset_are_applied(tmp_path: Path) -> None:
    stored = RNG.integers(-100, 100, (3, 4, 5)).astype(np.int16)
    written = nib.Nifti1Image(stored, OBLIQUE)
    written.header.set_slope_inter(0.5, -1024)
    nib.save(written, tmp_path / "image.nii.gz")
    raw = nib.load(tmp_path / "image.nii.gz").dataobj
    expected = np.asarray(raw.get_unscaled()) * 0.5 - 1024
    np.testing.assert_allclose(read_volume(tmp_path / "image.nii.gz").array, expected)


def test_nan_and_infinity_are_left_for_check_to_tell(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 2), np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    np.testing.assert_array_equal(read_volume(save(tmp_path / "image.nii", array)).array, array)


@pytest.mark.parametrize("tail", [(1,), (1, 1), (1, 1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path: Path, tail: tuple[int, ...]) -> None:
    path = save(tmp_path / "image.nii.gz", np.ones((3, 4, 5, *tail), np.uint8))
    assert read_volume(path).array.shape == (3, 4, 5)
    assert read_label_map(path).array.shape == (3, 4, 5)
    grid, channels = read_grid(path)
    assert (grid.shape, channels) == ((3, 4, 5), 1)


def test_the_header_alone_gives_grid_and_channels(image: Path, tmp_path: Path) -> None:
    whole = read_volume(image).grid
    (tmp_path / "start.nii").write_bytes(gzip.decompress(image.read_bytes())[:352])
    grid, channels = read_grid(tmp_path / "start.nii")
    assert channels == 1
    assert grid.shape == whole.shape
    np.testing.assert_array_equal(grid.affine, whole.affine)
    write_volume(Volume(np.zeros((4, 2, 3, 5), np.float32), OBLIQUE), tmp_path / "four.nii.gz")
    assert (read_grid(tmp_path / "four.nii.gz")[0].shape, read_grid(tmp_path / "four.nii.gz")[1]) == ((2, 3, 5), 4)


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("comment", [b"", b"x" * 1000])
def test_all_forms_of_nifti_are_read(tmp_path: Path, image_class: type, endianness: str, comment: bytes) -> None:
    array = RNG.integers(0, 9, (3, 4, 5)).astype(np.int16)
    header = image_class.header_class(endianness=endianness)
    header.set_data_dtype(np.int16)
    written = image_class(array, OBLIQUE, header)
    if comment:
        written.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment))
    nib.save(written, tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "image.nii.gz").array, array)
    np.testing.assert_allclose(read_grid(tmp_path / "image.nii.gz")[0].affine, OBLIQUE, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, "u1"), (0, 256, "u2"), (0, 65536, "u4"), (-128, 127, "i1"), (-3, 128, "i2"), (-129, 0, "i2")],
)
def test_labels_take_the_smallest_type(tmp_path: Path, low: int, high: int, dtype: str) -> None:
    array = np.array([low, 0, high]).reshape(1, 1, 3)
    write_label_map(Volume(array, OBLIQUE), tmp_path / "label.nii.gz")
    back = read_label_map(tmp_path / "label.nii.gz")
    assert back.array.dtype == np.dtype(dtype)
    assert stored_type(tmp_path / "label.nii.gz") == np.dtype(dtype).name
    np.testing.assert_array_equal(back.array, array)


@pytest.mark.parametrize("dtype", ["int16", "int64", "float64"])
def test_a_label_map_is_the_same_however_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    wanted = RNG.integers(0, 9, (3, 4, 7))
    wanted[0, 0, 2:] = [200, 300, -1, 2, 0]  # the smallest type grows from slab to slab
    path = save(tmp_path / "label.nii.gz", wanted.astype(dtype))
    for voxels in (1, 12, 36, 1000):
        monkeypatch.setattr(nifti, "_SLAB_VOXELS", voxels)
        back = read_label_map(path).array
        np.testing.assert_array_equal(back, wanted)
        assert back.dtype == np.int16
        assert back.flags.c_contiguous


def test_very_large_labels_beside_negative_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "_SLAB_VOXELS", 1)
    wanted = np.array([2**40 + 1, -1, 0]).reshape(1, 1, 3)
    np.testing.assert_array_equal(read_label_map(save(tmp_path / "label.nii", wanted)).array, wanted)


def test_labels_stored_as_floats_take_little_more_room_than_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "_SLAB_VOXELS", 1 << 14)
    path = save(tmp_path / "label.nii", np.ones((64, 64, 128)))
    tracemalloc.start()
    read_label_map(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * path.stat().st_size


def test_a_fraction_in_the_last_slab_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "_SLAB_VOXELS", 1)
    array = np.zeros((2, 2, 5))
    array[1, 1, 4] = 0.25
    with pytest.raises(InputError, match=r"0\.25"):
        read_label_map(save(tmp_path / "label.nii", array))


def test_labels_stored_as_floats_are_taken_where_whole(tmp_path: Path) -> None:
    wanted = np.array([0, 1, 2, 300]).reshape(1, 2, 2)
    path = save(tmp_path / "label.nii.gz", wanted.astype(np.float32) + np.float32(5e-5))
    back = read_label_map(path)
    np.testing.assert_array_equal(back.array, wanted)
    assert back.array.dtype == np.uint16


def test_boolean_masks_are_written_as_zero_and_one(tmp_path: Path) -> None:
    mask = np.array([True, False]).reshape(1, 1, 2)
    write_label_map(Volume(mask, OBLIQUE), tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read_label_map(tmp_path / "label.nii.gz").array, mask.astype(np.uint8))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((2, 2, 2), 0.37, np.float32), "0.37"),
        (np.full((2, 2, 2), np.nan, np.float32), "NaN"),
        (np.zeros((2, 2, 2, 3), np.uint8), "3 channels"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    path = save(tmp_path / "label.nii.gz", array)
    with pytest.raises(InputError, match=said) as raised:
        read_label_map(path)
    assert str(path) in str(raised.value)
    assert raised.value.mend


def refused(reader: object, path: Path) -> InputError:
    with pytest.raises(InputError) as raised:
        reader(path)  # type: ignore[operator]
    assert str(path) in raised.value.fault
    assert raised.value.mend
    return raised.value


@pytest.mark.parametrize("reader", READERS)
def test_paths_that_are_no_file(tmp_path: Path, reader: object) -> None:
    assert "does not exist" in refused(reader, tmp_path / "none.nii.gz").fault
    assert "folder" in refused(reader, tmp_path).fault


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(image: Path) -> None:
    image.chmod(0)
    assert "may not be read" in refused(read_volume, image).fault


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x1f\x8b", b"\x1f\x8b\x08\x00" + b"z" * 50])
def test_files_of_another_kind(tmp_path: Path, reader: object, content: bytes) -> None:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(content)
    refused(reader, path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_gzip_cut_short_is_refused(image: Path, share: float) -> None:
    content = image.read_bytes()
    image.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in refused(read_volume, image).fault


def test_a_plain_file_cut_short_is_refused(image: Path, tmp_path: Path) -> None:
    plain = tmp_path / "image.nii"
    plain.write_bytes(gzip.decompress(image.read_bytes())[:-1])
    assert "cut short" in refused(read_volume, plain).fault


def test_damage_is_seen_even_in_the_checksum(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[-6] ^= 1
    image.write_bytes(content)
    assert "CRC" in str(refused(read_volume, image))


def test_the_ending_may_lie_about_compression(image: Path, tmp_path: Path) -> None:
    expected = read_volume(image).array
    (tmp_path / "packed.nii").write_bytes(image.read_bytes())
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(image.read_bytes()))
    np.testing.assert_array_equal(read_volume(tmp_path / "packed.nii").array, expected)
    np.testing.assert_array_equal(read_volume(tmp_path / "plain.nii.gz").array, expected)
    assert read_grid(tmp_path / "packed.nii")[0].shape == expected.shape


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 1, 3)])
def test_no_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert "no volume" in refused(read_volume, save(tmp_path / "image.nii.gz", np.zeros(shape, np.uint8))).fault


def test_colour_is_refused(tmp_path: Path) -> None:
    colour = np.zeros((2, 2, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert "one number per voxel" in refused(read_volume, save(tmp_path / "image.nii.gz", colour)).fault


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_an_affine_that_places_nothing_is_refused(tmp_path: Path, reader: object, value: float) -> None:
    path = save(tmp_path / "image.nii", np.zeros((2, 2, 2), np.uint8))
    content = bytearray(path.read_bytes())
    content[280:296] = np.full(4, value, "<f4").tobytes()  # srow_x
    path.write_bytes(content)
    assert "where its voxels lie" in refused(reader, path).fault


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_an_offset_that_is_no_place_in_the_file_is_refused(tmp_path: Path, offset: float) -> None:
    path = save(tmp_path / "image.nii", np.zeros((2, 2, 2), np.uint8))
    content = bytearray(path.read_bytes())
    content[108:112] = np.full(1, offset, "<f4").tobytes()  # vox_offset
    path.write_bytes(content)
    for reader in (read_volume, read_label_map):
        assert "image.nii" in refused(reader, path).fault


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 351), value=st.integers(0, 255), more=st.integers(0, 351))
@example(place=0, value=0, more=111)  # an offset of NaN
def test_a_spoilt_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, more: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzzed.nii"
    write_volume(Volume(np.zeros((2, 3, 4), np.float32), OBLIQUE), path)
    content = bytearray(path.read_bytes())
    content[place], content[more] = value, value ^ 0xFF
    path.write_bytes(content)
    for reader in READERS:
        try:
            reader(path)
        except InputError as error:
            assert "fuzzed.nii" in error.fault  # noqa: PT017


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "label.nii.gz"
    write_label_map(Volume(np.ones((2, 2, 2), np.uint8), OBLIQUE), path)
    before = path.read_bytes()

    def disk_full(_: Path, __: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(InputError, match="No space left"):
        write_label_map(Volume(np.zeros((2, 2, 2), np.uint8), OBLIQUE), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["label.nii.gz"]


def test_unwritable_paths_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    volume = Volume(np.ones((2, 2, 2), np.uint8), OBLIQUE)
    with pytest.raises(InputError, match="cannot write"):
        write_volume(volume, tmp_path / "file" / "image.nii.gz")
    with pytest.raises(InputError, match=r"\.nii\.gz"):
        write_volume(volume, tmp_path / "image.png")
    with pytest.raises(ValueError, match="integers"):
        write_label_map(volume.with_array(np.ones((2, 2, 2), np.float32)), tmp_path / "label.nii.gz")


def test_folders_are_made_and_bytes_repeat(tmp_path: Path) -> None:
    volume = Volume(RNG.integers(0, 3, (4, 4, 4)), OBLIQUE)
    for name in "ab":
        write_label_map(volume, tmp_path / name / "deep" / "label.nii.gz")
    written = [(tmp_path / name / "deep" / "label.nii.gz").read_bytes() for name in "ab"]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/hippocampus_001.nii.gz", "hippocampus_001"), ("x.y.nii", "x.y"), ("plain", "plain"), ("B.NII.GZ", "B")],
)
def test_a_case_is_named_after_its_file(path: str, name: str) -> None:
    assert case_name(path) == case_name(Path(path)) == name


@pytest.mark.real_data
def test_real_images_agree_with_nibabel(real_data: Path) -> None:
    for path in sorted((real_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[:20]:
        theirs = nib.load(path)
        ours = read_volume(path)
        np.testing.assert_array_equal(ours.array, theirs.get_fdata(dtype=np.float32))
        np.testing.assert_array_equal(ours.affine, theirs.affine)


@pytest.mark.parametrize(("qform_code", "sform_code"), [(1, 2), (2, 1), (1, 0), (0, 4), (0, 0)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_label_map_is_placed_as_its_image(qform_code: int, sform_code: int, ending: str, tmp_path: Path) -> None:
    """Codes, qform and sform come through, also where the two say different things."""
    affine = np.array([[-0.8, 0, 0, 90], [0, 0.9, 0, -120], [0, 0, 2.5, 31], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
    other = affine.copy()
    other[:3, 3] += (5, -7, 2)
    image.set_qform(other if qform_code else None, qform_code)
    image.set_sform(affine if sform_code else None, sform_code)
    nib.save(image, tmp_path / "image.nii.gz")
    source = nib.load(tmp_path / "image.nii.gz")
    volume = read_volume(tmp_path / "image.nii.gz")
    path = tmp_path / f"mask{ending}"
    write_label_map(Volume(np.ones((4, 5, 6), np.uint8), volume.affine), path, like=tmp_path / "image.nii.gz")
    written = nib.load(path)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (qform_code, sform_code)
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(written.header.get_qform(), source.header.get_qform())
    np.testing.assert_array_equal(written.header.get_sform(), source.header.get_sform())
    assert np.asarray(written.dataobj).all()


def test_a_label_map_on_another_grid_is_placed_by_its_own_affine(tmp_path: Path) -> None:
    write_volume(Volume(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2, 2, 1])), tmp_path / "image.nii.gz")
    mask = Volume(np.ones((8, 5, 6), np.uint8), np.diag([1.0, 2, 2, 1]))
    write_label_map(mask, tmp_path / "mask.nii.gz", like=tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(read_label_map(tmp_path / "mask.nii.gz").affine, mask.affine)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_probabilities_filled_in_any_order_come_back(ending: str, tmp_path: Path) -> None:
    grid = Grid((4, 5, 6), np.diag([-1.0, 2, 3, 1]))
    probability = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)
    probability[0, 0, 0, 0], probability[0, 0, 0, 1] = 0, 1
    path = tmp_path / f"out{ending}"
    with probability_file(path, grid, 3, tmp_path / "passing") as stored:
        for i in (3, 1, 0, 2):
            stored[:, i] = np.rint(probability[:, i] * MOST_PROBABLE)
        assert not path.exists()
    read = read_volume(path)
    assert read.grid.same_as(grid)
    np.testing.assert_allclose(read.array, probability, atol=0.51 / 65535)
    assert read.array[0, 0, 0, 0] == 0
    assert read.array[0, 0, 0, 1] == pytest.approx(1, abs=1e-6)
    assert nib.load(path).shape == (4, 5, 6, 3)
    assert nib.load(path).get_data_dtype() == np.uint16


def test_a_fault_while_probabilities_are_filled_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), probability_file(tmp_path / "out.nii.gz", Grid((2, 2, 2), np.eye(4)), 1, None):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
