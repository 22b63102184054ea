"""The gated unit of Llama-like layers, down(activation(gate(x)) * up(x)), with no more memory than it needs.

(Shazeer, GLU Variants Improve Transformer, 2020, eq. 6.) Kept for the backward pass are gate(x) and up(x) alone:
activation(gate(x)) is cheap to make again. Where the three maps are frozen and plain, the product between them is
made for some tokens at a time and never stands in memory whole, nor do the gradients of gate(x) and up(x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medvisionllama.language.attention import is_exported
from medvisionllama.language.autocast import without_autocast
from medvisionllama.language.frozen_linear import can_be_joined
from medvisionllama.language.pieces import rows_at_once

# How many tokens a CPU multiplies with a weight at a time. Products of fewer are slower: 512 by a tenth and more.
_TOKENS_AT_ONCE = 2048


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
    """A Llama-like feed-forward module that keeps no more than gate(x) and up(x)."""

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
        maps = own.gate_proj, own.up_proj, own.down_proj
        result: Tensor
        if can_be_joined(tokens, *maps) and all(one.bias is None for one in maps):
            weights = (one.weight for one in maps)
            result = _FrozenUnit.apply(tokens, *weights, self.activation)  # type: ignore[no-untyped-call]
        else:
            gated = _Gated.apply(own.gate_proj(tokens), own.up_proj(tokens), self.activation)  # type: ignore[no-untyped-call]
            result = own.down_proj(gated)
        return result


class _Gated(torch.autograd.Function):
    """y = activation(gate) * up, rounded as `transformers` rounds it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        result = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        _gate(_ACTIVATIONS[activation], gate, up, result)
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return result

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        gate_grad, up_grad = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
        _differentiate(_ACTIVATIONS[ctx.activation], gradients[0], gate, up, gate_grad, up_grad)
        return gate_grad, up_grad, None


class _FrozenUnit(torch.autograd.Function):
    """The unit whole, with weights (out, in) that do not learn."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, activation: str
    ) -> Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])
        gate, up = rows @ gate_weight.T, rows @ up_weight.T
        result = rows.new_empty(len(rows), len(down_weight))
        some_gated = gate.new_empty(_step(rows), gate.shape[1])
        for its_gate, its_up, its_result in _by_tokens(gate, up, result):
            gated = some_gated[: len(its_gate)]
            _gate(_ACTIVATIONS[activation], its_gate, its_up, gated)
            torch.mm(gated, down_weight.T, out=its_result)
        ctx.save_for_backward(gate, up, gate_weight, up_weight, down_weight)
        ctx.activation = activation
        return result.view(*tokens.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        gate, up, gate_weight, up_weight, down_weight = ctx.saved_tensors
        outer = gradients[0].reshape(-1, gradients[0].shape[-1])
        result = gate.new_empty(len(gate), gate_weight.shape[1])
        some_gate_grad, some_up_grad = gate.new_empty(2, _step(gate), gate.shape[1])
        for its_outer, its_gate, its_up, its_result in _by_tokens(outer, gate, up, result):
            of_gate, of_up = some_gate_grad[: len(its_gate)], some_up_grad[: len(its_gate)]
            torch.mm(its_outer, down_weight, out=of_gate)  # of the product of both, at first
            _differentiate(_ACTIVATIONS[ctx.activation], of_gate, its_gate, its_up, of_gate, of_up)
            torch.mm(of_up, up_weight, out=its_result)
            torch.addmm(its_result, of_gate, gate_weight, out=its_result)
        return result.view(*gradients[0].shape[:-1], -1), None, None, None, None


def _gate(activation: _Activation, gate: Tensor, up: Tensor, result: Tensor) -> None:
    """Write activation(gate) * up."""
    for its_gate, its_up, its_result in _pieces(gate, up, result):
        activation.forward(its_gate, its_result)
        its_result.mul_(its_up)


def _differentiate(
    activation: _Activation, outer: Tensor, gate: Tensor, up: Tensor, gate_grad: Tensor, up_grad: Tensor
) -> None:
    """Write the gradients of both; `gate_grad` may be `outer` itself."""
    for g, its_gate, its_up, of_gate, of_up in _pieces(outer, gate, up, gate_grad, up_grad):
        activation.forward(its_gate, of_up)
        of_up.mul_(g)
        torch.mul(g, its_up, out=of_gate)
        activation.backward(of_gate, its_gate)


def _step(rows: Tensor) -> int:
    """How many tokens to take at a time: all of them, but on a CPU."""
    return min(_TOKENS_AT_ONCE, len(rows)) if rows.device.type == "cpu" else len(rows)


def _by_tokens(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (N, ...), some tokens of each at a time."""
    step = max(1, _step(tensors[0]))
    return zip(*(torch.split(one, step) for one in tensors), strict=True)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, some numbers of each at a time: views, where they lie in one piece."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    return zip(*(torch.split(one, rows_at_once(flat[0])) for one in flat), strict=True)
