from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as components
from scipy.ndimage import laplace

from medvisionllama.data.check import check_task
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import read_label_map, read_volume
from medvisionllama.data.phantom import DEFAULT, PhantomSettings, phantom_case, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume, to_ras

TINY = PhantomSettings(spacing_mm=(2.6, 3.4))


@pytest.fixture(scope="module")
def cases() -> list[tuple[Volume, Volume]]:
    return [phantom_case(index) for index in range(5)]


@pytest.fixture(scope="module")
def tiny_cases() -> list[tuple[Volume, Volume]]:
    return [phantom_case(index, settings=TINY) for index in range(36)]


def world_centre(label: Volume, value: int) -> np.ndarray:
    """The middle of a class in RAS millimetres."""
    voxels = np.argwhere(label.array == value).mean(0)
    return np.asarray(label.affine[:3, :3] @ voxels + label.affine[:3, 3])


def test_a_task_is_written_that_check_finds_sound(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = write_phantom_task(
        tmp_path / "Phantom", 3, settings=TINY, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    task = read_task(folder)
    assert [case.name for case in task.cases] == ["phantom_000", "phantom_001", "phantom_002"]
    assert (task.modalities, dict(task.classes)) == (("MRI T1",), {1: "Anterior", 2: "Posterior"})
    assert check_task(folder).errors == []


def test_files_hold_exactly_the_generated_case(tmp_path: Path) -> None:
    settings = PhantomSettings(spacing_mm=(2.6, 3.4), channels=2)
    folder = write_phantom_task(tmp_path, 2, seed=5, settings=settings)
    image, label = phantom_case(1, 5, settings)
    written = read_volume(folder / "imagesTr" / "phantom_001.nii.gz")
    np.testing.assert_array_equal(written.array, image.array)
    np.testing.assert_array_equal(written.affine, image.affine)
    np.testing.assert_array_equal(read_label_map(folder / "labelsTr" / "phantom_001.nii.gz").array, label.array)
    assert check_task(folder).errors == []


def test_a_case_depends_on_its_seed_and_number_alone() -> None:
    first, again = phantom_case(1, 7, TINY), phantom_case(1, 7, TINY)
    np.testing.assert_array_equal(first[0].array, again[0].array)
    np.testing.assert_array_equal(first[1].array, again[1].array)
    for other in (phantom_case(2, 7, TINY), phantom_case(1, 8, TINY)):
        same = first[0].array.shape == other[0].array.shape and np.allclose(first[0].array, other[0].array)
        assert not same


def test_both_classes_are_there_in_one_piece_and_touch(cases: list[tuple[Volume, Volume]]) -> None:
    for _, label in cases:
        array = label.array
        counts = np.bincount(array.ravel(), minlength=3)
        assert counts[1:].min() > 150
        assert 0.01 < counts[1:].sum() / array.size < 0.08
        pieces, number = components(array > 0, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.98 * counts[1:].sum(), number
        touching = sum(
            np.count_nonzero(np.diff((array == 1).astype(int) - (array == 2), axis=axis).__abs__() == 2)
            for axis in range(3)
        )
        assert touching > 15


def test_anatomy_stays_clear_of_the_edges(cases: list[tuple[Volume, Volume]]) -> None:
    cut = sum(bool(np.take(label.array, end, axis).any()) for _, label in cases for axis in range(3) for end in (0, -1))
    assert cut <= len(cases) // 4


def test_it_is_not_told_from_its_surrounding_by_grey_alone(cases: list[tuple[Volume, Volume]]) -> None:
    """The best single threshold window from the truth itself must stay far below a segmentation."""
    for image, label in cases:
        truth = label.array > 0
        low, high = np.percentile(image.array[truth], [10, 90])
        guess = (image.array >= low) & (image.array <= high)
        dice = 2 * np.count_nonzero(guess & truth) / (guess.sum() + truth.sum())
        assert dice < 0.5


def test_nothing_around_it_is_plain_black(cases: list[tuple[Volume, Volume]]) -> None:
    for image, label in cases:
        outside = image.array[label.array == 0]
        assert np.quantile(outside, 0.01) > 0
        assert np.std(outside) / np.mean(outside) > 0.1
        assert np.count_nonzero(laplace(image.array) == 0) == 0


def test_the_head_lies_before_and_below_the_tail(cases: list[tuple[Volume, Volume]]) -> None:
    for _, label in cases:
        anterior, posterior = world_centre(label, 1), world_centre(label, 2)
        assert anterior[1] - posterior[1] > 8
        assert posterior[2] - anterior[2] > 2


def test_left_differs_from_right(cases: list[tuple[Volume, Volume]]) -> None:
    """The dark horn is lateral, to the right in world coordinates, whatever the order of the axes."""
    sound = [lateral_over_medial(to_ras(image).array, to_ras(label).array) for image, label in cases]
    flipped = [lateral_over_medial(to_ras(image).array[::-1], to_ras(label).array[::-1]) for image, label in cases]
    assert max(sound) < 1 < min(flipped)
    assert np.mean(sound) < 0.85


def lateral_over_medial(image: np.ndarray, label: np.ndarray) -> float:
    """Brightness of the voxels just right of the anterior class, over that of those just left of it."""
    right, left = (np.roll(label == 1, side, 0) & (label == 0) for side in (1, -1))
    return float(image[right].mean() / image[left].mean())


def test_scale_spacing_orientation_and_obliquity_vary(tiny_cases: list[tuple[Volume, Volume]]) -> None:
    grids = [image.grid for image, _ in tiny_cases]
    assert len({grid.orientation for grid in grids}) > 18
    oblique = [np.count_nonzero(np.abs(grid.affine[:3, :3]) > 1e-6) > 3 for grid in grids]
    assert 3 < sum(oblique) < 24
    highs = [float(image.array.max()) for image, _ in tiny_cases]
    assert max(highs) > 1000 * min(highs)
    spacings = np.array([grid.spacing_mm for grid in grids])
    assert spacings.min() >= 2.6 - 1e-6
    assert spacings.max() <= 3.4 + 1e-6
    assert np.ptp(spacings) > 0.6


def test_canonical_cases_are_not_turned() -> None:
    for index in range(4):
        image, _ = phantom_case(index, settings=PhantomSettings(spacing_mm=(2.6, 3.4), canonical=True))
        assert image.grid.orientation == "RAS"
        np.testing.assert_allclose(image.affine[:3, :3], np.diag(np.diag(image.affine[:3, :3])), atol=1e-9)


def test_partial_volume_softens_the_edges() -> None:
    """Where voxels are coarse, fewer of them are pure fluid: the darkest are less dark against the median."""
    fine, _ = phantom_case(0, settings=PhantomSettings(canonical=True, spacing_mm=(0.9, 0.9)))
    coarse, _ = phantom_case(0, settings=PhantomSettings(canonical=True, spacing_mm=(4.5, 4.5)))
    darkness = [np.quantile(image.array, 0.02) / np.median(image.array) for image in (fine, coarse)]
    assert darkness[1] > darkness[0] + 0.05


def test_channels_show_the_same_anatomy_in_other_contrast() -> None:
    image, label = phantom_case(0, settings=PhantomSettings(channels=3, canonical=True, spacing_mm=(1.2, 1.2)))
    assert image.array.shape == (3, *label.array.shape)
    t1, t2 = (channel.ravel() for channel in image.array[:2])
    assert np.corrcoef(t1, t2)[0, 1] < -0.5


def test_default_grids_suit_a_small_network(cases: list[tuple[Volume, Volume]]) -> None:
    assert DEFAULT.channels == 1
    for image, label in cases:
        assert image.array.shape == label.array.shape
        assert (image.array.dtype, label.array.dtype) == (np.float32, np.uint8)
        assert all(26 <= size <= 56 for size in image.array.shape)


def test_what_cannot_be_generated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 to 3"):
        PhantomSettings(channels=4)
    with pytest.raises(InputError, match="spacings"):
        PhantomSettings(spacing_mm=(2.0, 20.0))
    with pytest.raises(InputError, match="1 or more"):
        write_phantom_task(tmp_path, 0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        write_phantom_task(tmp_path / "file", 1, settings=TINY)
