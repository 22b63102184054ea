"""The block's benchmark counts what it says it counts."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medvisionllama.experiments.benchmark_block import bare_products, benchmark_block
from medvisionllama.language.block import BlockConfig, load_block


@pytest.mark.parametrize("source", ["minilm-l6", "smollm2-135m"])
def test_bare_products_are_all_the_blocks_flops(source: str) -> None:
    block = load_block(BlockConfig(source=source, init="random"), offline=True)
    n_tokens = 48
    with FlopCounterMode(display=False) as bare:
        bare_products(block, n_tokens)()
    tokens = torch.randn(1, n_tokens, block.width, requires_grad=True)
    with FlopCounterMode(display=False) as whole:
        block(tokens).sum().backward()
    assert bare.get_total_flops() == whole.get_total_flops(), "no product is missing and no weight gradient made"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_the_layer() -> None:
    result = json.loads(json.dumps(benchmark_block(source="smollm2-135m", tokens=(16,), dtype="float32", repeats=1)))
    (memory,) = result["memory"]
    assert memory["layer_bytes"] == 4 * (3_540_096 + 576)
    assert memory["frozen_gradient_bytes"] == 0
    assert memory["saved_bytes"] > 16 * 4 * (2 * 1536 + 4 * 576), "gate, up, and the four residual streams at least"
    assert memory["grown_bytes"] > memory["layer_bytes"]
    (speed,) = result["speed"]
    assert speed["ratio"] > 0
