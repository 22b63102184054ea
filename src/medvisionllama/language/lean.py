"""Attention and norms computed with less work than `transformers` spends on them.

Rotary positions are left out here instead of being set to zero, where they turn everything by angle 0; and a norm with
frozen weights keeps only one tensor of tokens and one number for each, instead of float32 copies of all. The values
are the same: tests compare both with the layer as it comes. (The rest of a Llama layer is spared in `attention`,
`attention_gradient`, `frozen_linear` and `gated`.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medvisionllama.language.attention import bidirectional_attention, is_exported
from medvisionllama.language.autocast import without_autocast
from medvisionllama.language.frozen_linear import project
from medvisionllama.language.pieces import rows_at_once, slices

# A factor nearer to 0 than this might make a normalised number too small for its format.
_SMALLEST_FACTOR = 1e-6


class PositionFreeAttention(nn.Module):
    """A Llama-like attention module that does without positions where none are handed in.

    With `position_embeddings` it works as the module it was made from.
    """

    def __init__(self, attention: nn.Module) -> None:
        """Take over a module's parts and numbers.

        Args:
            attention: `LlamaAttention` or a relative of it; not to be used any more.
        """
        super().__init__()
        self.__dict__.update(attention.__dict__)
        self.original = type(attention)

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any = None, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `transformers`' layers ask it to: tokens (B, N, L) to tokens, and None for the weights."""
        own: Any = self
        if position_embeddings is not None:
            as_it_comes: tuple[Tensor, Tensor | None] = self.original.forward(
                own, hidden_states, position_embeddings=position_embeddings, **others
            )
            return as_it_comes
        B, N, _ = hidden_states.shape
        query, key, value = (
            projected.view(B, N, -1, own.head_dim).transpose(1, 2)
            for projected in project(hidden_states, own.q_proj, own.k_proj, own.v_proj)
        )
        softcap = getattr(own, "attn_logit_softcapping", None)
        attended, _ = bidirectional_attention(
            own, query, key, value, others.get("attention_mask"), own.scaling, softcap=softcap
        )
        return own.o_proj(attended.reshape(B, N, -1)), None


class FrozenRMSNorm(nn.Module):
    """`LlamaRMSNorm` (or Gemma 2's), made for a weight that does not learn; Zhang and Sennrich, NeurIPS 2019, eq. 4.

    The forward pass rounds where the original does, so that it gives the same bits. Where the weight does learn,
    the plain formula is used.
    """

    def __init__(self, norm: nn.Module, *, keeps_result: bool = False) -> None:
        """Take over a norm of `transformers`, with its weight.

        Args:
            norm: A norm with `weight`, and with its epsilon as `variance_epsilon` or `eps` (Gemma 2, whose
                factor is 1 + weight in float32).
            keeps_result: Whether the backward pass reads the result instead of the input. Where nothing else keeps
                the input, as behind the last layer, that spares a tensor of tokens; the result must then
                not be written over before, as autograd would tell. Only on a CPU: to ask whether the weight allows
                it would make a GPU wait.
        """
        super().__init__()
        self.keeps_result = keeps_result
        self.weight: nn.Parameter = norm.weight  # type: ignore[assignment]
        self.is_gemma = not hasattr(norm, "variance_epsilon")
        self.eps = float(norm.eps if self.is_gemma else norm.variance_epsilon)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise the last axis of tokens (B, N, L)."""
        if is_exported() or self.weight.requires_grad:
            x = tokens.float()
            unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
            return _scaled(unit, self.weight, tokens.dtype, self.is_gemma)
        keeps_result = self.keeps_result and self._may_keep_result(tokens)
        # As rows, so that the result is autograd's own and no view of it: it then notices if it is written over.
        rows = tokens.reshape(-1, tokens.shape[-1])
        normalised: Tensor = _RMSNorm.apply(rows, self.weight, self.eps, self.is_gemma, keeps_result)  # type: ignore[no-untyped-call]
        return normalised.view(tokens.shape)

    def _may_keep_result(self, tokens: Tensor) -> bool:
        """Whether anything is kept, and the result tells the input: not where a factor is 0 or nearly so."""
        return (
            torch.is_grad_enabled()
            and tokens.requires_grad
            and tokens.device.type == "cpu"
            # Stand-ins for tensors, by which operations are counted, are subclasses: they have no factors to tell.
            and type(tokens) is Tensor
            and bool(_factor(self.weight, self.is_gemma).abs().min() > _SMALLEST_FACTOR)
        )


class _RMSNorm(torch.autograd.Function):
    """y = x / rms(x) * w, where rms(x)^2 = mean(x^2) + eps over the last axis.

    With u = x / rms(x), which is y / w as well, the gradient g of y becomes (g w - u mean(g w u)) / rms(x) for x.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, eps: float, is_gemma: bool, keeps_result: bool) -> Tensor:
        result = torch.empty_like(rows)
        inverse = torch.empty(len(rows), 1, device=rows.device)
        scratch = _scratch(rows)
        for some in slices(len(rows), rows_at_once(rows)):
            x, squares = scratch[:, : len(rows[some])]
            torch.pow(x.copy_(rows[some]), 2, out=squares)
            inverse[some] = torch.rsqrt(squares.mean(-1, keepdim=True) + eps)
            result[some] = _scaled(x.mul_(inverse[some]), weight, rows.dtype, is_gemma)
        ctx.save_for_backward(result if keeps_result else rows, inverse, weight)
        ctx.is_gemma, ctx.keeps_result = is_gemma, keeps_result
        return result

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        kept, inverse, weight = ctx.saved_tensors
        (outer,) = gradients
        factor = _factor(weight, ctx.is_gemma)
        result = torch.empty_like(kept)
        scratch = _scratch(kept)
        for some in slices(len(kept), rows_at_once(kept)):
            unit, g = scratch[:, : len(kept[some])]
            unit.copy_(kept[some])
            unit.div_(factor) if ctx.keeps_result else unit.mul_(inverse[some])
            g.copy_(outer[some]).mul_(factor)
            along = torch.linalg.vecdot(g, unit)[:, None] / kept.shape[1]
            result[some] = g.sub_(unit.mul_(along)).mul_(inverse[some])
        return result, None, None, None, None


def _factor(weight: Tensor, is_gemma: bool) -> Tensor:
    """What a norm multiplies with, in float32."""
    return 1.0 + weight.float() if is_gemma else weight.float()


def _scaled(unit: Tensor, weight: Tensor, dtype: torch.dtype, is_gemma: bool) -> Tensor:
    """Gemma 2 rounds after the factor, Llama before it."""
    return (unit * _factor(weight, is_gemma)).to(dtype) if is_gemma else weight * unit.to(dtype)


def _scratch(rows: Tensor) -> Tensor:
    """Float32 memory for two copies of a piece, which all use in turn: fetched for each, it would cost as much time."""
    return torch.empty(2, min(len(rows), rows_at_once(rows)), rows.shape[1], device=rows.device)
