"""The mask lies in exactly the input's grid, and left is still left."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from medvisionllama.data.mirroring import Mirroring
from medvisionllama.data.phantom import PhantomSettings, phantom_case
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume, to_ras
from medvisionllama.predict import Member, Room, Segmenter, _answers_at_once, mirroring_allowed
from medvisionllama.sliding_window import mirrored

PLAN = Plan(
    protocol="native",
    task="phantom",
    window=(16, 24, 16),
    spacing_mm=(2.0, 2.0, 2.0),
    intensity=(IntensityRule("zscore"),),
    classes={3: "left", 7: "bright"},
    training_cases=1,
    median_shape=(16, 24, 16),
)


class LeftAndBright(nn.Module):
    """A stub of known behaviour: bright voxels are class 2; of the others, those of the window's left third class 1."""

    def forward(self, image_BMIJK: Tensor) -> Tensor:
        bright = image_BMIJK[:, 0] > 1.0
        left = torch.zeros_like(bright)
        left[:, : bright.shape[1] // 3] = True
        label = torch.where(bright, 2, torch.where(left, 1, 0))
        return 20.0 * nn.functional.one_hot(label, 3).movedim(-1, 1).float()


def segmenter(plan: Plan = PLAN) -> Segmenter:
    return Segmenter([Member(LeftAndBright(), plan)], torch.device("cpu"))


def asymmetric_image() -> Volume:
    """In RAS order, 2 mm voxels, just one window large: dim, with a bright block at right, front and top."""
    array = np.random.default_rng(0).normal(0, 0.01, PLAN.window).astype(np.float32)
    array[12:15, 17:22, 9:12] = 50.0
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-40.0, 10.0, 5.0)
    return Volume(array, affine)


