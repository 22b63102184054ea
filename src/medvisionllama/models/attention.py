"""Attention among image tokens. Axes: ``B`` batch, ``N`` tokens, ``E`` width, ``H`` heads, ``D`` width of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

# Below this many tokens one plain product per head beats the fused kernel on a CPU, and its N x N weights are small.
FEW_TOKENS = 1024


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

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``."""
        B, N, E = tokens_BNE.shape
        q, k, v = self.qkv(tokens_BNE).view(B, N, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4).unbind()
        mixed_BHND = attend(q, k, v)
        tokens: Tensor = self.dropout(self.out(mixed_BHND.transpose(1, 2).reshape(B, N, E)))
        return tokens


def attend(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Softmax attention without a mask; the fused kernel where the plain one would be slower or need more memory."""
    if q_BHND.shape[-2] > FEW_TOKENS or q_BHND.is_cuda:
        return scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
    scores = (q_BHND * q_BHND.shape[-1] ** -0.5) @ k_BHND.transpose(-2, -1)
    return torch.softmax(scores, dim=-1) @ v_BHND
