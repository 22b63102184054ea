"""Linear maps whose weights do not learn, computed together where that spares memory and time.

Of such a map autograd needs no more than the gradient of its input. Where several maps have the same input (queries,
keys and values), their gradients are summed: here each product adds itself to the sum as it is made, which
spares a tensor of tokens and a pass over it for every map but the first. The sum is rounded once a map, as it is
where the maps stand alone and their rounded gradients are summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medvisionllama.language.attention import is_exported
from medvisionllama.language.autocast import is_autocast, without_autocast


def can_be_joined(tokens: Tensor, *linears: nn.Module) -> bool:
    """Whether these maps of tokens may be computed without calling the modules.

    They may not where a module is more than a frozen linear map (it has an adapter, learns, or had its `forward`
    replaced), where hooks on it want to see what goes through, where a compiler reads along, where autocast chooses
    the number format, or where no gradient is asked for and nothing can be spared.

    Hooks on all modules of the process (`register_module_forward_hook`) are not asked for and do not see these maps:
    torch's counters of operations set such hooks, and would count others than those that are done without them.
    """
    return (
        torch.is_grad_enabled()
        and tokens.requires_grad
        and not is_exported()
        and not is_autocast(tokens.device)
        and all(_is_frozen_linear(one) and one.weight.dtype == tokens.dtype for one in linears)
    )


def _is_frozen_linear(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and not any(hooks)
        and not any(one.requires_grad for one in module.parameters())
    )


def project(tokens: Tensor, *linears: nn.Module) -> tuple[Tensor, ...]:
    """Send tokens (..., L) through several linear maps.

    Returns:
        What each module would give, (..., its width).
    """
    if not can_be_joined(tokens, *linears):
        return tuple(linear(tokens) for linear in linears)
    biases = [linear.bias for linear in linears]
    weights = [linear.weight for linear in linears]
    projected: tuple[Tensor, ...] = _Joined.apply(tokens, biases, *weights)  # type: ignore[no-untyped-call]
    return projected


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, biases: list[Tensor | None], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*weights)
        return tuple(functional.linear(tokens, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights: tuple[Tensor, ...] = ctx.saved_tensors
        total: Tensor | None = None
        for gradient, weight in zip(gradients, weights, strict=True):
            rows = gradient.reshape(-1, len(weight))
            total = rows @ weight if total is None else torch.addmm(total, rows, weight, out=total)
        assert total is not None
        return total.view(*gradients[0].shape[:-1], -1), None, *(None for _ in weights)
