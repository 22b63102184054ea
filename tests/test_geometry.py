import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch.nn.functional import interpolate

from medvisionllama.geometry import (
    Affine,
    Array,
    Grid,
    Shape,
    Volume,
    closest_axes,
    onto_axes_of,
    ras_grid,
    resample_onto,
    resize,
    to_ras,
)

RNG = np.random.default_rng(0)
SPACING_MM = (0.7, 1.1, 2.3)


def affine_of(matrix: Array, origin_mm: tuple[float, float, float] = (-31.0, 12.5, 7.25)) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = origin_mm
    return affine


ORIENTATIONS = [
    affine_of(np.eye(3)[:, order] * signs * SPACING_MM)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
TURNS = Rotation.random(60, rng=np.random.default_rng(1)).as_matrix()
OBLIQUE = [affine_of(turn * SPACING_MM) for turn in TURNS[:40]]
OBLIQUE += [affine_of((turn + np.triu(np.full((3, 3), 0.15), 1)) * SPACING_MM) for turn in TURNS[40:]]  # sheared
ALL = [*ORIENTATIONS, *OBLIQUE]

turned_grids = st.builds(
    lambda shape, turn, spacing, origin: Grid(
        shape, affine_of(Rotation.from_rotvec(turn).as_matrix() * spacing, origin)
    ),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    st.tuples(*[st.floats(0.2, 6)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
)


def places(grid: Grid) -> Array:
    """``(I,J,K,3)`` millimetres of every voxel's centre, by nibabel's arithmetic."""
    return np.asarray(nib.affines.apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1)))


def volume_that_knows_its_places(grid: Grid) -> Volume:
    """Three channels that hold each voxel's world coordinates: a voxel that moves is found out."""
    return Volume(np.moveaxis(places(grid), -1, 0), grid.affine)


def faces(grid: Grid) -> Array:
    """``(8,3)``: the corners of the box the voxels fill."""
    corners = list(itertools.product(*[(-0.5, n - 0.5) for n in grid.shape]))
    return np.asarray(nib.affines.apply_affine(grid.affine, corners))


def test_there_are_48_orientations() -> None:
    assert len({Grid((2, 2, 2), affine).orientation for affine in ORIENTATIONS}) == 48


@pytest.mark.parametrize("affine", ORIENTATIONS)
def test_orientation_letters_agree_with_nibabel(affine: Affine) -> None:
    assert Grid((2, 3, 4), affine).orientation == "".join(nib.aff2axcodes(affine))
    for tilt in Rotation.from_rotvec(RNG.uniform(-0.3, 0.3, (20, 3))).as_matrix():  # up to 30 degrees off
        oblique = affine_of(tilt @ affine[:3, :3])
        assert Grid((2, 3, 4), oblique).orientation == "".join(nib.aff2axcodes(oblique))


@given(turned_grids)
def test_no_two_axes_share_a_letter(grid: Grid) -> None:
    world, signs = closest_axes(grid.affine)
    assert sorted(world) == [0, 1, 2]
    assert set(signs) <= {0, 1}


@pytest.mark.parametrize("affine", ALL)
def test_voxels_stay_where_they_are_in_ras_order(affine: Affine) -> None:
    volume = volume_that_knows_its_places(Grid((2, 3, 4), affine))
    turned = to_ras(volume)
    assert turned.grid.orientation == "RAS"
    assert turned.grid.same_as(ras_grid(volume.grid), 0)
    np.testing.assert_allclose(np.moveaxis(turned.array, 0, -1), places(turned.grid), atol=1e-10)


@pytest.mark.parametrize("affine", ORIENTATIONS)
def test_ras_order_agrees_with_nibabel(affine: Affine) -> None:
    array = RNG.normal(size=(2, 3, 4))
    theirs = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    ours = to_ras(Volume(array, affine))
    np.testing.assert_array_equal(ours.array, theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-12)


@pytest.mark.parametrize("affine", ALL)
def test_the_way_to_ras_and_back_is_exact(affine: Affine) -> None:
    for shape in [(2, 3, 4), (3, 2, 3, 4)]:
        volume = Volume(RNG.integers(0, 99, shape).astype(np.int16), affine)
        back = onto_axes_of(to_ras(volume), volume.grid)
        np.testing.assert_array_equal(back.array, volume.array)
        assert back.array.dtype == np.int16
        assert back.grid.distance_mm(volume.grid) < 1e-12


@given(turned_grids)
def test_the_way_back_is_exact_however_turned(grid: Grid) -> None:
    volume = volume_that_knows_its_places(grid)
    turned = to_ras(volume)
    np.testing.assert_allclose(np.moveaxis(turned.array, 0, -1), places(turned.grid), atol=1e-9)
    np.testing.assert_array_equal(onto_axes_of(turned, grid).array, volume.array)


def test_a_flip_is_found_out_by_these_tests() -> None:
    volume = volume_that_knows_its_places(Grid((2, 3, 4), ORIENTATIONS[5]))
    flipped = volume.with_array(volume.array[:, ::-1])
    assert not np.allclose(np.moveaxis(flipped.array, 0, -1), places(flipped.grid))


@pytest.mark.parametrize("affine", ALL)
def test_spacing_is_the_distance_between_neighbours(affine: Affine) -> None:
    centres = places(Grid((2, 2, 2), affine))
    steps = [np.linalg.norm(centres[index] - centres[0, 0, 0]) for index in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    np.testing.assert_allclose(Grid((2, 2, 2), affine).spacing_mm, steps)


@given(turned_grids, st.tuples(*[st.integers(1, 9)] * 3))
def test_another_size_fills_the_same_box(grid: Grid, shape: Shape) -> None:
    other = grid.with_shape(shape)
    assert other.shape == shape
    np.testing.assert_allclose(faces(other), faces(grid), atol=1e-9)
    np.testing.assert_allclose(np.multiply(other.spacing_mm, shape), np.multiply(grid.spacing_mm, grid.shape))


@given(turned_grids, st.tuples(*[st.floats(0.1, 9)] * 3))
def test_another_spacing_fills_the_same_box(grid: Grid, spacing_mm: tuple[float, float, float]) -> None:
    other = grid.with_spacing(spacing_mm)
    np.testing.assert_allclose(faces(other), faces(grid), atol=1e-9)
    extent = np.multiply(grid.shape, grid.spacing_mm)
    assert (np.abs(np.array(other.shape) - np.maximum(extent / spacing_mm, 1)) <= 0.5 + 1e-9).all()


def test_own_spacing_gives_the_same_grid() -> None:
    grid = Grid((11, 13, 17), OBLIQUE[3])
    assert grid.with_spacing(grid.spacing_mm).same_as(grid, 1e-9)


def test_distances_known_by_hand() -> None:
    grid = Grid((11, 3, 3), np.eye(4))
    moved = affine_of(np.eye(3), (3.0, 4.0, 0.0))
    assert grid.distance_mm(Grid((11, 3, 3), moved)) == 5.0
    stretched = Grid((11, 3, 3), np.diag([1.1, 1, 1, 1]))  # the last of eleven voxels is off by ten times 0.1 mm
    assert grid.distance_mm(stretched) == pytest.approx(1.0)
    assert grid.distance_mm(Grid((11, 3, 4), np.eye(4))) == np.inf
    assert grid.same_as(Grid((11, 3, 3), affine_of(np.eye(3), (9e-4, 0, 0))))
    assert not grid.same_as(Grid((11, 3, 3), affine_of(np.eye(3), (1.1e-3, 0, 0))))


@given(turned_grids, turned_grids)
def test_no_voxel_is_farther_than_the_distance_told(first: Grid, second: Grid) -> None:
    second = Grid(first.shape, second.affine)
    farthest = np.linalg.norm(places(first) - places(second), axis=-1).max()
    assert first.distance_mm(second) == pytest.approx(farthest)


def test_the_diagonal_known_by_hand() -> None:
    assert Grid((3, 4, 6), np.diag([1, 1, 2, 1])).diagonal_mm == 13.0
    turned = affine_of(TURNS[0] * (1, 1, 2))
    assert Grid((3, 4, 6), turned).diagonal_mm == pytest.approx(13.0)


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (np.diag([1, 0, 1, 1]), "singular"),
        (np.diag([1, np.nan, 1, 1]), "NaN"),
        (np.diag([1, np.inf, 1, 1]), "NaN"),
        (np.eye(3), "4x4"),
        (np.diag([1, 1, 1, 2]), "last row"),
        (affine_of(np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])), "singular"),
    ],
)
def test_an_affine_that_places_no_voxel_is_refused(affine: Affine, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Grid((2, 2, 2), affine)
    with pytest.raises(ValueError, match=told):
        Volume(np.zeros((2, 2, 2)), affine)


def test_small_voxels_are_no_singular_affine() -> None:
    assert Grid((2, 2, 2), np.diag([1e-5, 1e-5, 1e-5, 1])).spacing_mm == (1e-5, 1e-5, 1e-5)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2)])
