"""Three parts of a layer computed with less work than `transformers` spends on them.

On a CPU a Llama layer loses a fifth of its time between its matrix products: to positions that turn nothing
by angle 0, to norms that keep float32 copies of all tokens, and to a gated unit that writes and keeps every step
of its way. Here rotary positions are left out instead of being set to zero, a norm with frozen weights keeps only
its input and one number for each token, and the gated unit keeps its two inputs. The values are the same: tests
compare all three with the layer as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medvisionllama.language.attention import bidirectional_attention, is_exported

# How many numbers a CPU takes at a time: 256 kB in float32, which stays in a processor's cache.
_NUMBERS_AT_ONCE = 1 << 16


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
            project(hidden_states).view(B, N, -1, own.head_dim).transpose(1, 2)
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        softcap = getattr(own, "attn_logit_softcapping", None)
        attended, _ = bidirectional_attention(
            own, query, key, value, others.get("attention_mask"), own.scaling, softcap=softcap
        )
        return own.o_proj(attended.reshape(B, N, -1)), None


@dataclass(frozen=True)
class _Activation:
    """A function of single numbers, and its gradient, both written where they are told."""

    forward: Callable[[Tensor, Tensor], object]
    """Reads the first, writes the second."""
    backward: Callable[[Tensor, Tensor], object]
    """Multiplies the first, a gradient, by the slope at the second."""


_ACTIVATIONS = {
    "silu": _Activation(
        lambda x, result: torch.ops.aten.silu.out(x, out=result),
        lambda g, x: torch.ops.aten.silu_backward.grad_input(g, x, grad_input=g),
    ),
    "gelu_pytorch_tanh": _Activation(
        lambda x, result: torch.ops.aten.gelu.out(x, approximate="tanh", out=result),
        lambda g, x: torch.ops.aten.gelu_backward.grad_input(g, x, approximate="tanh", grad_input=g),
    ),
}


class GatedMLP(nn.Module):
    """A Llama-like feed-forward module, down(activation(gate(x)) * up(x)), that keeps no more than gate(x) and up(x).

    The gated product and its two gradients are made a cacheful at a time where they are to stay, and
    activation(gate(x)) again in the backward pass. (Shazeer, GLU Variants Improve Transformer, 2020, eq. 6.)
    """

    def __init__(self, mlp: nn.Module, activation: str) -> None:
        """Take over a module's parts.

        Args:
            mlp: `LlamaMLP` or a relative of it; not to be used any more.
            activation: Its activation as the model's configuration names it. Where it is not known here, nothing
                changes.
        """
        super().__init__()
        self.__dict__.update(mlp.__dict__)
        self.original = type(mlp)
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, L) to tokens."""
        own: Any = self
        if self.activation not in _ACTIVATIONS or is_exported():
            as_it_comes: Tensor = self.original.forward(own, tokens)
            return as_it_comes
        gated = _Gated.apply(own.gate_proj(tokens), own.up_proj(tokens), self.activation)  # type: ignore[no-untyped-call]
        result: Tensor = own.down_proj(gated)
        return result


class _Gated(torch.autograd.Function):
    """y = activation(gate) * up, rounded as `transformers` rounds it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        result = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        act = _ACTIVATIONS[activation].forward
        for its_gate, its_up, its_result in _pieces(gate, up, result):
            act(its_gate, its_result)
            its_result.mul_(its_up)
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        act = _ACTIVATIONS[ctx.activation]
        gate_grad, up_grad = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
        for g, its_gate, its_up, of_gate, of_up in _pieces(gradients[0], gate, up, gate_grad, up_grad):
            act.forward(its_gate, of_up)
            of_up.mul_(g)
            torch.mul(g, its_up, out=of_gate)
            act.backward(of_gate, its_gate)
        return gate_grad, up_grad, None


class FrozenRMSNorm(nn.Module):
    """`LlamaRMSNorm` (or Gemma 2's), made for a weight that does not learn; Zhang and Sennrich, NeurIPS 2019, eq. 4.

    The forward pass rounds where the original does, so that it gives the same bits. Where the weight does learn,
    the plain formula is used.
    """

    def __init__(self, norm: nn.Module) -> None:
        """Take over a norm of `transformers`, with its weight.

        Args:
            norm: A norm with `weight`, and with its epsilon as `variance_epsilon` or `eps` (Gemma 2, whose
                factor is 1 + weight in float32).
        """
        super().__init__()
        self.weight: nn.Parameter = norm.weight  # type: ignore[assignment]
        self.is_gemma = not hasattr(norm, "variance_epsilon")
        self.eps = float(norm.eps if self.is_gemma else norm.variance_epsilon)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise the last axis of tokens (B, N, L)."""
        if is_exported() or self.weight.requires_grad:
            x = tokens.float()
            unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
            return _scaled(unit, self.weight, tokens.dtype, self.is_gemma)
        normalised: Tensor = _RMSNorm.apply(tokens, self.weight, self.eps, self.is_gemma)  # type: ignore[no-untyped-call]
        return normalised


class _RMSNorm(torch.autograd.Function):
    """y = x / rms(x) * w, where rms(x)^2 = mean(x^2) + eps over the last axis."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, eps: float, is_gemma: bool) -> Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])
        result = torch.empty_like(rows)
        inverse = torch.empty(len(rows), 1, device=rows.device)
        slices = _slices(rows)
        scratch = _scratch(rows, slices)
        for some in slices:
            x, squares = scratch[:, : len(rows[some])]
            torch.pow(x.copy_(rows[some]), 2, out=squares)
            inverse[some] = torch.rsqrt(squares.mean(-1, keepdim=True) + eps)
            result[some] = _scaled(x.mul_(inverse[some]), weight, rows.dtype, is_gemma)
        ctx.save_for_backward(rows, inverse, weight)
        ctx.is_gemma = is_gemma
        return result.view(tokens.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        rows, inverse, weight = ctx.saved_tensors
        outer = gradients[0].reshape(rows.shape)
        factor = 1.0 + weight.float() if ctx.is_gemma else weight.float()
        result = torch.empty_like(rows)
        slices = _slices(rows)
        scratch = _scratch(rows, slices)
        for some in slices:
            x, g = scratch[:, : len(rows[some])]
            x.copy_(rows[some])
            g.copy_(outer[some]).mul_(factor)
            along = torch.linalg.vecdot(g, x)[:, None] / rows.shape[1] * inverse[some].pow(3)
            result[some] = g.mul_(inverse[some]).sub_(x.mul_(along))
        return result.view(gradients[0].shape), None, None, None


def _scaled(unit: Tensor, weight: Tensor, dtype: torch.dtype, is_gemma: bool) -> Tensor:
    """Gemma 2 rounds after the factor, Llama before it."""
    return (unit * (1.0 + weight.float())).to(dtype) if is_gemma else weight * unit.to(dtype)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, some numbers of each at a time: views, where they lie in one piece."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = _NUMBERS_AT_ONCE if flat[0].device.type == "cpu" else max(1, flat[0].numel())
    return zip(*(torch.split(one, step) for one in flat), strict=True)


def _slices(rows: Tensor) -> list[slice]:
    """Blocks of rows: few at a time on a CPU, all of them elsewhere."""
    step = max(1, _NUMBERS_AT_ONCE // rows.shape[1] if rows.device.type == "cpu" else len(rows))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _scratch(rows: Tensor, slices: list[slice]) -> Tensor:
    """Float32 memory for two copies of a slice, which all use in turn: fetched for each, it would cost as much time."""
    return torch.empty(2, len(rows[slices[0]]) if slices else 0, rows.shape[1], device=rows.device)
