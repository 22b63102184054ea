import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import Generator, Tensor

from medvisionllama.config import load_recipe
from medvisionllama.data.augment import DRAWS, AugmentConfig, augment
from medvisionllama.data.mirroring import Mirroring, mirroring_of
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import resize

WINDOW = (24, 40, 32)
SPACING_MM = (1.5, 0.7, 1.0)
ALL = AugmentConfig(
    rotate_probability=0.5,
    scale_probability=0.5,
    mirror_axes=(0, 1, 2),
    noise_probability=0.5,
    brightness_probability=0.5,
    contrast_probability=0.5,
    gamma_probability=0.5,
    blur_probability=0.5,
    low_resolution_probability=0.5,
    inverted_gamma_probability=0.5,
    gamma_keeps_moments=True,
)


def generators(*seeds: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


def drawn(seed: int) -> list[float]:
    """The uniform numbers that a case with this seed is given."""
    return torch.rand(DRAWS, generator=Generator().manual_seed(seed)).tolist()


def places_mm(window: Sequence[int] = WINDOW, spacing_mm: Sequence[float] = SPACING_MM) -> Tensor:
    """``(3,I,J,K)``: millimetres from the window's middle."""
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(window, spacing_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def ball(centre_mm: Sequence[float], radius_mm: float = 4.0) -> Tensor:
    """``(1,1,I,J,K)``, with a soft edge so that its moments are not those of its voxels."""
    distance = torch.linalg.vector_norm(places_mm() - torch.tensor(centre_mm)[:, None, None, None], dim=0)
    return torch.clamp(radius_mm - distance + 0.5, 0, 1)[None, None]


def moments(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Centre (mm) and covariance (mm squared) of what is bright."""
    mass, where = image.double().flatten(), places_mm().double().flatten(1)
    centre = (where * mass).sum(1) / mass.sum()
    apart = where - centre[:, None]
    return centre.numpy(), ((apart * mass) @ apart.T / mass.sum()).numpy()


def bend(image: Tensor, config: AugmentConfig, seed: int, **more: Any) -> Tensor:
    label = torch.zeros((1, *image.shape[2:]), dtype=torch.uint8)
    return augment(image, label, config, generators(seed), **more)[0]


def turned_by(seed: int, degrees: float) -> np.ndarray:
    """The rotation that a case with this seed is given, by scipy: about I, J and K."""
    angles = [(2 * u - 1) * degrees for u in drawn(seed)[1:4]]
    matrix = np.eye(3)
    for axis, angle in zip("xyz", angles, strict=True):
        matrix = matrix @ Rotation.from_euler(axis, angle, degrees=True).as_matrix()
    return matrix


IN_MM = {"spacing_mm_B3": torch.tensor([SPACING_MM])}
TURN = AugmentConfig(rotate_probability=1.0, rotate_degrees=40.0)


@pytest.mark.parametrize("seed", range(6))
def test_a_ball_turns_about_the_middle_and_stays_a_ball(seed: int) -> None:
    start = np.array([6.0, -5.0, 4.0])
    centre, spread = moments(bend(ball(start.tolist()), TURN, seed, **IN_MM))
    # The picture is looked up at R x, hence what was at p is now at the inverse's place.
    np.testing.assert_allclose(centre, turned_by(seed, 40).T @ start, atol=0.1)
    np.testing.assert_allclose(spread, moments(ball(start.tolist()))[1], atol=0.45)  # linear look-up blurs


def test_without_its_spacing_a_ball_of_flat_voxels_would_be_crushed() -> None:
    spread = moments(bend(ball([0.0, 0.0, 0.0]), TURN, 0))[1]
    assert np.abs(spread - moments(ball([0.0, 0.0, 0.0]))[1]).max() > 0.9


@pytest.mark.parametrize("seed", range(6))
def test_a_bar_turns_by_the_angle_drawn(seed: int) -> None:
    x, y, z = places_mm()
    bar = (torch.clamp(9 - y.abs(), 0, 1) * torch.clamp(2.5 - x.abs(), 0, 1) * torch.clamp(2.5 - z.abs(), 0, 1))[
        None, None
    ]
    direction = np.linalg.eigh(moments(bend(bar, TURN, seed, **IN_MM))[1])[1][:, -1]
    expected = turned_by(seed, 40).T @ (0, 1, 0)
    assert math.degrees(math.acos(min(1, abs(direction @ expected)))) < 1.5


def test_angles_stay_within_what_was_asked() -> None:
    few = AugmentConfig(rotate_probability=1.0, rotate_degrees=10.0)
    turns = [turned_by(seed, 10) for seed in range(40)]
    for seed in range(0, 40, 8):
        centre, _ = moments(bend(ball([0.0, 9.0, 0.0]), few, seed, **IN_MM))
        np.testing.assert_allclose(centre, turns[seed].T @ (0, 9, 0), atol=0.1)
    assert all(np.linalg.norm(Rotation.from_matrix(t).as_rotvec(degrees=True)) < 3 * 10 for t in turns)


@pytest.mark.parametrize("zoom", [0.75, 1.3])
def test_zoom_above_one_magnifies(zoom: float) -> None:
    config = AugmentConfig(scale_probability=1.0, scale_range=(zoom, zoom))
    start = [3.0, -3.0, 2.0]
    bent = bend(ball(start), config, 0, **IN_MM)
    assert float(bent.sum() / ball(start).sum()) == pytest.approx(zoom**3, rel=0.03)
    np.testing.assert_allclose(moments(bent)[0], zoom * np.array(start), atol=0.1)


@pytest.mark.parametrize("spacing", [None, torch.tensor([SPACING_MM] * 4)])
def test_image_and_label_go_through_one_geometry(spacing: Tensor | None) -> None:
    """The image holds each voxel's place, the label its number: wherever a voxel went, both must say the same."""
    config = AugmentConfig(rotate_probability=1.0, scale_probability=1.0, mirror_axes=(0, 1, 2))
    indices = torch.stack(torch.meshgrid(*[torch.arange(n) for n in WINDOW], indexing="ij"))
    number = (indices[0] * WINDOW[1] + indices[1]) * WINDOW[2] + indices[2]
    image = torch.cat([indices.float(), torch.ones(1, *WINDOW)])
    images, labels = augment(
        image.expand(4, -1, -1, -1, -1), number.expand(4, -1, -1, -1), config, generators(1, 2, 3, 4), spacing
    )
    told = torch.stack([labels // (WINDOW[1] * WINDOW[2]), labels // WINDOW[2] % WINDOW[1], labels % WINDOW[2]], dim=1)
    inside = images[:, 3] > 0.999
    assert inside.float().mean() > 0.4
    apart = (images[:, :3] - told).abs().amax(1)
    assert float(apart[inside].max()) <= 0.501
    assert float(apart[inside].mean()) > 0.1  # negative control: something was interpolated


def test_outside_there_is_nothing() -> None:
    config = AugmentConfig(scale_probability=1.0, scale_range=(0.5, 0.5))
    image, label = augment(torch.ones(1, 1, *WINDOW), torch.ones(1, *WINDOW), config, generators(0))
    assert float(image[0, 0, 0, 0, 0]) == float(label[0, 0, 0, 0]) == 0
    assert float(label.mean()) == pytest.approx(1 / 8)


def test_labels_keep_their_values_and_their_type() -> None:
    config = AugmentConfig(rotate_probability=1.0, scale_probability=1.0)
    label = torch.tensor([0, 1, 5, 255], dtype=torch.uint8)[torch.randint(4, (2, *WINDOW))]
    bent = augment(torch.zeros(2, 1, *WINDOW), label, config, generators(0, 1))[1]
    assert bent.dtype == torch.uint8
    assert set(bent.unique().tolist()) == {0, 1, 5, 255}


def test_mirrors_are_exact_and_each_axis_has_its_own() -> None:
    image, label = torch.randn(1, 2, 3, 4, 5), torch.randint(3, (1, 3, 4, 5))
    seen = set()
    for seed in range(60):
        mirrored = [axis for axis in range(3) if drawn(seed)[6 + axis] < 0.5]
        bent, told = augment(image, label, AugmentConfig(mirror_axes=(0, 1, 2)), generators(seed))
        assert torch.equal(bent, image.flip([axis + 2 for axis in mirrored]))
        assert torch.equal(told, label.flip([axis + 1 for axis in mirrored]))
        seen.add(tuple(mirrored))
    assert len(seen) == 8


def test_an_axis_left_out_is_never_mirrored() -> None:
    image = torch.arange(4.0).reshape(1, 1, 4, 1, 1)
    for seed in range(20):
        assert torch.equal(bend(image, AugmentConfig(mirror_axes=(1, 2)), seed), image)


def test_zero_probabilities_change_not_a_bit() -> None:
    image, label = torch.randn(3, 2, 5, 6, 7) * 1e3 + 7, torch.randint(3, (3, 5, 6, 7))
    bent, told = augment(image, label, AugmentConfig(), generators(0, 1, 2))
    assert torch.equal(bent, image)
    assert torch.equal(told, label)


@pytest.mark.parametrize(
    "kind",
    [
        "rotate",
        "scale",
        "noise",
        "brightness",
        "contrast",
        "gamma",
        "blur",
        "low_resolution",
        "inverted_gamma",
    ],
)
def test_those_not_drawn_change_not_a_bit_and_the_others_do(kind: str) -> None:
    config = AugmentConfig(**{f"{kind}_probability": 0.3})
    image = torch.randn(1, 2, 6, 7, 8).expand(300, -1, -1, -1, -1)
    bent, _ = augment(image, torch.zeros(300, 6, 7, 8), config, generators(*range(300)))
    changed = (bent != image).flatten(1).any(1)
    assert 0.2 < float(changed.float().mean()) < 0.4
    assert torch.equal(bent[~changed], image[~changed])


def test_the_given_batch_is_left_as_it_was() -> None:
    image, label = torch.randn(4, 2, 6, 7, 8), torch.randint(3, (4, 6, 7, 8))
    kept = image.clone(), label.clone()
    augment(image, label, ALL, generators(0, 1, 2, 3))
    assert torch.equal(image, kept[0])
    assert torch.equal(label, kept[1])


def test_what_happens_to_a_case_depends_on_its_generator_alone() -> None:
    image, label = torch.randn(8, 2, 9, 10, 11), torch.randint(3, (8, 9, 10, 11))
    spacing = torch.rand(8, 3) + 0.5
    together = augment(image, label, ALL, generators(*range(8)), spacing)
    for case in range(8):
        alone = augment(image[case : case + 1], label[case : case + 1], ALL, generators(case), spacing[case : case + 1])
        assert torch.equal(alone[0][0], together[0][case])
        assert torch.equal(alone[1][0], together[1][case])
    other = augment(image, label, ALL, generators(*range(8, 16)), spacing)
    assert all(not torch.equal(one, two) for one, two in zip(other[0], together[0], strict=True))


def test_the_same_generators_give_the_same_batch() -> None:
    image, label = torch.randn(4, 2, 9, 10, 11), torch.randint(3, (4, 9, 10, 11))
    first, second = (augment(image, label, ALL, generators(0, 1, 2, 3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_one_setting_does_not_shift_the_draws_of_another() -> None:
    image, label = torch.randn(6, 1, 9, 10, 11), torch.randint(3, (6, 9, 10, 11))
    turn = AugmentConfig(rotate_probability=0.5, gamma_probability=0.5)
    more = AugmentConfig(rotate_probability=0.5, gamma_probability=0.5, noise_probability=1.0, noise_sd=1e-6)
    first, second = (
        augment(image, label, turn, generators(*range(6))),
        augment(image, label, more, generators(*range(6))),
    )
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=1e-4)


def test_noise_has_the_deviation_drawn() -> None:
    config = AugmentConfig(noise_probability=1.0, noise_sd=0.4)
    for seed in range(5):
        noise = bend(torch.zeros(1, 1, *WINDOW), config, seed)
        assert float(noise.std()) == pytest.approx(0.4 * drawn(seed)[10], rel=0.03)
        assert abs(float(noise.mean())) < 0.01


def test_brightness_contrast_and_gamma_do_what_their_names_say() -> None:
    image = torch.randn(1, 2, 9, 10, 11) + 1
    brighter = bend(image, AugmentConfig(brightness_probability=1.0, brightness_range=(1.25, 1.25)), 0)
    torch.testing.assert_close(brighter, image * 1.25)
    stretched = bend(image, AugmentConfig(contrast_probability=1.0, contrast_range=(0.5, 0.5)), 0)
    torch.testing.assert_close(stretched.mean((2, 3, 4)), image.mean((2, 3, 4)))
    torch.testing.assert_close(stretched.std((2, 3, 4)), image.std((2, 3, 4)) * 0.5)
    curved = bend(image, AugmentConfig(gamma_probability=1.0, gamma_range=(2.0, 2.0)), 0)
    low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
    torch.testing.assert_close(curved, ((image - low) / (high - low)).square() * (high - low) + low)
    assert bool((curved <= image + 1e-5).all())


def test_a_flat_image_stays_finite() -> None:
    always = {f"{kind}_probability": 1.0 for kind in ("brightness", "contrast", "gamma")}
    for value in (0.0, -3.0):
        flat = bend(torch.full((1, 1, 4, 4, 4), value), AugmentConfig(**always), 0)
        assert bool(torch.isfinite(flat).all())
        assert len(flat.unique()) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"noise_probability": 1.5},
        {"rotate_probability": -0.1},
        {"scale_probability": float("nan")},
        {"scale_range": (1.4, 0.7)},
        {"gamma_range": (0.0, 1.0)},
        {"blur_range": (0.0, 1.0)},
        {"low_resolution_range": (0.5, 1.5)},
        {"mirror_axes": (3,)},
        {"mirror_axes": (-1,)},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        AugmentConfig(**settings)


def later_drawn(seed: int) -> list[float]:
    """What a case is given for what was added later: of a generator that its own one seeds."""
    first = Generator().manual_seed(seed)
    torch.rand(DRAWS, generator=first)
    return torch.rand(6, generator=Generator().manual_seed(int(torch.randint(2**62, (), generator=first)))).tolist()


def coloured_as_recorded(image: Tensor, config: AugmentConfig, seed: int) -> Tensor:
    """One case, coloured as recorded trainings were: noise, factor, stretch, curve."""
    generator = Generator().manual_seed(seed)
    draws = iter(torch.rand(DRAWS, generator=generator).unbind())
    for _ in range(9):  # those that bend
        next(draws)

    def one(probability: float, extent: tuple[float, float], otherwise: float) -> Tensor:
        happens = next(draws) < probability
        return torch.where(happens, extent[0] + (extent[1] - extent[0]) * next(draws), torch.tensor(otherwise))

    noise_sd = one(config.noise_probability, (0.0, config.noise_sd), 0.0)
    image = image + noise_sd * torch.randn(image.shape, generator=generator)
    image = image * one(config.brightness_probability, config.brightness_range, 1.0)
    contrast, mean = one(config.contrast_probability, config.contrast_range, 1.0), image.mean((1, 2, 3), keepdim=True)
    image = image if contrast == 1 else (image - mean) * contrast + mean
    gamma = one(config.gamma_probability, config.gamma_range, 1.0)
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    extent = (high - low).clamp_min(1e-6)
    return image if gamma == 1 else ((image - low) / extent) ** gamma * extent + low


def test_the_recipes_of_recorded_trainings_give_the_same_to_rounding() -> None:
    recipe = yaml.safe_load((files("medvisionllama") / "recipes" / "native.yaml").read_text())["augment"]
    still = AugmentConfig(**(recipe | {"rotate_probability": 0.0, "scale_probability": 0.0}))
    assert (still.blur_probability, still.low_resolution_probability, still.inverted_gamma_probability) == (0, 0, 0)
    image = torch.randn(60, 2, 6, 7, 8)
    coloured, _ = augment(image, torch.zeros(60, 6, 7, 8), still, generators(*range(60)))
    as_recorded = [coloured_as_recorded(case, still, seed) for seed, case in enumerate(image)]
    torch.testing.assert_close(coloured, torch.stack(as_recorded), rtol=1e-5, atol=1e-5)
    assert (coloured != image).flatten(1).any(1).sum() > 15  # negative control: much was coloured


@pytest.mark.parametrize("sd", [0.5, 0.8, 1.0, 2.3])
def test_blur_is_scipys(sd: float) -> None:
    image = torch.randn(1, 2, 9, 14, 6)
    blurred = bend(image, AugmentConfig(blur_probability=1.0, blur_range=(sd, sd)), 0)
    expected = gaussian_filter(image.numpy().astype(np.float64), (0, 0, sd, sd, sd), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=2e-5)
    assert np.abs(image.numpy() - expected).max() > 0.2


def test_each_case_is_blurred_by_its_own_draw() -> None:
    config = AugmentConfig(blur_probability=0.5, blur_range=(0.5, 1.5))
    image = torch.randn(12, 1, 9, 8, 7)
    blurred, _ = augment(image, torch.zeros(12, 9, 8, 7), config, generators(*range(12)))
    for seed in range(12):
        happens, share = later_drawn(seed)[:2]
        sd = 0.5 + share if happens < 0.5 else 1e-9
        expected = gaussian_filter(image[seed, 0].numpy(), sd, mode="nearest", radius=round(4 * sd))
        np.testing.assert_allclose(blurred[seed, 0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
def test_low_resolution_is_a_shrunk_image_stretched_again(share: float) -> None:
    image = torch.randn(1, 2, 9, 14, 6)
    config = AugmentConfig(low_resolution_probability=1.0, low_resolution_range=(share, share))
    shrunk = resize(image.numpy(), (round(9 * share), round(14 * share), round(6 * share)), order=0)
    expected = resize(shrunk, (9, 14, 6), order=1)
    np.testing.assert_allclose(bend(image, config, 0).numpy(), expected, atol=1e-5)
    assert len(np.unique(shrunk)) <= (round(9 * share) * round(14 * share) * round(6 * share)) * 2


def test_inverted_gamma_is_gamma_of_the_negative() -> None:
    image = torch.randn(1, 2, 9, 10, 11) + 1
    inverted = bend(image, AugmentConfig(inverted_gamma_probability=1.0, gamma_range=(2.0, 2.0)), 0)
    plain = bend(-image, AugmentConfig(gamma_probability=1.0, gamma_range=(2.0, 2.0)), 0)
    torch.testing.assert_close(inverted, -plain)
    assert bool((inverted >= image - 1e-5).all())


def test_gamma_may_keep_mean_and_deviation() -> None:
    image = torch.randn(1, 2, 9, 10, 11) * 3 + 1
    config = AugmentConfig(gamma_probability=1.0, gamma_range=(2.0, 2.0), gamma_keeps_moments=True)
    kept, lost = bend(image, config, 0), bend(image, AugmentConfig(gamma_probability=1.0, gamma_range=(2.0, 2.0)), 0)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(kept, (2, 3, 4)), moment(image, (2, 3, 4)))
    assert (lost.mean((2, 3, 4)) < image.mean((2, 3, 4)) - 0.3).all()


def test_the_later_draws_do_not_shift_the_earlier_ones() -> None:
    image, label = torch.randn(8, 1, 9, 10, 11), torch.randint(3, (8, 9, 10, 11))
    turn = {"rotate_probability": 0.5, "scale_probability": 0.5, "mirror_axes": (0, 1, 2), "noise_probability": 0.5}
    some, more = AugmentConfig(**turn), AugmentConfig(**turn, low_resolution_probability=1.0)
    low = AugmentConfig(low_resolution_probability=1.0)
    together = augment(image, label, more, generators(*range(8)))
    one_by_one = augment(*augment(image, label, some, generators(*range(8))), low, generators(*range(8)))
    assert torch.equal(together[1], one_by_one[1])
    torch.testing.assert_close(together[0], one_by_one[0])


def test_nnunets_own_figures_run_and_change_most_cases() -> None:
    image = torch.randn(50, 1, 9, 10, 11)
    bent, _ = augment(image, torch.zeros(50, 9, 10, 11), load_recipe("nnunet").augment, generators(*range(50)))
    assert bool(torch.isfinite(bent).all())
    assert (bent != image).flatten(1).any(1).float().mean() > 0.85


def sided(left: int = 1, right: int = 2, middle: int = 3) -> Tensor:
    """``(1,I,J,K)``: one class on each side of I, and one across."""
    label = torch.zeros((1, 8, 4, 4), dtype=torch.uint8)
    label[:, :3], label[:, 5:], label[:, 3:5] = left, right, middle
    return label


def test_left_stays_left_where_sides_are_swapped_with_the_mirror() -> None:
    swap = Mirroring(swaps=((1, 2),))
    image, label = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 4, 4), sided()
    seen = set()
    for seed in range(8):
        bent, told = augment(image, label, AugmentConfig(mirror_axes=(0,)), generators(seed), mirroring=swap)
        mirrored = not torch.equal(bent, image)
        seen.add(mirrored)
        assert torch.equal(bent, image.flip(2) if mirrored else image)
        assert torch.equal(told, label)  # left is on the left either way
        assert told.dtype == label.dtype
        wrong = augment(image, label, AugmentConfig(mirror_axes=(0,)), generators(seed))[1]
        assert torch.equal(wrong, label) != mirrored  # negative control: without the swap right is on the left
    assert seen == {True, False}


def test_sides_are_swapped_along_i_alone() -> None:
    swap = Mirroring(swaps=((1, 2),))
    for seed in range(8):
        told = augment(
            torch.zeros(1, 1, 8, 4, 4), sided(), AugmentConfig(mirror_axes=(1, 2)), generators(seed), mirroring=swap
        )[1]
        assert torch.equal(told, sided())


def test_what_the_task_does_not_allow_is_not_mirrored() -> None:
    image = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 4, 4)
    for seed in range(12):
        bent, told = augment(
            image, sided(), AugmentConfig(mirror_axes=(0, 1, 2)), generators(seed), mirroring=Mirroring((1, 2))
        )
        assert torch.equal(bent, image)
        assert torch.equal(told, sided())


def test_a_class_that_would_become_two_others_is_refused() -> None:
    with pytest.raises(InputError, match="change sides"):
        Mirroring(swaps=((1, 2), (2, 3)))
    with pytest.raises(InputError, match="axes to mirror"):
        Mirroring((3,))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["kidney_left", "liver", "kidney_right"], Mirroring(swaps=((1, 3),))),
        (["Left Lung", "Right Lung", "heart"], Mirroring(swaps=((1, 2),))),
        (["femur_l", "femur_r"], Mirroring(swaps=((1, 2),))),
        (["rib_left_1", "rib_left_2", "rib_right_2", "rib_right_1"], Mirroring(swaps=((1, 4), (2, 3)))),
        (["kidneyLeft", "kidneyRight"], Mirroring(swaps=((1, 2),))),
        (["spleen", "rkid", "lkid"], Mirroring(swaps=((2, 3),))),
        (["LKidney", "RKidney", "RAG", "LAG"], Mirroring(swaps=((1, 2), (3, 4)))),
        (["ctx-lh-insula", "ctx-rh-insula"], Mirroring(swaps=((1, 2),))),
        (["lkid", "rkid", "kid"], Mirroring(swaps=((1, 2),))),
        (["kidney", "lkidney"], Mirroring((1, 2))),
        (["RV", "MYO", "LV"], Mirroring((1, 2))),
        (["L1", "L2", "R1"], Mirroring((1, 2))),
        (["L1", "L2", "lung", "rectum", "liver", "rib", "", "1"], Mirroring()),
        (["left atrium"], Mirroring((1, 2))),
        (["left ventricle", "right ventricle", "myocardium"], Mirroring((1, 2))),
        (["heart_atrium_left", "heart_atrium_right", "kidney_left", "kidney_right"], Mirroring((1, 2))),
        (["Left-Lateral-Ventricle", "Right-Lateral-Ventricle"], Mirroring(swaps=((1, 2),))),
        (["kidney_left", "kidney_right", "left ventricle"], Mirroring((1, 2))),
        (["Anterior", "Posterior", "liver", "cleft", "bright_spot", "colour"], Mirroring()),
        (["leftlung", "rightlung", "heart"], Mirroring(swaps=((1, 2),))),
        (["kidneyleft", "kidneyright"], Mirroring(swaps=((1, 2),))),
        (["lung left1", "lung right1"], Mirroring(swaps=((1, 2),))),
        (["leftlung", "heart"], Mirroring((1, 2))),
        (["leftventricle", "rightventricle"], Mirroring((1, 2))),
        (["A_Carotid_L", "A_Carotid_R", "Eye_AL", "Eye_AR", "Eye_PL", "Eye_PR"], Mirroring((1, 2))),
        (["Lung_LUL", "Lung_LLL", "Lung_RUL", "Lung_RML", "Lung_RLL"], Mirroring((1, 2))),
        (["LUL", "LLL", "RUL", "RML", "RLL"], Mirroring((1, 2))),
        (["LUL", "LLL", "RUL", "RLL"], Mirroring(swaps=((1, 3), (2, 4)))),
        (["kidneyl", "kidneyr"], Mirroring((1, 2))),
        (["LVC", "RVC", "MYO"], Mirroring((1, 2))),
        (["RV", "MLV", "LVC"], Mirroring((1, 2))),
        (["left ventricular cavity", "right ventricular cavity"], Mirroring((1, 2))),
        (["leftauricle", "rightauricle"], Mirroring((1, 2))),
        (["left ventricle lateral wall", "right ventricle lateral wall"], Mirroring((1, 2))),
        (["latrium", "ratrium"], Mirroring((1, 2))),
        (["ventricles", "third ventricle"], Mirroring()),
        (["kidneyleft", "liver"], Mirroring((1, 2))),
        (["kidneyright", "liver"], Mirroring((1, 2))),
        (["lkidney", "rkidney", "liver"], Mirroring(swaps=((1, 2),))),
        (["hipright", "liver"], Mirroring((1, 2))),
        (["pelvicleft", "liver"], Mirroring((1, 2))),
        (["upright", "palate_cleft", "bright"], Mirroring()),
    ],
)
def test_names_tell_which_classes_change_sides(names: list[str], expected: Mirroring) -> None:
    assert mirroring_of(dict(enumerate(names, start=1))) == expected


@pytest.mark.parametrize(
    ("mirroring", "told"),
    [
        (Mirroring(), "mirrored along I, J, K; no pairs change sides"),
        (Mirroring(swaps=((1, 2),)), "mirrored along I, J, K; 1 pair changes sides"),
        (Mirroring((0, 2), ((1, 2), (3, 4))), "mirrored along I, K; 2 pairs change sides"),
        (Mirroring((1, 2)), "mirrored along J, K"),
        (Mirroring(()), "not mirrored"),
    ],
)
def test_mirroring_is_told(mirroring: Mirroring, told: str) -> None:
    assert str(mirroring) == told


KIDNEYS = {"kidney_left": (1, 3), "kidney_right": (2, 4), "tumour": (3, 4)}


@pytest.mark.parametrize(
    ("classes", "regions", "expected"),
    [
        ("abcd", KIDNEYS, Mirroring((1, 2))),  # which value becomes which is not said
        (["left", "right", "left tumour", "right tumour"], KIDNEYS, Mirroring(swaps=((1, 2), (3, 4)))),
        (["left", "right", "c", "d"], KIDNEYS, Mirroring((1, 2))),  # 3 and 4 would stay on the wrong side
        (["left", "right", "c"], {"left": (1,), "right": (2,), "both": (1, 2)}, Mirroring(swaps=((1, 2),))),
        ("ab", {"left": (1, 2)}, Mirroring((1, 2))),
        ("abc", {"whole": (1, 2, 3), "core": (2, 3)}, Mirroring()),
    ],
)
def test_regions_keep_their_sides(classes: list[str], regions: dict[str, tuple[int, ...]], expected: Mirroring) -> None:
    named = dict(enumerate(classes, start=1))
    assert mirroring_of(named, regions) == expected
    asked = Task("T", Path(), ("MRI",), named, (), regions=regions)
    assert asked.sides == expected
    assert replace(asked, mirroring=Mirroring()).sides == Mirroring()  # who describes it has the last word


def test_as_many_cores_as_there_are_give_the_same_bits() -> None:
    image, label = torch.randn(3, 2, *WINDOW), torch.randint(3, (3, *WINDOW))
    config = AugmentConfig(rotate_probability=1.0, scale_probability=1.0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(augment(image, label, config, generators(0, 1, 2)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])
    assert not torch.equal(found[0][0], image)
