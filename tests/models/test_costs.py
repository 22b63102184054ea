"""Counted operations: SPEC 11's right values, and a count by hand."""

from dataclasses import replace

import pytest

from medvisionllama.models.costs import cost_of
from medvisionllama.models.zoo import named, with_block


@pytest.mark.parametrize(("lora", "rank", "gflops"), [("none", 8, 2141.6), ("mappers", 4, 2141.9), ("both", 8, 2143.0)])
def test_one_pass_through_the_llama_block(lora: str, rank: int, gflops: float) -> None:
    config = with_block(named("medvisionllama"), "llama-3.1-8b")
    config = replace(config, middle=replace(config.middle, lora=lora, rank=rank))
    assert round(cost_of(config).flops / 1e9, 1) == gflops


def test_a_count_by_hand() -> None:
    """ViT-Baseline at 16^3: eight tokens, products only, two operations for a multiplication and its addition."""
    N, E, depth, patch = 8, 64, 16, 8**3
    a_block = 4 * N * E * E + 2 * N * N * E + 8 * N * E * E
    expected = 2 * (N * patch * E + depth * a_block + N * E * patch)
    cost = cost_of(named("vit-baseline"), (16, 16, 16))
    assert cost.flops == expected
    assert cost.tokens == N


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        cost_of(named("vit-baseline"), (17, 16, 16))
