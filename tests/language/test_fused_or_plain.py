"""Which way attention goes; that both ways give the same is held in `test_block` and `test_attention`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medvisionllama.language.fused_or_plain import products_are_faster
from medvisionllama.models.attention import attend


def heads(n_tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, n_tokens, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    ("dtype", "n_tokens", "products"),
    [
        (torch.bfloat16, 1, True),
        (torch.bfloat16, 1024, True),
        (torch.bfloat16, 1025, False),
        (torch.float32, 8, False),
        (torch.float64, 8, False),
    ],
)
def test_only_few_tokens_in_bfloat16_take_products(dtype: torch.dtype, n_tokens: int, products: bool) -> None:
    query, _, _ = heads(n_tokens, dtype)
    assert products_are_faster(query) == products
    with torch.no_grad():
        assert products_are_faster(query) == products, "the same with and without gradients, to the bit"


@pytest.mark.parametrize(
    ("dtype", "n_tokens", "bound"),
    [(torch.float32, 300, 1e-5), (torch.bfloat16, 1024, 0.03), (torch.bfloat16, 1025, 0.03)],
)
def test_either_way_is_softmax_attention_with_its_gradient(dtype: torch.dtype, n_tokens: int, bound: float) -> None:
    """Against the formula in float64, which neither way computes in."""
    inputs = heads(n_tokens, dtype)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    outer = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    attended = attend(*inputs)
    q, k, v = exact
    truth = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v
    attended.backward(outer)
    truth.backward(outer.double())
    torch.testing.assert_close(attended.double(), truth, atol=bound, rtol=bound)
    for mine, exactly in zip(inputs, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), exactly.grad, atol=bound, rtol=bound)
