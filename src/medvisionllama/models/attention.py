"""Attention among image tokens: self, efficient, channel, spatial, and efficient with channel as a hybrid (SPEC 2.4).

Axes: ``B`` batch, ``N`` tokens, ``E`` width, ``H`` heads, ``D`` width of a head, ``i j k`` the token grid.

Every module takes tokens ``(B,N,E)`` and their grid, and can tell from the tokens it was given which token looks at
which (:meth:`map`), so that maps are collected from outside and no network carries anything for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from medvisionllama.language.fused_or_plain import products_are_faster

Shape = tuple[int, int, int]
AttentionKind = Literal[
    "self", "efficient", "channel", "spatial", "hybrid-sequential", "hybrid-parallel", "hybrid-interleaved"
]


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens (Vaswani et al. 2017), with biases.

    Args:
        width: ``E``; a multiple of ``heads``.
        heads: ``H``.
        dropout: Applied to the projected output.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BNE: Tensor, grid: Shape | None = None) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``; the grid has no meaning here."""
        q, k, v = self._projected(tokens_BNE)
        return self._joined(attend(q, k, v))

    def map(self, tokens_BNE: Tensor, queries: slice = slice(None)) -> Tensor:
        """``(B,H,Q,N)``: how much each of the ``queries`` takes from every token; a row sums to 1."""
        q_BHND, k_BHND, _ = self._projected(tokens_BNE)
        return attention_map(q_BHND[:, :, queries], k_BHND, q_BHND.shape[-1] ** -0.5)

    def _projected(self, tokens_BNE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``(B,H,N,D)``."""
        B, N, E = tokens_BNE.shape
        q, k, v = self.qkv(tokens_BNE).view(B, N, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def _joined(self, mixed_BHND: Tensor) -> Tensor:
        B, H, N, D = mixed_BHND.shape
        tokens: Tensor = self.dropout(self.out(mixed_BHND.transpose(1, 2).reshape(B, N, H * D)))
        return tokens


def attend(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Softmax attention without a mask; the fused kernel where the plain one would be slower or need more memory."""
    if not products_are_faster(q_BHND):
        return scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
    return attend_by_products(q_BHND, k_BHND, v_BHND)


def attend_by_products(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """The same as two matrix products, with all scores between them."""
    return attention_map(q_BHND, k_BHND, q_BHND.shape[-1] ** -0.5) @ v_BHND


def attention_map(q_BHQD: Tensor, k_BHND: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """``(B,H,Q,N)`` softmax of the scaled scores, capped first where the layer caps them (Gemma 2)."""
    scores = (q_BHQD * scale) @ k_BHND.transpose(-2, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.softmax(scores, dim=-1)


class EfficientAttention(SelfAttention):
    """Attention whose cost grows linearly with the tokens (Shen et al., "Efficient Attention", WACV 2021, eq. 5).

    A head's queries pass a softmax over its ``D`` features, its keys one over the ``N`` tokens, and the product of
    keys and values, ``(D,D)``, comes first: ``softmax_D(Q) (softmax_N(K)^T V)``. No ``N x N`` weights are ever made.
    Same parameters as :class:`SelfAttention`.
    """

    def forward(self, tokens_BNE: Tensor, grid: Shape | None = None) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``; the grid has no meaning here."""
        q, k, v = self._projected(tokens_BNE)
        summary_BHDD = k.softmax(dim=-2).transpose(-2, -1) @ v
        return self._joined(q.softmax(dim=-1) @ summary_BHDD)

    def map(self, tokens_BNE: Tensor, queries: slice = slice(None)) -> Tensor:
        """``(B,H,Q,N)``: the weights that plain attention would need for the same result.

        The product is associative: ``softmax_D(Q) (softmax_N(K)^T V) = (softmax_D(Q) softmax_N(K)^T) V``, so the
        matrix in brackets is the map. Its rows sum to 1: over the tokens each column of ``softmax_N(K)`` sums to 1,
        and what then remains of a row is a softmax over the features.
        """
        q_BHND, k_BHND, _ = self._projected(tokens_BNE)
        return q_BHND[:, :, queries].softmax(dim=-1) @ k_BHND.softmax(dim=-2).transpose(-2, -1)


class ChannelAttention(nn.Module):
    """A gate for every feature, from the mean over all tokens: squeeze and excite (Hu et al., CVPR 2018).

    Tokens do not look at one another here; there is no map.

    Args:
        width: ``E``.
        reduction: ``E`` over the width of the gate's inner layer (16 in the paper).
    """

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.gate = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width), nn.Sigmoid())

    def forward(self, tokens_BNE: Tensor, grid: Shape | None = None) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``; the grid has no meaning here."""
        gated: Tensor = tokens_BNE * self.gate(tokens_BNE.mean(dim=1, keepdim=True))
        return gated


class SpatialAttention(nn.Module):
    """A gate for every place, from the features' mean and maximum around it (CBAM, Woo et al., ECCV 2018, sec. 3).

    v1 names "spatial attention" without a formula; CBAM, which it cites for its attention, has a module of that name.
    Tokens do not look at one another here; there is no map.

    Args:
        kernel: Edge of the convolution over the token grid (7 in the paper).
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv3d(2, 1, kernel, padding=kernel // 2), nn.Sigmoid())

    def forward(self, tokens_BNE: Tensor, grid: Shape) -> Tensor:
        """``(B,N,E)`` on the grid ``(i,j,k)``, ``N = i*j*k``, to ``(B,N,E)``."""
        pooled_B2N = torch.stack([tokens_BNE.mean(dim=-1), tokens_BNE.amax(dim=-1)], dim=1)
        gate_BN1 = self.gate(pooled_B2N.view(-1, 2, *grid)).flatten(1).unsqueeze(-1)
        gated: Tensor = tokens_BNE * gate_BN1
        return gated


class SequentialAttention(nn.ModuleList):
    """One attention after another, on what the one before has left."""

    def forward(self, tokens_BNE: Tensor, grid: Shape) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``."""
        for attention in self:
            tokens_BNE = attention(tokens_BNE, grid)
        return tokens_BNE


class ParallelAttention(nn.ModuleList):
    """Several attentions on the same tokens; their results are added."""

    def forward(self, tokens_BNE: Tensor, grid: Shape) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``."""
        return torch.stack([attention(tokens_BNE, grid) for attention in self]).sum(dim=0)


def build_attention(kind: AttentionKind, width: int, heads: int, dropout: float) -> nn.Module:
    """The attention called ``kind``: a module from ``(B,N,E)`` and the token grid to ``(B,N,E)``.

    The hybrids (v1 section 3.2 and appendix A) join efficient attention, for what is far, with channel attention, for
    which features matter. ``hybrid-sequential`` runs channel on what efficient leaves (v1 figure 2),
    ``hybrid-parallel`` adds the two, ``hybrid-interleaved`` alternates between them twice, each time with weights of
    its own: of A1's three strategies the interleaved one is the largest in parameters, which alternating from block
    to block could not be.
    """

    def efficient() -> nn.Module:
        return EfficientAttention(width, heads, dropout)

    def channel() -> nn.Module:
        return ChannelAttention(width)

    made: dict[AttentionKind, Callable[[], nn.Module]] = {
        "self": lambda: SelfAttention(width, heads, dropout),
        "efficient": efficient,
        "channel": channel,
        "spatial": SpatialAttention,
        "hybrid-sequential": lambda: SequentialAttention([efficient(), channel()]),
        "hybrid-parallel": lambda: ParallelAttention([efficient(), channel()]),
        "hybrid-interleaved": lambda: SequentialAttention([efficient(), channel(), efficient(), channel()]),
    }
    return made[kind]()