def rearranged(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same image stored in other axis order and directions: written independently of the package's own way."""
    stored = np.flip(volume.array.transpose(order), [a for a in range(3) if flips[a]])
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, old in enumerate(order):
        to_old[old, new] = -1 if flips[new] else 1
        to_old[old, 3] = volume.array.shape[old] - 1 if flips[new] else 0
    return Volume(np.ascontiguousarray(stored), volume.affine @ to_old)


def orientations() -> Iterator[tuple[tuple[int, ...], tuple[bool, ...]]]:
    yield from product(permutations(range(3)), product([False, True], repeat=3))


def world_points(volume: Volume, label: int) -> np.ndarray:
    voxels = np.argwhere(volume.array == label)
    points = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return points[np.lexsort(points.T.round(6))]


def oblique() -> np.ndarray:
    """A turn of 12 degrees about the head's axis and 9 about the ear-to-ear axis."""
    a, b = np.radians(12), np.radians(9)
    about_s = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turned = np.eye(4)
    turned[:3, :3] = about_s @ about_r
    return turned


@pytest.mark.parametrize("turn", [np.eye(4), oblique()], ids=["straight", "oblique"])
def test_every_orientation_gives_the_same_mask_in_its_own_grid(turn: np.ndarray) -> None:
    plain = asymmetric_image()
    image = Volume(plain.array, turn @ plain.affine)
    expected = segmenter().segment(image)
    seen = 0
    for order, flips in orientations():
        stored = rearranged(image, order, flips)
        mask = segmenter().segment(stored)
        assert mask.array.shape == stored.array.shape
        assert np.array_equal(mask.affine, stored.affine)
        assert mask.array.dtype == np.uint8
        for label in (3, 7):
            np.testing.assert_allclose(world_points(mask, label), world_points(expected, label), atol=1e-9)
        seen += 1
    assert seen == 48


@pytest.mark.parametrize(("order", "flips"), orientations())
def test_left_is_still_left(order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    """Class `left` lies at smaller x (RAS) than the bright block, and the block is where it was put."""
    image = asymmetric_image()
    mask = segmenter().segment(rearranged(image, order, flips))
    left, bright = world_points(mask, 3), world_points(mask, 7)
    assert left[:, 0].max() < bright[:, 0].min()
    np.testing.assert_allclose(bright.mean(0), image.affine[:3, :3] @ (13, 19, 10) + image.affine[:3, 3], atol=1e-9)
    assert len(bright) == 3 * 5 * 3


def test_a_flip_that_goes_unnoticed_would_be_seen() -> None:
    """Negative control: an image whose affine lies about left and right puts the class on the other side."""
    image = asymmetric_image()
    lying = Volume(np.flip(image.array, 0).copy(), image.affine)
    honest, deceived = (world_points(segmenter().segment(v), 7).mean(0) for v in (image, lying))
    assert abs(honest[0] - deceived[0]) > 10


def test_other_spacings_come_back_to_the_same_place() -> None:
    """Bright tissue found at the plan's spacing returns to where it is in an image of finer voxels."""
    coarse = asymmetric_image()
    fine = Volume(np.kron(coarse.array, np.ones((2, 2, 2), np.float32)), coarse.grid.with_shape((32, 48, 32)).affine)
    mask = segmenter().segment(fine)
    assert mask.array.shape == (32, 48, 32)
    found, true = world_points(mask, 7), world_points(Volume((fine.array > 25).astype(int), fine.affine), 1)
    np.testing.assert_allclose(found.mean(0), true.mean(0), atol=0.5)
    assert abs(len(found) - len(true)) < 0.25 * len(true)


def test_generated_anatomy_in_any_orientation_keeps_its_grid() -> None:
    settings = PhantomSettings(spacing_mm=(2.0, 3.0))
    for index in range(4):
        image, _ = phantom_case(index, settings=settings)
        mask = segmenter().segment(image)
        assert mask.array.shape == image.array.shape
        assert np.array_equal(mask.affine, image.affine)
        left = to_ras(Volume((mask.array == 3).astype(np.uint8), mask.affine)).array
        assert left[: left.shape[0] // 4].mean() > left[-left.shape[0] // 4 :].mean()


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    class Always(nn.Module):
        def __init__(self, channel: int, sureness: float) -> None:
            super().__init__()
            self.logits = torch.zeros(3)
            self.logits[channel] = sureness

        def forward(self, image_BMIJK: Tensor) -> Tensor:
            return self.logits.view(1, 3, 1, 1, 1).expand(len(image_BMIJK), 3, *image_BMIJK.shape[2:])

    unsure, sure = Always(1, 1.0), Always(2, 5.0)
    both = Segmenter([Member(unsure, PLAN), Member(sure, PLAN)], torch.device("cpu"))
    image = asymmetric_image()
    expected = (torch.softmax(unsure.logits, 0) + torch.softmax(sure.logits, 0)) / 2
    kept = np.zeros((3, *image.array.shape), np.float32)

    def keep(place: tuple[slice, slice, slice], part: np.ndarray) -> None:
        kept[(slice(None), *place)] = part

    label_map = both.segment(image, keep=keep)
    np.testing.assert_allclose(kept, np.broadcast_to(expected.numpy()[:, None, None, None], kept.shape), rtol=1e-6)
    np.testing.assert_array_equal(label_map.array, both.segment(image).array)
    assert set(np.unique(both.segment(image).array)) == {7}


def test_the_paper_protocol_decides_one_foreground() -> None:
    class Right(nn.Module):
        def forward(self, image_BMIJK: Tensor) -> Tensor:
            logits = torch.full_like(image_BMIJK, -5.0)
            logits[:, :, image_BMIJK.shape[2] // 2 :] = 5.0
            return logits

    plan = replace(PLAN, protocol="paper", window=(8, 8, 8), spacing_mm=None)
    image = asymmetric_image()
    mask = Segmenter([Member(Right(), plan)], torch.device("cpu")).segment(image)
    assert mask.array.shape == image.array.shape
    assert set(np.unique(mask.array)) == {0, 1}
    assert mask.array[8:].all()
    assert not mask.array[:8].any()


def test_the_largest_component_alone_is_kept_of_chosen_classes() -> None:
    image = asymmetric_image()
    image.array[7:9, 3:5, 2:4] = 50.0  # a second bright block, of 8 voxels beside the first one's 45
    raw = segmenter().segment(image)
    assert (raw.array == 7).sum() == 53
    cleaned = Segmenter([Member(LeftAndBright(), PLAN)], torch.device("cpu"), clean=frozenset({7})).segment(image)
    expected = raw.array.copy()
    expected[7:9, 3:5, 2:4] = 0
    np.testing.assert_array_equal(cleaned.array, expected)
    left = Segmenter([Member(LeftAndBright(), PLAN)], torch.device("cpu"), clean=frozenset({3})).segment(image)
    np.testing.assert_array_equal(left.array, raw.array)


def test_little_memory_changes_no_voxel(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = Volume(generator.normal(0, 1, (40, 70, 30)).astype(np.float32), np.diag([-1.5, 1.3, 2.4, 1.0]))
    little = Segmenter([Member(LeftAndBright(), PLAN)], torch.device("cpu"), room=Room(1e-6, tmp_path))
    np.testing.assert_array_equal(little.segment(image).array, segmenter().segment(image).array)


class Lost(nn.Module):
    """What a network with damaged weights answers."""

    def forward(self, image_BMIJK: Tensor) -> Tensor:
        return torch.full((len(image_BMIJK), 3, *image_BMIJK.shape[2:]), torch.nan)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_an_answer_that_is_no_number_is_no_label_map(softmax: bool, kept: bool) -> None:
    regions = {"all": (3, 7), "left": (3,), "bright": (7,)}
    plan = PLAN if softmax else replace(PLAN, regions=regions, region_values=(3, 3, 7))
    keep = (lambda place, probability: None) if kept else None
    with pytest.raises(InputError, match=r"does not answer with numbers \(NaN\) for the image"):
        Segmenter([Member(Lost(), plan)], torch.device("cpu")).segment(asymmetric_image(), keep=keep)


def test_which_channel_a_channel_is_in_a_mirror() -> None:
    sided = replace(PLAN, classes={2: "left", 3: "right", 9: "bladder"}, mirroring=Mirroring(swaps=((2, 3),)))
    assert mirroring_allowed(sided) == ((0, 1, 2), [0, 2, 1, 3])
    assert mirroring_allowed(replace(sided, mirroring=Mirroring(axes=(1, 2)))) == ((1, 2), [0, 1, 2, 3])
    assert mirroring_allowed(replace(sided, protocol="paper")) == ((0, 1, 2), [0])
    both = replace(sided, regions={"all": (2, 3, 9), "left": (2,), "right": (3,)}, region_values=(9, 2, 3))
    assert mirroring_allowed(both) == ((0, 1, 2), [0, 2, 1])
    one = replace(sided, regions={"all": (2, 3, 9), "left": (2,)}, region_values=(9, 2))
    assert mirroring_allowed(one) == ((1, 2), [0, 1]), "the left one's mirror image has no channel"


@pytest.mark.parametrize("softmax", [True, False])
def test_mirroring_holds_no_more_answers_at_once_than_are_counted(softmax: bool) -> None:
    values = tuple(PLAN.classes)
    plan = PLAN if softmax else replace(PLAN, regions={"all": values}, region_values=values[:1])
    answer = torch.randn(2, 3, 16, 16, 16)
    ask = mirrored(lambda windows: answer.clone(), (0, 1, 2), sigmoid=not plan.softmax)
    windows = torch.zeros(2, 1, 1, 1, 1)
    ask(windows)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        ask(windows)
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    counted = _answers_at_once(Member(LeftAndBright(), plan, mirror=(0, 1, 2)))
    assert counted == (4 if softmax else 8)
    assert most <= 1.01 * counted * answer.numel() * 4
    assert most > 0.5 * counted * answer.numel() * 4, "nor far fewer"
    assert _answers_at_once(Member(LeftAndBright(), plan)) == 1


def test_mirrored_members_average_over_mirrors() -> None:
    """Class `left` of the stub is the left third of whatever it is shown: mirrored along I it is unsure of it."""
    image = asymmetric_image()
    plain, unsided = replace(PLAN, mirroring=Mirroring(axes=(1, 2))), replace(PLAN, mirroring=Mirroring())
    mask, mixed = (
        Segmenter([Member(LeftAndBright(), plan, mirror=(0, 1, 2))], torch.device("cpu")).segment(image)
        for plan in (plain, unsided)
    )
    np.testing.assert_array_equal(mask.array, segmenter().segment(image).array)
    assert (mixed.array == 3).sum() != (mask.array == 3).sum()
