"""Looking up through an affine map: the library's sampler and scipy, two independent ways, find the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from torch.nn.functional import affine_grid, grid_sample

from medvisionllama.data import affine_lookup
from medvisionllama.data.affine_lookup import MOST_VOXELS, fits, looked_up_affinely

SHAPES = [(9, 7, 11), (1, 6, 5), (6, 1, 1), (20, 3, 4)]


def drawn(
    shape: tuple[int, int, int], seed: int, spread: float = 0.4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(2, *shape, generator=g)
    label = torch.randint(200, shape, generator=g, dtype=torch.uint8)
    theta = torch.eye(3, 4) + spread * (2 * torch.rand(3, 4, generator=g) - 1)
    return image, label, theta


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.0, 0.4, 3.0])  # 3: most of what is looked up lies outside
@pytest.mark.parametrize("at_a_time", [1, 100, 32_768])
def test_it_is_the_librarys_sampler(
    shape: tuple[int, int, int], spread: float, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affine_lookup, "AT_A_TIME", at_a_time)
    for seed in range(5):
        image, label, theta = drawn(shape, seed, spread)
        found, half_way = _compared_with_the_librarys(image, label, theta)
        assert half_way.float().mean() < 0.05 or spread == 0.0
    if spread:
        assert not torch.allclose(found, image, atol=0.1)


@pytest.mark.parametrize("shape", [*SHAPES, (12, 8, 16)])
@pytest.mark.parametrize("zoom", [0.5, 0.85, 1.0, 1.2, 3.0])
def test_a_zoom_alone_is_the_librarys_sampler_too(shape: tuple[int, int, int], zoom: float) -> None:
    for seed in range(5):
        image, label, theta = drawn(shape, seed)
        theta[:, :3] = zoom * torch.diag(theta[:, :3].diag())
        _compared_with_the_librarys(image, label, theta)


def test_both_ways_of_a_zoom_agree() -> None:
    image, label, theta = drawn((12, 8, 16), 3)
    theta[:, :3] = torch.diag(theta[:, :3].diag())
    quick = looked_up_affinely(image, label, theta)
    general = affine_lookup._all_axes_at_once(image, label, *affine_lookup._in_voxels(theta, label.shape))
    assert torch.allclose(quick[0], general[0], atol=1e-5)
    assert torch.equal(quick[1], general[1])


def _compared_with_the_librarys(
    image: torch.Tensor, label: torch.Tensor, theta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What was found, and where either of two voxels is right: half way between them, to rounding."""
    grid = affine_grid(theta[None].double(), [1, 1, *label.shape], align_corners=False)
    linear = grid_sample(image[None].double(), grid, align_corners=False)[0]
    nearest = grid_sample(label[None, None].double(), grid, mode="nearest", align_corners=False)[0, 0]
    found, told = looked_up_affinely(image, label, theta)
    assert torch.allclose(found.double(), linear, atol=1e-4)
    assert told.dtype == label.dtype
    places = ((grid[0] + 1) * torch.tensor(label.shape[::-1]) - 1) / 2
    half_way = ((places - places.floor() - 0.5).abs() < 1e-4).any(-1)
    assert torch.equal(told[~half_way].double(), nearest[~half_way])
    return found, half_way


def test_it_is_scipys_between_voxels() -> None:
    image, label, theta = drawn((9, 7, 11), 0)
    found, _ = looked_up_affinely(image, label, theta)
    # Scipy counts voxels along I, J, K; theta scales K, J, I to -1..1.
    size = np.array([11, 7, 9])
    scale = np.diag(size / 2)
    turn = scale @ theta[:, :3].double().numpy() @ np.linalg.inv(scale)
    shift = scale @ theta[:, 3].double().numpy() + (size - 1) / 2 - turn @ ((size - 1) / 2)
    expected = [
        affine_transform(m, turn[::-1, ::-1], shift[::-1], order=1, mode="grid-constant")
        for m in image.double().numpy()
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-4)


def test_the_identity_changes_nothing_and_a_shift_by_a_voxel_shifts() -> None:
    image, label, _ = drawn((6, 8, 10), 1)
    still, told = looked_up_affinely(image, label, torch.eye(3, 4))
    assert torch.allclose(still, image, atol=1e-5)
    assert torch.equal(told, label)
    theta = torch.eye(3, 4)
    theta[0, 3] = 2 / 10  # one voxel further along K
    moved, told = looked_up_affinely(image, label, theta)
    assert torch.allclose(moved[..., :-1], image[..., 1:], atol=1e-4)
    assert torch.equal(told[..., :-1], label[..., 1:])
    assert torch.count_nonzero(moved[..., -1].abs() > 1e-4) == 0
    assert torch.count_nonzero(told[..., -1]) == 0


def test_what_is_given_is_left_as_it_was() -> None:
    image, label, theta = drawn((5, 6, 7), 2)
    kept = image.clone(), label.clone(), theta.clone()
    looked_up_affinely(image, label, theta)
    assert all(torch.equal(one, other) for one, other in zip((image, label, theta), kept, strict=True))


def test_places_are_counted_exactly_as_far_as_it_is_used() -> None:
    assert fits((253, 253, 253))
    assert not fits((254, 254, 254))
    assert torch.tensor(float(MOST_VOXELS - 1)) != torch.tensor(float(MOST_VOXELS))
    assert torch.tensor(float(MOST_VOXELS)) == torch.tensor(float(MOST_VOXELS + 1))  # here float32 begins to miscount
