"""Tile by tile is what all at once would be."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_way import plain_logits, plain_probabilities
from torch import Tensor, nn

from medvisionllama.data import way_back
from medvisionllama.data.way_back import FineSweep, choices_on, probabilities_on, tiles
from medvisionllama.geometry import Shape
from medvisionllama.sliding_window import Sweep

# Coarse sizes below, at and above the window; fine sizes stretched, equal, shrunk, and a single voxel.
SIZES: list[tuple[Shape, Shape]] = [
    ((19, 11, 14), (40, 17, 21)),
    ((19, 11, 14), (19, 11, 14)),
    ((8, 6, 10), (11, 12, 13)),
    ((3, 5, 30), (7, 4, 61)),
    ((30, 5, 3), (12, 9, 9)),
    ((1, 7, 1), (5, 20, 1)),
    ((17, 13, 21), (1, 30, 9)),
]
WINDOW: Shape = (8, 6, 10)


def network(channels: int, seed: int = 0, sureness: float = 4.0) -> Callable[[Tensor], Tensor]:
    """What a window sees decides, and each window sees another rim."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Conv3d(2, channels, 3, padding=1)
    return lambda windows: layer(windows).detach() * sureness


def image(shape: Shape, seed: int = 0) -> Tensor:
    return torch.randn((2, *shape), generator=torch.Generator().manual_seed(seed))


def fine(
    networks: Sequence[Callable[[Tensor], Tensor]],
    images: Sequence[Tensor],
    shape: Shape,
    axis: int,
    window: Shape = WINDOW,
    most_bytes: int | None = None,
    scratch: Path | None = None,
    numbers: Sequence[int] = (),
) -> list[FineSweep]:
    sweeps = [
        Sweep(net, img, window, axis, most_bytes=most_bytes, scratch=scratch)
        for net, img in zip(networks, images, strict=True)
    ]
    return [FineSweep(sweep, shape, numbers) for sweep in sweeps]


def gathered(members: Sequence[FineSweep], channels: int) -> np.ndarray:
    whole = np.full((channels, *members[0].shape), np.nan, np.float32)
    for (i, j, k), part in probabilities_on(members, channels):
        assert np.isnan(whole[:, i, j, k]).all(), "a voxel was given twice"
        whole[:, i, j, k] = part
    return whole


