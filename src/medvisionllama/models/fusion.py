"""Multi-scale fusion: every token hears from neighbourhoods of several sizes (v1 section 3.2; SPEC 2.3).

Axes: ``B`` batch, ``N`` tokens, ``E`` width, ``i j k`` the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from medvisionllama.models.attention import Shape


class MultiScaleFusion(nn.Module):
    """Parallel convolutions over the token grid, fused by one linear map, on a residual branch.

    The convolutions are depthwise, one kernel a feature: with full ones the three scales alone would have 2 million
    parameters at ``E = 64``, and v1's whole network without a block has 0.84 million (its Table 3).

    Args:
        width: ``E``.
        kernels: Odd edges of the kernels, 3, 5 and 7 in v1.
    """

    def __init__(self, width: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Conv3d(width, width, kernel, padding=kernel // 2, groups=width) for kernel in kernels
        )
        self.fuse = nn.Linear(len(kernels) * width, width)

    def forward(self, tokens_BNE: Tensor, grid: Shape) -> Tensor:
        """``(B,N,E)`` on the grid ``(i,j,k)``, ``N = i*j*k``, to ``(B,N,E)``; outside the grid lie zeros."""
        B, _, E = tokens_BNE.shape
        # Never in bfloat16: torch 2.13 on a CPU then gives the 7-edged kernel a wrong gradient, at times a NaN, where
        # the features of a token lie side by side as they do here.
        with _without_autocast(tokens_BNE.device):
            on_grid_BEijk = tokens_BNE.float().transpose(1, 2).reshape(B, E, *grid)
            scales_BNF = torch.cat([scale(on_grid_BEijk) for scale in self.scales], dim=1).flatten(2).transpose(1, 2)
        tokens: Tensor = tokens_BNE + self.fuse(scales_BNF)
        return tokens


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Float32 arithmetic; the meta device, where costs are counted, knows no other."""
    return torch.autocast(device.type, enabled=False) if is_autocast_available(device.type) else nullcontext()
