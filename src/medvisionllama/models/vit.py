"""From voxels to tokens, and the transformer encoder over them (SPEC 2.1, 2.2, 2.4).

Axes: ``B`` batch, ``M`` modalities, ``I J K`` voxels, ``i j k`` the token grid, ``N = i*j*k`` tokens, ``E`` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from medvisionllama.models.attention import AttentionKind, Shape, build_attention

Norm = Literal["batch", "instance"]


class PatchEmbedding(nn.Module):
    """Cut a volume into patches that do not overlap and map each linearly to one token (Dosovitskiy et al. 2021).

    Args:
        in_channels: ``M``.
        patch_size: Voxels of a patch along I, J, K.
        width: ``E``.
    """

    def __init__(self, in_channels: int, patch_size: Shape, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        p, q, r = patch_size
        self.linear = nn.Linear(in_channels * p * q * r, width)

    def forward(self, image_BMIJK: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens on their grid ``(B,i,j,k,E)``, and no skip connections."""
        p, q, r = self.patch_size
        B, M, I, J, K = image_BMIJK.shape  # noqa: E741
        patches = image_BMIJK.view(B, M, I // p, p, J // q, q, K // r, r).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return self.linear(patches.flatten(4)), []


class ConvolutionalStem(nn.Module):
    """Tokens from a few strided convolutions, whose maps at every resolution are kept as skip connections.

    Ours, for users: skips and a convolutional stem were worth more than anything between encoder and decoder
    (docs/findings.md). The first stage already halves the resolution, since full-resolution convolutions cost a
    CPU three times the time for the same Dice.

    Args:
        in_channels: ``M``.
        widths: Channels of each stage; the last is ``E``.
        strides: Stride of each stage along I, J, K; their product is the voxels a token stands for.
        norm: What normalises after each convolution.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], strides: Sequence[Shape], norm: Norm) -> None:
        super().__init__()
        entering = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                convolution(before, after, norm, stride),
                # The last stage hands over to the transformer, which mixes further; the others feed skips.
                nn.Identity() if stage == len(widths) - 1 else convolution(after, after, norm),
            )
            for stage, (before, after, stride) in enumerate(zip(entering, widths, strides, strict=True))
        )

    def forward(self, image_BMIJK: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens on their grid ``(B,i,j,k,E)``, and the maps ``(B,channels,...)`` of all stages but the last."""
        maps = []
        x = image_BMIJK
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return x.movedim(1, -1), maps[:-1]


def convolution(before: int, after: int, norm: Norm, stride: Shape = (1, 1, 1)) -> nn.Sequential:
    """A 3x3x3 convolution, a normalisation and a leaky ReLU."""
    normalise = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d}[norm]
    return nn.Sequential(
        nn.Conv3d(before, after, 3, stride, padding=1, bias=False),
        normalise(after, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


class PositionEmbedding(nn.Module):
    """One learned vector a place on the token grid (init SD 0.02), stretched linearly when the grid differs.

    Args:
        grid: Tokens along I, J, K in training.
        width: ``E``.
    """

    def __init__(self, grid: Shape, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.vectors = nn.Parameter(torch.zeros(1, grid[0] * grid[1] * grid[2], width))
        nn.init.normal_(self.vectors, std=0.02)

    def forward(self, grid: Shape) -> Tensor:
        """``(1,N,E)`` for a grid of ``N`` tokens."""
        if grid == self.grid:
            return self.vectors
        on_grid = self.vectors.view(1, *self.grid, -1).movedim(-1, 1)
        return interpolate(on_grid, grid, mode="trilinear").movedim(1, -1).flatten(1, 3)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: attention and a GELU MLP, each on a residual branch.

    So there is a residual before and one after the attention, hybrid or not (v1 section 3.2).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float, attention: AttentionKind) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = build_attention(attention, width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens_BNE: Tensor, grid: Shape) -> Tensor:
        """``(B,N,E)`` on the grid ``(i,j,k)`` to ``(B,N,E)``."""
        tokens_BNE = tokens_BNE + self.attention(self.norm_attention(tokens_BNE), grid)
        tokens: Tensor = tokens_BNE + self.mlp(self.norm_mlp(tokens_BNE))
        return tokens


class Encoder(nn.ModuleList):
    """Transformer blocks one after another, and a last LayerNorm if wanted.

    Args:
        width: ``E``.
        depth: How many blocks.
        heads: Attention heads of a block.
        mlp_ratio: Width of a block's MLP over ``width``.
        dropout: In attention and MLP.
        final_norm: Whether a LayerNorm ends it.
        attention: Which attention the blocks have.
        recompute: Gradient checkpointing: keep a block's input alone, and compute the block again going backward.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        final_norm: bool,
        attention: AttentionKind = "self",
        recompute: bool = False,
    ) -> None:
        blocks: list[nn.Module] = [EncoderBlock(width, heads, mlp_ratio, dropout, attention) for _ in range(depth)]
        super().__init__([*blocks, *([nn.LayerNorm(width)] if final_norm else [])])
        self.recompute = recompute

    def forward(self, tokens_BNE: Tensor, grid: Shape) -> Tensor:
        """``(B,N,E)`` on the grid ``(i,j,k)`` to ``(B,N,E)``."""
        for part in self:
            if not isinstance(part, EncoderBlock):
                tokens_BNE = part(tokens_BNE)
            elif self.recompute and torch.is_grad_enabled():
                tokens_BNE = checkpoint(part, tokens_BNE, grid, use_reentrant=False)
            else:
                tokens_BNE = part(tokens_BNE, grid)
        return tokens_BNE