def differs_beyond_ties(chosen: np.ndarray, probability: np.ndarray) -> int:
    """Voxels whose chosen class is less likely than another by more than rounding."""
    own = np.take_along_axis(probability, chosen[None].astype(np.intp), 0)[0]
    return int((probability.max(0) - own > 1e-5).sum())


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few voxels, so that small volumes have seams in all directions."""
    monkeypatch.setattr(way_back, "SMALLEST_TILE_EDGE", 5)
    monkeypatch.setattr(way_back, "TILE_VALUES", 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("coarse", "shape"), SIZES)
def test_tile_by_tile_is_all_at_once(coarse: Shape, shape: Shape, axis: int) -> None:
    net, img = network(4), image(coarse)
    expected = plain_probabilities([plain_logits(net, img, WINDOW)], shape)
    np.testing.assert_allclose(gathered(fine([net], [img], shape, axis), 4), expected, atol=2e-6)
    chosen = choices_on(fine([net], [img], shape, axis), 4)
    assert differs_beyond_ties(chosen, expected) == 0
    assert (chosen != expected.argmax(0)).mean() < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 25)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(0, 2),
    st.integers(2, 12),
)
def test_any_sizes(coarse: Shape, shape: Shape, window: Shape, axis: int, channels: int) -> None:
    net, img = network(channels), image(coarse)
    expected = plain_probabilities([plain_logits(net, img, window)], shape)
    chosen = choices_on(fine([net], [img], shape, axis, window), channels)
    assert differs_beyond_ties(chosen, expected) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_members_on_other_grids_are_averaged_on_the_fine_one(axis: int) -> None:
    nets, shape = [network(3, seed) for seed in range(3)], (31, 26, 29)
    images = [image((19, 11, 14)), image((40, 23, 9), 1), image((31, 26, 29), 2)]
    expected = plain_probabilities([plain_logits(n, i, WINDOW) for n, i in zip(nets, images, strict=True)], shape)
    np.testing.assert_allclose(gathered(fine(nets, images, shape, axis), 3), expected, atol=2e-6)
    assert differs_beyond_ties(choices_on(fine(nets, images, shape, axis), 3), expected) == 0


def test_a_lone_sigmoid_target_is_cut_at_one_half() -> None:
    net, img, shape = network(1), image((19, 11, 14)), (40, 17, 21)
    expected = plain_probabilities([plain_logits(net, img, WINDOW)], shape, sigmoid=True)
    chosen = choices_on(fine([net], [img], shape, 0, numbers=[1]), 1)
    unsure = np.abs(expected[0] - 0.5) < 1e-5
    np.testing.assert_array_equal(chosen[~unsure], (expected[0] > 0.5)[~unsure])
    assert 0.2 < chosen.mean() < 0.8


def test_overlapping_targets_are_written_over_one_another_in_order() -> None:
    net, img, shape = network(3), image((19, 11, 14)), (40, 17, 21)
    probability = plain_probabilities([plain_logits(net, img, WINDOW)], shape, sigmoid=True)
    expected = np.zeros(shape, np.uint8)
    for channel, number in ((0, 2), (1, 1), (2, 5)):
        expected[probability[channel] > 0.5] = number
    chosen = choices_on(fine([net], [img], shape, 2, numbers=[2, 1, 5]), 3)
    unsure = (np.abs(probability - 0.5) < 1e-5).any(0)
    np.testing.assert_array_equal(chosen[~unsure], expected[~unsure])
    assert set(np.unique(chosen)) == {0, 1, 2, 5}


def test_a_band_on_disk_changes_no_bit(tmp_path: Path) -> None:
    net, img, shape = network(4), image((19, 11, 14)), (40, 17, 21)
    there = gathered(fine([net], [img], shape, 0, most_bytes=0, scratch=tmp_path / "new"), 4)
    np.testing.assert_array_equal(there, gathered(fine([net], [img], shape, 0), 4))
    assert list((tmp_path / "new").iterdir()) == [], "the file has no name"


def test_sure_networks_leave_most_classes_out_and_lose_nothing() -> None:
    """Large tiles of one class are decided without stretching; where classes meet, all that could win are looked at."""
    quarters = np.zeros((9, 24, 24, 24), np.float32)
    for number, (i, j, k) in enumerate(itertools.product((0, 12), repeat=3)):
        quarters[number + 1, i : i + 12, j : j + 12, k : k + 12] = 15
    table = torch.from_numpy(quarters)
    answer = lambda windows: windows  # noqa: E731
    expected = plain_probabilities([table], (50, 50, 50))
    sweep = Sweep(answer, table, (24, 24, 24), 0)
    chosen = choices_on([FineSweep(sweep, (50, 50, 50))], 9)
    np.testing.assert_array_equal(chosen, expected.argmax(0))
    assert set(np.unique(chosen)) == set(range(1, 9))


def test_an_even_field_of_ties_goes_to_the_first_class() -> None:
    sweep = Sweep(lambda windows: torch.zeros(len(windows), 7, *windows.shape[2:]), image((9, 9, 9)), WINDOW, 1)
    assert not choices_on([FineSweep(sweep, (20, 20, 20))], 7).any()


def test_tiles_fill_the_grid_once() -> None:
    seen = np.zeros((31, 26, 29), int)
    for place in tiles(fine([network(3)], [image((19, 11, 14))], (31, 26, 29), 2), 3):
        seen[place] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("fault", ["a plane late", "neighbours swapped", "a class left out"])
def test_faults_would_be_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: three plausible mistakes give other label maps than the plain way."""
    net, img, shape = network(4, sureness=1.0), image((19, 11, 14)), (40, 17, 21)
    expected = plain_probabilities([plain_logits(net, img, WINDOW)], shape)
    members = fine([net], [img], shape, 0)
    if fault == "a plane late":
        true_logits = members[0].sweep.logits
        monkeypatch.setattr(members[0].sweep, "logits", lambda place: true_logits(place).roll(1, 1))
    elif fault == "neighbours swapped":
        monkeypatch.setattr(torch, "lerp", lambda below, above, share: above + (below - above) * share)
    else:
        true_ends = torch.aminmax
        monkeypatch.setattr(
            torch,
            "aminmax",
            lambda values, dim: SimpleNamespace(
                min=true_ends(values, dim=dim).min, max=true_ends(values, dim=dim).max * torch.tensor([1, 1, 1, 0])
            ),
        )
    assert differs_beyond_ties(choices_on(members, 4), expected) > 50