def test_a_grid_holds_voxels_along_three_axes(shape: Shape) -> None:
    with pytest.raises(ValueError, match="voxel"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2, 2, 2), (2, 0, 2)])
def test_a_volume_has_three_or_four_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not"):
        Volume(np.zeros(shape), np.eye(4))


def test_what_becomes_of_an_affine_outside_does_not_move_a_grid() -> None:
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 3] = 100
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 100


@settings(max_examples=60)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 3))
def test_resize_agrees_with_torch(old: Shape, new: Shape) -> None:
    array = RNG.normal(size=(2, *old))
    tensor = torch.from_numpy(array)[None]
    linear = interpolate(tensor, new, mode="trilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(resize(array, new, 1), linear, atol=1e-12)
    # Torch takes the upper voxel at a tie: seen from the other end, that is the lower one.
    nearest = interpolate(tensor.flip(2, 3, 4), new, mode="nearest-exact")[0].flip(1, 2, 3).numpy()
    np.testing.assert_array_equal(resize(array, new, 0), nearest)


@settings(max_examples=30)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 3))
def test_resize_agrees_with_scipy_on_the_grid_of_the_same_box(old: Shape, new: Shape) -> None:
    volume = Volume(RNG.normal(size=old), OBLIQUE[0])
    voxels = np.moveaxis(np.indices(new), 0, -1)
    where = nib.affines.apply_affine(np.linalg.inv(volume.affine) @ volume.grid.with_shape(new).affine, voxels)
    expected = map_coordinates(volume.array, np.moveaxis(where, -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(resize(volume.array, new, 1), expected, atol=1e-9)


def test_resize_keeps_what_it_must() -> None:
    label = RNG.choice([0, 1, 5, 300], (5, 6, 7)).astype(np.uint16)
    nearest = resize(label, (9, 4, 13), 0)
    assert nearest.dtype == np.uint16
    assert set(np.unique(nearest)) <= {0, 1, 5, 300}
    probability = RNG.random((2, 5, 6, 7)).astype(np.float32)
    linear = resize(probability, (9, 4, 13), 1)
    assert (linear.shape, linear.dtype) == ((2, 9, 4, 13), np.float32)
    assert probability.min() - 1e-6 <= linear.min() <= linear.max() <= probability.max() + 1e-6
    np.testing.assert_array_equal(resize(probability, (5, 6, 7), 1), probability)
    np.testing.assert_array_equal(resize(np.ones((3, 3, 3)), (1, 1, 1), 0), [[[1]]])
    np.testing.assert_allclose(
        resize(np.array([0, 255], np.uint8)[:, None, None], (4, 1, 1), 1)[:, 0, 0], [0, 63.75, 191.25, 255]
    )


def test_a_linear_image_is_resized_exactly_but_for_its_held_edges() -> None:
    grid = Grid((8, 9, 10), OBLIQUE[1])
    other = grid.with_shape((13, 7, 10))
    resized = resize(volume_that_knows_its_places(grid).array, other.shape, 1)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(np.moveaxis(resized, 0, -1)[inner], places(other)[inner], atol=1e-9)


@settings(max_examples=40)
@given(turned_grids, st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([0, 1]))
def test_resampling_onto_the_same_box_is_resizing(grid: Grid, shape: Shape, order: int) -> None:
    volume = Volume(RNG.integers(0, 200, (2, *grid.shape)).astype(np.uint8), grid.affine)
    found = resample_onto(volume, grid.with_shape(shape), order)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.array, resize(volume.array, shape, order), atol=2e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("affine", ALL)
def test_resampling_onto_the_same_voxels_in_another_order_is_rearranging(affine: Affine) -> None:
    volume = Volume(RNG.integers(1, 9, (5, 6, 7)).astype(np.uint8), affine)
    turned = to_ras(volume)
    np.testing.assert_array_equal(resample_onto(volume, turned.grid, 0).array, turned.array)
    np.testing.assert_array_equal(resample_onto(turned, volume.grid, 0).array, volume.array)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32", "float64", "bool"])
def test_linear_resampling_never_rounds_to_whole_numbers(dtype: str) -> None:
    volume = Volume(np.array([0, 1], dtype)[:, None, None], np.eye(4))
    between = resample_onto(volume, Grid((1, 1, 1), affine_of(np.eye(3), (0.25, 0, 0))), 1)
    assert between.array.item() == pytest.approx(0.25)


def test_outside_the_box_is_nothing_and_at_its_rim_the_edge_is_held() -> None:
    volume = Volume(np.ones((4, 4, 4), np.uint8), np.eye(4))
    line = Grid((60, 1, 1), affine_of(np.diag([0.1, 1, 1]), (-1.25, 0, 0)))
    x = places(line)[:, 0, 0, 0]
    for order in (0, 1):
        found = resample_onto(volume, line, order).array[:, 0, 0]  # type: ignore[arg-type]
        np.testing.assert_array_equal(found == 1, (x > -0.5) & (x < 3.5))
        assert set(np.unique(found)) == {0, 1}


def test_resampling_on_an_oblique_grid_agrees_with_scipy() -> None:
    volume = Volume(RNG.normal(size=(2, 9, 10, 11)), OBLIQUE[2])
    middle = nib.affines.apply_affine(volume.affine, (4, 4.6, 5.3))
    affine = affine_of(TURNS[7] * 0.5)
    affine[:3, 3] = middle - affine[:3, :3] @ (2, 2, 2)
    grid = Grid((5, 5, 5), affine)
    where = np.moveaxis(nib.affines.apply_affine(np.linalg.inv(volume.affine), places(grid)), -1, 0)
    for order in (0, 1):
        expected = [map_coordinates(channel, where, order=order) for channel in volume.array]
        np.testing.assert_allclose(resample_onto(volume, grid, order).array, expected, atol=1e-12)  # type: ignore[arg-type]
