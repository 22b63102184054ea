"""The block's benchmark counts what it says it counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from medvisionllama.experiments.benchmarks.block import bare_products, benchmark_block, plain_products
from medvisionllama.language.block import BlockConfig
from medvisionllama.language.building import load_block


@pytest.mark.parametrize("source", ["minilm-l6", "smollm2-135m"])
def test_bare_products_are_all_the_blocks_flops(source: str) -> None:
    # In bfloat16 attention is plain products; the fused kernel of float32 is not counted on a CPU.
    block = load_block(BlockConfig(source=source, init="random", dtype="bfloat16"), offline=True)
    n_tokens = 48
    with FlopCounterMode(display=False) as bare:
        bare_products(block, n_tokens)()
    with FlopCounterMode(display=False) as plain:
        plain_products(block, n_tokens)()
    tokens = torch.randn(1, n_tokens, block.width, requires_grad=True)
    with FlopCounterMode(display=False) as whole:
        block(tokens).sum().backward()
    assert bare.get_total_flops() == whole.get_total_flops(), "no product is missing and no weight gradient made"
    assert plain.get_total_flops() == whole.get_total_flops()


def test_bare_products_take_no_memory_while_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a system spends on fetching memory is no part of a product."""
    from medvisionllama.experiments.benchmarks import block as module

    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 48 * 100)  # queries in several goes, the last one shorter
    block = load_block(BlockConfig(source="smollm2-135m", init="random"), offline=True)

    def largest(products: Callable[[], None]) -> int:
        products()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            products()
        return max(event.cpu_memory_usage for event in seen.events())

    assert largest(bare_products(block, 48)) == 0
    assert largest(plain_products(block, 48)) > 0, "the measure sees memory being taken"


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
    assert memory["ratio"] == (memory["grown_bytes"] - memory["saved_bytes"]) / memory["layer_bytes"]
    assert list(speed).index("ratio") < list(speed).index("ratio_to_plain_calls")


def test_device_and_threads_reach_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medvisionllama.cli import main
    from medvisionllama.experiments.benchmarks import block as module

    asked: dict[str, object] = {}
    monkeypatch.setattr(module, "benchmark_block", lambda **options: asked.update(options) or {})
    out = tmp_path / "block.json"
    assert main(["benchmark", "block", "--device", "cpu", "--threads", "1", "--out", str(out)]) == 0
    assert asked == {"device": "cpu", "threads": 1}
    assert json.loads(out.read_text())["machine"]["command"].endswith("benchmark block --threads 1")
    assert main(["benchmark", "block", "--device", "abacus", "--out", str(out)]) == 2
    assert main(["benchmark", "startup", "--threads", "1", "--out", str(out)]) == 2, "only the block's can be told"
