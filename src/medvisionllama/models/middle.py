"""What stands between encoder and decoder: mapper in, block, residual, mapper out (SPEC 2.5 to 2.8, 3).

Axes: ``B`` batch, ``N`` tokens, ``E`` encoder width, ``L`` language-model width, ``r`` LoRA rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from medvisionllama.errors import InputError
from medvisionllama.language.block import BlockConfig

Kind = Literal["none", "identity", "mlp", "large-mlp", "language", "trained"]
Lora = Literal["none", "mappers", "block", "both"]
Residual = Literal["none", "in", "out", "both"]


@dataclass(frozen=True)
class MiddleConfig:
    """Every form of the middle stage is a value of this.

    Attributes:
        kind: ``none`` (ViT-Baseline), ``identity`` (mappers and residual without the block), ``mlp`` (GELU and
            LayerNorm in the block's place, v1 Table 3), ``large-mlp`` (an MLP of about the block's size, v2 Table 4's
            ViT-MLP), ``language`` (the frozen block), ``trained`` (the same block's shape trained from scratch,
            matched in parameters).
        block: Which block of which language model, and how it starts; its adapters are a matter of ``lora``, ``rank``,
            ``alpha`` and ``lora_targets`` here. Kinds without a block take its width ``L``, and ``large-mlp`` its size.
        lora: Where low-rank adapters stand. Without ``mappers`` the mappers are trainable and free of biases.
        rank: ``r`` of all adapters.
        alpha: Scale of the adapters, applied as ``alpha / r``; None for ``r``.
        lora_targets: Which linear layers of the block get adapters; empty for its query and value projections.
        train_mapper_base: Whether the LoRA mappers' ``W`` is trained too instead of kept at its random start.
        residual: Around the block (``in``, L wide), around block and mappers (``out``, E wide), both or neither.
        norm_in: A LayerNorm in front of the block.
        mlp_width: Width of the hidden layer of ``large-mlp``; None for as many parameters as the block has.
    """

    kind: Kind = "language"
    block: BlockConfig = field(default_factory=BlockConfig)
    lora: Lora = "both"
    rank: int = 8
    alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    train_mapper_base: bool = False
    residual: Residual = "in"
    norm_in: bool = False
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))  # YAML knows no tuples
        for name, allowed in (("kind", Kind), ("lora", Lora), ("residual", Residual)):
            if getattr(self, name) not in get_args(allowed):
                got, expected = repr(getattr(self, name)), "one of " + ", ".join(get_args(allowed))
                raise InputError(f"unknown {name} of a middle stage", got=got, expected=expected)
        if self.norm_in and self.kind in ("none", "identity"):
            raise InputError(f"norm_in stands in front of a block, and a middle stage {self.kind!r} has none")
        if self.mlp_width is not None and (self.kind != "large-mlp" or self.mlp_width < 1):
            raise InputError(f"mlp_width {self.mlp_width} is no width of a large-mlp (kind {self.kind!r})")
        self._refuse_contradicting_adapters()

    def _refuse_contradicting_adapters(self) -> None:
        if self.block.lora_rank:
            raise InputError(
                "the adapters of a middle stage are set in one place",
                got=f"block.lora_rank {self.block.lora_rank} beside lora {self.lora!r} of rank {self.rank}",
                mend="Leave out block.lora_*, and set lora, rank, alpha and lora_targets of the middle stage.",
            )
        if self.block.trained and self.kind != "trained":
            raise InputError(f"a block that is trained is another kind of middle stage than {self.kind!r}: trained")
        if self.lora != "none" and self.rank < 1:
            raise InputError(f"a LoRA rank is at least 1, not {self.rank}")
        if self.lora == "none" and self.alpha is not None:
            raise InputError("alpha says nothing without adapters", got="lora 'none'", mend="Leave it out.")
        if self.lora_targets and (self.lora not in ("block", "both") or self.kind != "language"):
            raise InputError(
                "lora_targets says nothing without adapters in a frozen block",
                got=f"kind {self.kind!r}, lora {self.lora!r}",
                mend="Leave it out, or set lora to block or both.",
            )
        if self.train_mapper_base and self.lora not in ("mappers", "both"):
            raise InputError(
                "train_mapper_base says nothing without adapters in the mappers, which are trained then anyway",
                got=f"lora {self.lora!r}",
                mend="Leave it out.",
            )

    @property
    def scale(self) -> float:
        """``alpha / r``, what the adapters' product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def block_config(self) -> BlockConfig:
        """The block's own settings with this stage's adapters written in."""
        if self.kind == "trained":
            # From scratch unless another start is asked for: pre-trained weights would be the language stage unfrozen.
            init = "random" if self.block.init == "pretrained" else self.block.init
            return replace(self.block, trained=True, init=init, dtype="float32")
        if self.lora in ("block", "both"):
            return replace(self.block, lora_rank=self.rank, lora_alpha=self.alpha, lora_targets=self.lora_targets)
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


def small_mlp(width: int) -> nn.Module:
    """GELU and LayerNorm: what v1's "ViT + MLP" has between its mappers in the block's place (section 4.4.1)."""
    return nn.Sequential(nn.GELU(), nn.LayerNorm(width))


def large_mlp(width: int, parameters: int, hidden: int | None = None) -> nn.Module:
    """``L`` to a hidden layer to ``L`` with a GELU, with about so many parameters (v2 section 4.4.1, ViT-MLP).

    Args:
        width: ``L``.
        parameters: How many to come nearest to; never off by more than half of the ``2L + 1`` of one hidden feature.
        hidden: Width of the hidden layer; None to choose it by ``parameters``.
    """
    hidden = hidden or max(1, round((parameters - width) / (2 * width + 1)))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Middle(nn.Module):
    """Tokens through the mapper in, the block, the residual and the mapper out.

    Args:
        width: ``E``.
        block_width: ``L``.
        block: ``(B,N,L)`` to ``(B,N,L)``; None for the identity control, where the residual stream alone goes on.
        config: The values of the stage.
        recompute: Gradient checkpointing of the block, as in :class:`~medvisionllama.models.vit.Encoder`.
    """

    def __init__(
        self, width: int, block_width: int, block: nn.Module | None, config: MiddleConfig, recompute: bool = False
    ) -> None:
        super().__init__()
        self.residual = config.residual
        self.recompute = recompute
        self.mapper_in = mapper(width, block_width, config)
        self.norm_in = nn.LayerNorm(block_width) if config.norm_in else nn.Identity()
        self.block = block
        self.mapper_out = mapper(block_width, width, config)

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        """``(B,N,E)`` to ``(B,N,E)``."""
        entering_BNL = self.mapper_in(tokens_BNE)
        leaving_BNL = entering_BNL
        if self.block is not None:
            ready_BNL = self.norm_in(entering_BNL)
            if self.recompute and torch.is_grad_enabled():
                leaving_BNL = checkpoint(self.block, ready_BNL, use_reentrant=False)
            else:
                leaving_BNL = self.block(ready_BNL)
            if self.residual in ("in", "both"):
                leaving_BNL = leaving_BNL + entering_BNL
        mapped_BNE: Tensor = self.mapper_out(leaving_BNL)
        return mapped_BNE + tokens_BNE if self.residual in ("out", "both") else mapped_BNE
