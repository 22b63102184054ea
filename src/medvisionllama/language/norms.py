"""How large tokens are where they enter and leave a block: a mismatch here explains a block that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenNorms:
    """Mean Euclidean norm of one token."""

    entering: float
    """Before the block."""
    leaving: float
    """After it."""


class NormWatch:
    """Watches a block's tokens from outside, without changing them.

    The norms of the latest forward pass are kept on its device; only `read` waits for them, so that a
    training step is not held up when nobody asks.
    """

    def __init__(self, block: nn.Module) -> None:
        """Begin to watch.

        Args:
            block: Any module that takes tokens (B, N, L) and returns tokens.
        """
        self._norms: Tensor | None = None
        self._hook = block.register_forward_hook(self._see)

    @torch.no_grad()
    def _see(self, block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        tokens = (inputs[0], output)
        self._norms = torch.stack([one.detach().float().norm(dim=-1).mean() for one in tokens])

    def read(self) -> TokenNorms | None:
        """The norms of the latest forward pass, or None before the first."""
        if self._norms is None:
            return None
        entering, leaving = self._norms.tolist()
        return TokenNorms(entering, leaving)

    def close(self) -> None:
        """Stop watching."""
        self._hook.remove()
