"""What stands between encoder and decoder: mapper in, block, residual, mapper out (SPEC 2.5 to 2.8, 3).

Axes: ``B`` batch, ``N`` tokens, ``E`` encoder width, ``L`` language-model width, ``r`` LoRA rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from medvisionllama.language.block import BlockConfig

Kind = Literal["none", "identity", "language", "trained"]
Lora = Literal["none", "mappers", "block", "both"]
Residual = Literal["none", "in", "out", "both"]


@dataclass(frozen=True)
class MiddleConfig:
    """Every form of the middle stage is a value of this.

    Attributes:
        kind: ``none`` (ViT-Baseline), ``identity`` (mappers and residual without the block), ``language`` (the frozen
            block), ``trained`` (the same block's shape trained from scratch, matched in parameters).
        block: Which block of which language model, and how it starts.
        lora: Where low-rank adapters stand. Without ``mappers`` the mappers are trainable and free of biases.
        rank: ``r`` of all adapters.
        alpha: Scale of the adapters, applied as ``alpha / r``; None for ``r``.
        train_mapper_base: Whether the LoRA mappers' ``W`` is trained too instead of kept at its random start.
        residual: Around the block (``in``, L wide), around block and mappers (``out``, E wide), both or neither.
        norm_in: A LayerNorm in front of the block.
    """

    kind: Kind = "language"
    block: BlockConfig = field(default_factory=BlockConfig)
    lora: Lora = "both"
    rank: int = 8
    alpha: float | None = None
    train_mapper_base: bool = False
    residual: Residual = "in"
    norm_in: bool = False

    def __post_init__(self) -> None:
        if self.lora != "none" and self.rank < 1:
            raise ValueError(f"a LoRA rank is at least 1, not {self.rank}")

    @property
    def scale(self) -> float:
        """``alpha / r``, what the adapters' product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def block_config(self) -> BlockConfig:
        """The block's own settings with this stage's adapters written in."""
        if self.kind == "trained":
            # From scratch, unless another start was asked for; pre-trained it would be the language stage unfrozen.
            init = "random" if self.block.init == "pretrained" else self.block.init
            return replace(self.block, trained=True, init=init, dtype="float32")
        if self.lora in ("block", "both"):
            return replace(self.block, lora_rank=self.rank, lora_alpha=self.alpha)
        return self.block


class LoraLinear(nn.Module):
    """``W x + b + (alpha/r) B A x``: ``W`` kept at its seeded random start, ``b``, ``A`` and ``B`` trained.

    ``B`` starts at zero. Hu et al. 2022, as the papers' "LoRA-based dimension mappers" use it.

    Args:
        before: Features entering.
        after: Features leaving.
        rank: ``r``.
        scale: ``alpha / r``.
        train_base: Train ``W`` as well.
    """

    def __init__(self, before: int, after: int, rank: int, scale: float, train_base: bool) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(after, before), requires_grad=train_base)
        self.bias = nn.Parameter(torch.zeros(after))
        self.lora_a = nn.Parameter(torch.empty(rank, before))
        self.lora_b = nn.Parameter(torch.zeros(after, rank))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """``(...,before)`` to ``(...,after)``."""
        return linear(x, self.weight, self.bias) + self.scale * linear(linear(x, self.lora_a), self.lora_b)


def mapper(before: int, after: int, config: MiddleConfig) -> nn.Module:
    """A trainable linear map without bias (v1, v2's "Linear"), or its low-rank form (v2)."""
    if config.lora in ("mappers", "both"):
        return LoraLinear(before, after, config.rank, config.scale, config.train_mapper_base)
    return nn.Linear(before, after, bias=False)


class Middle(nn.Module):
    """Tokens through the mapper in, the block, the residual and the mapper out.

    Args:
        width: ``E``.
        block_width: ``L``.
        block: ``(B,N,L)`` to ``(B,N,L)``; None for the identity control, where the residual stream alone goes on.
        config: The values of the stage.
    """

    def __init__(self, width: int, block_width: int, block: nn.Module | None, config: MiddleConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.mapper_in = mapper(width, block_width, config)
        self.norm_in = nn.LayerNorm(block_width) if config.norm_in else nn.Identity()
        self.block = block
        self.mapper_out = mapper(block_width, width, config)

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``."""
        entering_BNL = self.mapper_in(tokens_BNE)
        leaving_BNL = entering_BNL
        if self.block is not None:
            leaving_BNL = self.block(self.norm_in(entering_BNL))
            if self.residual in ("in", "both"):
                leaving_BNL = leaving_BNL + entering_BNL
        mapped_BNE: Tensor = self.mapper_out(leaving_BNL)
        return mapped_BNE + tokens_BNE if self.residual in ("out", "both") else mapped_BNE
