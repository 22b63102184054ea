"""From tokens back to voxels: logits ``(B,C,I,J,K)`` (SPEC 2.9, 2.10)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from medvisionllama.models.attention import Shape
from medvisionllama.models.vit import Norm, convolution

# Of the up-sampling decoder: below this many channels a full-resolution convolution has too little to work with.
FEWEST_CHANNELS = 8


class LinearDecoder(nn.Module):
    """One linear layer from a token to the logits of its patch, as the published code un-patchifies.

    Args:
        width: ``E``.
        patch_size: Voxels of a patch along I, J, K.
        out_channels: ``C``.
    """

    def __init__(self, width: int, patch_size: Shape, out_channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.out_channels = out_channels
        p, q, r = patch_size
        self.linear = nn.Linear(width, out_channels * p * q * r)

    def forward(self, tokens_BijkE: Tensor, skips: list[Tensor]) -> Tensor:
        """``(B,i,j,k,E)`` to ``(B,C,I,J,K)``; there are no skips to use."""
        B, i, j, k, _ = tokens_BijkE.shape
        p, q, r = self.patch_size
        patches = self.linear(tokens_BijkE).view(B, i, j, k, self.out_channels, p, q, r)
        logits: Tensor = patches.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(B, self.out_channels, i * p, j * q, k * r)
        return logits


class UpConvDecoder(nn.Module):
    """Up-sampling and a convolution, stage by stage until every voxel is reached (v1 section 3.2).

    Each stage up-samples linearly by one prime factor of the patch size along each axis that still has one, and halves
    the channels; v1 leaves factors, widths and norm open.

    Args:
        width: ``E``.
        patch_size: Voxels of a patch along I, J, K.
        out_channels: ``C``.
        norm: What normalises after each convolution.
    """

    def __init__(self, width: int, patch_size: Shape, out_channels: int, norm: Norm) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for i, j, k in zip_longest(*(prime_factors(size) for size in patch_size), fillvalue=1):
            fewer = max(width // 2, min(width, FEWEST_CHANNELS))
            up = nn.Upsample(scale_factor=(i, j, k), mode="trilinear")
            stages.append(nn.Sequential(up, convolution(width, fewer, norm)))
            width = fewer
        self.stages = nn.Sequential(*stages)
        self.logits = nn.Conv3d(width, out_channels, 1)

    def forward(self, tokens_BijkE: Tensor, skips: list[Tensor]) -> Tensor:
        """``(B,i,j,k,E)`` to ``(B,C,I,J,K)``; there are no skips to use."""
        logits: Tensor = self.logits(self.stages(tokens_BijkE.movedim(-1, 1)))
        return logits


def prime_factors(number: int) -> list[int]:
    """From small to large: 12 gives 2, 2, 3, and 1 gives none."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


class UShapeDecoder(nn.Module):
    """Up again stage by stage, joined at each resolution by the stem's map of that resolution.

    Args:
        widths: Channels of the stem's stages, finest first; the last is ``E``.
        strides: The stem's strides, in the same order.
        out_channels: ``C``.
        norm: What normalises after each convolution.
        deep_supervision: Whether each joined map gives logits of its own while training, by a 1x1x1 convolution.
    """

    def __init__(
        self,
        widths: Sequence[int],
        strides: Sequence[Shape],
        out_channels: int,
        norm: Norm,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(deep, fine, stride, stride)
            for deep, fine, stride in zip(widths[:0:-1], widths[-2::-1], strides[:0:-1], strict=True)
        )
        self.joins = nn.ModuleList(convolution(2 * fine, fine, norm) for fine in widths[-2::-1])
        self.logits = nn.ConvTranspose3d(widths[0], out_channels, strides[0], strides[0])
        # Last, so that the parts above start alike with and without.
        self.coarse_logits = nn.ModuleList(
            nn.Conv3d(fine, out_channels, 1) for fine in widths[-2::-1] if deep_supervision
        )

    def forward(self, tokens_BijkE: Tensor, skips: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """``(B,i,j,k,E)`` and the skips, finest first, to ``(B,C,I,J,K)``.

        While training with deep supervision a tuple: these logits, then those of the joined maps, ever coarser.
        """
        x = tokens_BijkE.movedim(-1, 1)
        joined = []
        for up, join, skip in zip(self.ups, self.joins, reversed(skips), strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
            joined.append(x)
        logits: Tensor = self.logits(x)
        if not (self.training and self.coarse_logits):
            return logits
        coarse = [head(x) for head, x in zip(self.coarse_logits, joined, strict=True)]
        return (logits, *reversed(coarse))
