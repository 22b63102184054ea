"""Multi-scale fusion and the up-sampling decoder: by hand, and by what they must not depend on."""

import copy
import math

import pytest
import torch
from torch import nn

from medvisionllama.models.decoder import UpConvDecoder, prime_factors
from medvisionllama.models.fusion import MultiScaleFusion


def test_fusion_agrees_with_plain_loops() -> None:
    torch.manual_seed(0)
    width, grid = 3, (2, 4, 3)
    fusion = MultiScaleFusion(width, (1, 3))
    tokens = torch.randn(1, math.prod(grid), width)
    on_grid = tokens.view(*grid, width).tolist()
    rows = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            for k in range(grid[2]):
                scales = []
                for scale in fusion.scales:
                    assert isinstance(scale, nn.Conv3d)
                    assert scale.bias is not None
                    reach = scale.kernel_size[0] // 2
                    for e in range(width):
                        total = scale.bias[e].item()
                        for a in range(-reach, reach + 1):
                            for b in range(-reach, reach + 1):
                                for c in range(-reach, reach + 1):
                                    there = (i + a, j + b, k + c)
                                    if all(0 <= x < size for x, size in zip(there, grid, strict=True)):
                                        weight = scale.weight[e, 0, a + reach, b + reach, c + reach]
                                        total += weight.item() * on_grid[there[0]][there[1]][there[2]][e]
                        scales.append(total)
                rows.append(scales)
    expected = tokens + torch.tensor(rows) @ fusion.fuse.weight.T + fusion.fuse.bias
    torch.testing.assert_close(fusion(tokens, grid), expected)


def test_fusion_reaches_as_far_as_its_largest_kernel_and_no_farther() -> None:
    fusion = MultiScaleFusion(4, (3, 5, 7))
    tokens = torch.zeros(1, 11, 4)
    moved = tokens.clone()
    moved[0, 5] = 1
    changed = (fusion(moved, (11, 1, 1)) - fusion(tokens, (11, 1, 1))).abs().amax(-1)[0] > 0
    assert changed.tolist() == [False] * 2 + [True] * 7 + [False] * 2


def test_gradients_in_bfloat16_are_those_of_float64() -> None:
    """A library's kernel for depthwise convolutions got them wrong by more than their size."""
    torch.manual_seed(0)
    fusion, tokens = MultiScaleFusion(64, (3, 5, 7)), torch.randn(4, 175, 64)
    wanted = torch.randn(4, 175, 64)
    with torch.autocast("cpu", torch.bfloat16):
        (fusion(tokens, (5, 7, 5)).float() * wanted).sum().backward()
    found = {name: p.grad.double() for name, p in fusion.named_parameters() if p.grad is not None}
    exact = copy.deepcopy(fusion).double()
    exact.zero_grad()
    exact_tokens = tokens.double()
    B, _, E = tokens.shape
    on_grid = exact_tokens.transpose(1, 2).reshape(B, E, 5, 7, 5)
    scales = torch.cat([scale(on_grid) for scale in exact.scales], dim=1).flatten(2).transpose(1, 2)
    ((exact_tokens + exact.fuse(scales)) * wanted.double()).sum().backward()
    for name, parameter in exact.named_parameters():
        assert parameter.grad is not None
        assert (found[name] - parameter.grad).abs().max() < 0.02 * parameter.grad.abs().max(), name


def test_fusion_is_small_beside_the_network_it_stands_in() -> None:
    """v1 Table 3: the whole network without a block has 0.84 M parameters."""
    count = sum(p.numel() for p in MultiScaleFusion(64, (3, 5, 7)).parameters())
    assert count == 64 * (27 + 125 + 343) + 3 * 64 + 3 * 64 * 64 + 64 < 50_000


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8, 4), (6, 5, 1), (1, 1, 1)])
def test_upconv_reaches_every_voxel(patch: tuple[int, int, int]) -> None:
    decoder = UpConvDecoder(32, patch, 3, "instance").eval()
    logits = decoder(torch.randn(1, 2, 3, 2, 32), [])
    assert logits.shape == (1, 3, 2 * patch[0], 3 * patch[1], 2 * patch[2])


def test_prime_factors() -> None:
    assert {n: prime_factors(n) for n in (1, 2, 8, 12, 35)} == {1: [], 2: [2], 8: [2, 2, 2], 12: [2, 2, 3], 35: [5, 7]}
