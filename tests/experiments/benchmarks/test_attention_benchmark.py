"""The benchmark of the two ways to attend."""

import pytest

from medvisionllama.experiments.benchmarks import attention as module
from medvisionllama.experiments.benchmarks.attention import benchmark_attention


def test_both_ways_are_timed_wherever_either_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEADS", ((2, 8),))
    lines = benchmark_attention(tokens=(20, 40), repeats=1)["lines"]
    assert len(lines) == 2 * 2 * 2
    assert {line["dtype"] for line in lines if line["taken"] == "products"} == {"bfloat16"}
    for line in lines:
        assert line["products_to_fused"] == pytest.approx(line["products_ms"] / line["fused_ms"])
        better = "products" if line["products_to_fused"] < 1 else "fused"
        assert line["taken_to_best"] == pytest.approx(line[f"{line['taken']}_ms"] / line[f"{better}_ms"])
