import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medvisionllama.data.decathlon import read_task
from medvisionllama.data.phantom import PhantomSettings, phantom_case
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.data.preprocess import (
    body_mask,
    label_to_model_grid,
    model_shape,
    normalise,
    to_model_grid,
)
from medvisionllama.data.way_back import back_to_input_grid, decide, to_input_resolution
from medvisionllama.errors import InputError
from medvisionllama.geometry import Affine, Array, Grid, Volume, onto_axes_of, ras_grid, resample_onto

RNG = np.random.default_rng(0)
NATIVE = Plan(
    protocol="native",
    task="Phantom",
    window=(16, 16, 16),
    spacing_mm=(1.0, 1.0, 1.0),
    intensity=(IntensityRule("body-zscore"),),
    classes={1: "Anterior", 2: "Posterior"},
    training_cases=1,
    median_shape=(16, 16, 16),
)
PAPER = replace(NATIVE, protocol="paper", spacing_mm=None, intensity=(IntensityRule("zscore"),))


def affine_of(matrix: Array, origin_mm: tuple[float, float, float] = (-31.0, 12.5, 7.25)) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = origin_mm
    return affine


ORIENTATIONS = [
    affine_of(np.eye(3)[:, order] * signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = [affine_of(turn) for turn in Rotation.random(20, rng=np.random.default_rng(1)).as_matrix()]
PHANTOM = phantom_case(3, settings=PhantomSettings(spacing_mm=(2.0, 2.6), canonical=True))


def one_hot(label_IJK: Array, channels: int) -> Array:
    """``(C,I,J,K)``: what a network that is always right would answer."""
    return (label_IJK == np.arange(channels)[:, None, None, None]).astype(np.float32)


def there_and_back(label: Volume, plan: Plan) -> Volume:
    probability = one_hot(label_to_model_grid(label, plan), len(plan.classes) + 1)
    probability = probability[1:2] if plan.merged else probability
    return back_to_input_grid(decide(to_input_resolution(probability, label.grid), plan), label.grid)


def with_spacing_of(plan: Plan, grid: Grid) -> Plan:
    spacing = ras_grid(grid).spacing_mm
    return replace(plan, spacing_mm=spacing)


def centre_mm(mask: Array, grid: Grid) -> Array:
    return np.asarray(nib.affines.apply_affine(grid.affine, np.argwhere(mask).mean(0)))


def dice(first: Array, second: Array) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


@pytest.mark.parametrize("affine", [*ORIENTATIONS, *OBLIQUE])
def test_the_way_there_and_back_is_exact_at_the_own_spacing(affine: Affine) -> None:
    label = Volume(RNG.integers(0, 3, (7, 8, 9)).astype(np.uint8), affine @ np.diag([1.1, 0.8, 2.0, 1]))
    back = there_and_back(label, with_spacing_of(NATIVE, label.grid))
    np.testing.assert_array_equal(back.array, label.array)
    np.testing.assert_array_equal(back.affine, label.affine)


@pytest.mark.parametrize("affine", ORIENTATIONS)
def test_left_is_still_left(affine: Affine) -> None:
    """One phantom stored in all 48 orders and directions is one image to the model, and its label comes back there."""
    image, label = PHANTOM
    grid = Grid(onto_axes_of(label, Grid((1, 1, 1), affine)).array.shape, affine)  # type: ignore[arg-type]
    turned = [onto_axes_of(volume, grid) for volume in (image, label)]
    np.testing.assert_allclose(to_model_grid(turned[0], NATIVE), to_model_grid(image, NATIVE), atol=1e-5)
    np.testing.assert_array_equal(label_to_model_grid(turned[1], NATIVE), label_to_model_grid(label, NATIVE))
    back = there_and_back(turned[1], with_spacing_of(NATIVE, turned[1].grid))
    np.testing.assert_array_equal(back.array, turned[1].array)
    for value in (1, 2):
        np.testing.assert_allclose(
            centre_mm(back.array == value, back.grid), centre_mm(label.array == value, label.grid)
        )


def test_a_mirrored_phantom_is_another_image() -> None:
    image, _ = PHANTOM
    assert (
        np.abs(to_model_grid(image, NATIVE) - to_model_grid(image.with_array(image.array[::-1]), NATIVE)).mean() > 0.1
    )


def lopsided(grid: Grid) -> tuple[Volume, Volume]:
    """An image that is brightest in a drop off the middle, and the drop's label map: all known in millimetres."""
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1)
    away = nib.affines.apply_affine(grid.affine, voxels) - nib.affines.apply_affine(
        grid.affine, np.array(grid.shape) / 2
    )
    depth = np.maximum(
        6 - np.linalg.norm(away - (2, -1, 1), axis=-1), 3.5 - np.linalg.norm(away - (-3, 3, -2), axis=-1)
    )
    return Volume(depth.astype(np.float32), grid.affine), Volume((depth > 0).astype(np.uint8), grid.affine)


@pytest.mark.parametrize("affine", [ORIENTATIONS[0], ORIENTATIONS[29], *OBLIQUE])
@pytest.mark.parametrize("plan", [NATIVE, replace(NATIVE, spacing_mm=(0.7, 1.9, 1.3)), PAPER])
def test_other_spacings_keep_a_structure_in_its_place(affine: Affine, plan: Plan) -> None:
    plan = replace(plan, classes={1: "drop"}, intensity=(IntensityRule("clip-zscore", -99, 99, 0, 1),))
    grid = Grid((30, 26, 20), affine @ np.diag([0.9, 1.1, 1.5, 1]))
    image, label = lopsided(grid)
    on_model_grid = label_to_model_grid(label, plan)
    model_grid = ras_grid(grid).with_shape(on_model_grid.shape)
    centre = centre_mm(label.array == 1, grid)
    quarter_voxel = 0.25 * max(*model_grid.spacing_mm, *grid.spacing_mm)
    np.testing.assert_allclose(centre_mm(on_model_grid == 1, model_grid), centre, atol=quarter_voxel)
    prepared = to_model_grid(image, plan)[0]
    np.testing.assert_allclose(centre_mm(prepared > 0, model_grid), centre, atol=quarter_voxel)
    assert dice(prepared > 0, on_model_grid == 1) > 0.85
    back = there_and_back(label, plan)
    np.testing.assert_allclose(centre_mm(back.array == 1, grid), centre, atol=quarter_voxel)
    assert dice(back.array == 1, label.array == 1) > 0.85


def test_an_image_is_looked_up_where_its_voxels_lie() -> None:
    """An independent way: map every model voxel's millimetres into the stored volume."""
    grid = Grid((30, 24, 20), OBLIQUE[5] @ np.diag([0.9, 1.2, 1.5, 1]))
    image = Volume(gaussian_filter(RNG.normal(size=grid.shape), 1).astype(np.float32), grid.affine)
    raw = replace(NATIVE, spacing_mm=(1.1, 0.8, 1.0), intensity=(IntensityRule("clip-zscore", -1e9, 1e9, 0, 1),))
    prepared = to_model_grid(image, raw)
    model_grid = ras_grid(grid).with_shape(prepared.shape[1:])
    np.testing.assert_allclose(prepared[0], resample_onto(image, model_grid, 1).array, atol=1e-5)


def test_label_values_need_not_follow_one_another() -> None:
    plan = replace(NATIVE, classes={1: "a", 5: "b", 300: "c"})
    label = Volume(RNG.choice([0, 1, 5, 300], (6, 7, 8)).astype(np.uint16), np.eye(4))
    channels = label_to_model_grid(label, plan)
    assert channels.dtype == np.uint8
    np.testing.assert_array_equal(channels, np.searchsorted([0, 1, 5, 300], label.array))
    back = there_and_back(label, plan)
    assert back.array.dtype == np.uint16
    np.testing.assert_array_equal(back.array, label.array)


def test_255_classes_survive_and_more_are_refused() -> None:
    plan = replace(NATIVE, classes={value: f"class {value}" for value in range(2, 257)})
    label = Volume(np.arange(256).reshape(4, 8, 8) + 1, np.eye(4))
    label.array[0, 0, 0] = 0
    np.testing.assert_array_equal(label_to_model_grid(label, plan).ravel(), np.arange(256))
    np.testing.assert_array_equal(there_and_back(label, plan).array, label.array)
    many = {value: f"class {value}" for value in range(1, 257)}
    with pytest.raises(InputError, match="too many classes: got 256"):
        replace(NATIVE, classes=many)
    assert replace(PAPER, classes=many).out_channels == 1


@pytest.mark.parametrize("value", [3, 255, -1])
def test_a_label_value_that_is_not_named_is_refused(value: int) -> None:
    array = np.zeros((3, 3, 3), np.int16)
    array[1, 1, 1] = value
    for plan in (NATIVE, PAPER):
        with pytest.raises(InputError, match=rf"case_7 .* got {value}, expected 0, 1, 2"):
            label_to_model_grid(Volume(array, np.eye(4)), plan, "case_7")


def test_the_paper_protocol_merges_all_classes_to_one() -> None:
    label = Volume(RNG.integers(0, 3, (16, 16, 16)).astype(np.uint8), ORIENTATIONS[20])
    merged = label_to_model_grid(label, PAPER)
    assert set(np.unique(merged)) == {0, 1}
    assert merged.shape == (16, 16, 16)
    back = there_and_back(label, PAPER)
    np.testing.assert_array_equal(back.array, label.array > 0)
    assert (PAPER.out_channels, PAPER.targets) == (1, {"foreground": (1, 2)})


@pytest.mark.parametrize("shape", [(20, 9, 31), (5, 40, 16)])
def test_the_paper_protocol_stretches_every_volume_to_one_grid(shape: tuple[int, int, int]) -> None:
    image = Volume(RNG.normal(5, 3, shape).astype(np.float32), OBLIQUE[0])
    prepared = to_model_grid(image, PAPER)
    assert prepared.shape == (1, 16, 16, 16)
    assert prepared.dtype == np.float32
    same = to_model_grid(Volume(RNG.normal(5, 3, (16, 16, 16)).astype(np.float32), np.eye(4)), PAPER)
    assert float(same.mean()) == pytest.approx(0, abs=1e-5)
    assert float(same.std()) == pytest.approx(1, abs=1e-5)


def test_the_size_the_model_is_given() -> None:
    grid = Grid((10, 20, 30), affine_of(np.eye(3)[:, [2, 0, 1]] * (3.0, 2.0, 1.0)))  # I runs up, J right, K forward
    assert model_shape(grid, NATIVE) == (40, 30, 30)
    assert model_shape(grid, replace(NATIVE, spacing_mm=(4.0, 3.0, 30.0))) == (10, 10, 1)
    assert model_shape(grid, PAPER) == PAPER.window


@pytest.mark.parametrize("background", [0.0, -5.25, 1000.0])
def test_a_constant_background_of_any_value_is_left_out(background: float) -> None:
    channel = np.full((20, 20, 20), background, np.float32)
    body = (slice(4, 16),) * 3
    channel[body] = RNG.normal(100, 20, (12, 12, 12))
    mask = body_mask(channel)
    assert mask[body].all()
    assert mask.sum() == 12**3
    normalised = normalise(channel, IntensityRule("body-zscore"))
    assert float(normalised[mask].mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalised[mask].std()) == pytest.approx(1, abs=1e-5)
    assert (normalised[~mask] == 0).all()


def test_each_channel_has_its_own_background() -> None:
    plan = replace(NATIVE, intensity=(IntensityRule("body-zscore"),) * 2)
    image = np.stack([np.full((8, 8, 8), -2.5), np.full((8, 8, 8), -6.25)]).astype(np.float32)
    image[:, 2:6, 2:6, 2:6] = RNG.normal([[[[10]]], [[[1e6]]]], [[[[1]]], [[[1e5]]]], (2, 4, 4, 4))
    prepared = to_model_grid(Volume(image, ORIENTATIONS[7]), plan)
    assert (prepared[:, 0, 0, 0] == 0).all()
    body = prepared.reshape(2, -1)[:, (prepared != 0).all(0).ravel()]
    np.testing.assert_allclose(body.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(body.std(1), 1, atol=1e-4)


def test_without_a_constant_background_all_voxels_count() -> None:
    noisy = RNG.normal(size=(12, 12, 12)).astype(np.float32)
    assert body_mask(noisy).all()
    noisy[0, 0, 0] = noisy[-1, -1, -1] = 0  # two corners alike are no background
    assert body_mask(noisy).all()
    np.testing.assert_allclose(
        normalise(noisy, IntensityRule("body-zscore")), normalise(noisy, IntensityRule("zscore"))
    )


def test_a_mask_given_as_a_channel_is_not_wiped_out() -> None:
    mask = np.zeros((8, 8, 8), np.float32)
    mask[2:6, 2:6, 2:6] = 1
    normalised = normalise(mask, IntensityRule("body-zscore"))
    np.testing.assert_array_equal(normalised > 0, mask == 1)
    assert float(normalised.std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["zscore", "body-zscore"])
@pytest.mark.parametrize("value", [0.0, -7.3, 0.1, 1e6])
def test_a_flat_channel_becomes_zero(kind: str, value: float) -> None:
    flat = np.full((9, 9, 9), value, np.float32)
    assert (normalise(flat, IntensityRule(kind)) == 0).all()  # type: ignore[arg-type]


def test_scale_and_offset_of_intensities_do_not_matter() -> None:
    channel = gaussian_filter(RNG.normal(size=(10, 10, 10)), 1).astype(np.float32)
    for kind in ("zscore", "body-zscore"):
        rule = IntensityRule(kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(normalise(channel * 1e6 - 3e5, rule), normalise(channel, rule), atol=1e-4)


def test_ct_is_clipped_and_scaled_by_the_training_set() -> None:
    rule = IntensityRule("clip-zscore", low=-100.0, high=300.0, mean=50.0, sd=25.0)
    channel = np.array([-1024, -100, 50, 75, 300, 3000], np.float32).reshape(1, 2, 3)
    np.testing.assert_allclose(normalise(channel, rule).ravel(), [-6, -6, 0, 1, 10, 10])


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_are_refused(fault: float) -> None:
    array = np.zeros((3, 3, 3), np.float32)
    array[1, 2, 0] = fault
    with pytest.raises(InputError, match="case_7 holds NaN or infinite"):
        to_model_grid(Volume(array, np.eye(4)), NATIVE, "case_7")


@pytest.mark.parametrize("channels", [2, 4])
def test_another_number_of_channels_is_refused(channels: int) -> None:
    with pytest.raises(InputError, match=rf"case_7 .* got {channels}, expected 1"):
        to_model_grid(Volume(np.zeros((channels, 3, 3, 3), np.float32), np.eye(4)), NATIVE, "case_7")
    two = replace(NATIVE, intensity=(IntensityRule("zscore"),) * 3)
    with pytest.raises(InputError, match="got 1, expected 3"):
        to_model_grid(Volume(np.zeros((3, 3, 3), np.float32), np.eye(4)), two)


def test_the_input_is_left_as_it_was() -> None:
    image, label = PHANTOM
    kept = image.array.copy(), label.array.copy()
    to_model_grid(image, NATIVE)
    label_to_model_grid(label, NATIVE)
    np.testing.assert_array_equal(image.array, kept[0])
    np.testing.assert_array_equal(label.array, kept[1])


def test_the_likeliest_class_is_taken_and_one_half_is_background() -> None:
    plan = replace(NATIVE, classes={4: "a", 9: "b"})
    probability = np.array([[0.5, 0.2, 0.3], [0.3, 0.7, 0.3], [0.2, 0.1, 0.4]]).reshape(3, 3, 1, 1)
    assert decide(probability, plan).ravel().tolist() == [0, 4, 9]
    assert decide(np.array([0.5, 0.51, 0.49]).reshape(1, 3, 1, 1), PAPER).ravel().tolist() == [0, 1, 0]


def test_edges_are_decided_on_the_fine_grid() -> None:
    """A coarse model that is half sure still draws a slanted edge in the input's own small voxels."""
    slanted = np.add.outer(2 * np.arange(32), np.arange(32))[..., None].repeat(4, 2) > 50
    sure = slanted.reshape(8, 4, 8, 4, 4).mean((1, 3))  # how much of a coarse voxel is foreground
    grid, plan = Grid((32, 32, 4), np.eye(4)), replace(NATIVE, classes={1: "a"})
    fine = back_to_input_grid(decide(to_input_resolution(np.stack([1 - sure, sure]), grid), plan), grid)
    blocks = (sure > 0.5).repeat(4, 0).repeat(4, 1)
    errors = [int((answer != slanted).sum()) for answer in (fine.array == 1, blocks)]
    assert errors[0] < errors[1] / 2


@pytest.mark.real_data
def test_a_real_case_in_lps_order_with_a_negative_background(real_data: Path) -> None:
    case = read_task(real_data / "BraTS2013_2ch").cases[0]
    image, label = case.read_pair()
    assert image.grid.orientation == "LPS"
    box = (..., slice(60, 180), slice(60, 180), slice(40, 120))  # a part is enough, and fast
    image, label = image.with_array(image.array[box]), label.with_array(label.array[box])
    plan = replace(
        NATIVE,
        spacing_mm=(2.0, 2.0, 2.0),
        intensity=(IntensityRule("body-zscore"),) * 2,
        classes={value: str(value) for value in (1, 2, 3, 4)},
    )
    prepared = to_model_grid(image, plan)
    assert prepared.shape == (2, 60, 60, 40)
    outside = ~body_mask(image.array[0])
    assert image.array[0][outside].max() == image.array[0].min() < 0
    assert 0.1 < (prepared[0] == 0).mean() < 0.9
    back = there_and_back(label, plan)
    assert back.grid.same_as(label.grid, 0)
    assert dice(back.array > 0, label.array > 0) > 0.9
