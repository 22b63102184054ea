"""Counted operations: SPEC 11's right values, and a count by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medvisionllama.errors import InputError
from medvisionllama.language.catalog import CATALOG
from medvisionllama.language.store import ModelStore
from medvisionllama.models import costs
from medvisionllama.models.costs import Kept, cost_of, forward_cost_of, kept_of
from medvisionllama.models.medvisionllama import ModelConfig, build
from medvisionllama.models.zoo import named, with_block
from medvisionllama.run_folder import write_json


@pytest.mark.parametrize(("lora", "rank", "gflops"), [("none", 8, 2141.6), ("mappers", 4, 2141.9), ("both", 8, 2143.0)])
def test_one_pass_through_the_llama_block(lora: str, rank: int, gflops: float) -> None:
    config = with_block(named("medvisionllama"), "llama-3.1-8b")
    config = replace(config, middle=replace(config.middle, lora=lora, rank=rank))
    assert round(forward_cost_of(config).flops / 1e9, 1) == gflops


def test_a_count_by_hand() -> None:
    """ViT-Baseline at 16^3: eight tokens, products only, two operations for a multiplication and its addition."""
    N, E, depth, patch = 8, 64, 16, 8**3
    a_block = 4 * N * E * E + 2 * N * N * E + 8 * N * E * E
    expected = 2 * (N * patch * E + depth * a_block + N * E * patch)
    cost = cost_of(named("vit-baseline"), (16, 16, 16))
    assert cost.flops == expected
    assert cost.tokens == N


def really_kept(config: ModelConfig, volumes: int, *, half_precision: bool) -> int:
    """Bytes that a real forward pass saves for going backward, parameters aside."""
    model = build(config).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half_precision),
    ):
        logits = model(torch.zeros(volumes, 1, *config.input_size))
    assert logits.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in parameters)


@pytest.mark.parametrize("name", ["medvisionllama", "medvisionllama-v1", "medvisionllama-u"])
@pytest.mark.parametrize("size", [(16, 24, 16), (64, 96, 88)], ids=["12 tokens", "1,056 tokens"])
def test_kept_bytes_are_what_a_step_on_a_cpu_keeps(name: str, size: tuple[int, int, int]) -> None:
    config = replace(named(name), input_size=size, depth=1)
    truth = really_kept(config, 1, half_precision=False)
    assert cost_of(config).kept_bytes == truth
    assert kept_of(config) == Kept(truth, 0)
    halved = kept_of(config, half_precision=True)
    one, two, three = (really_kept(config, volumes, half_precision=True) for volumes in (1, 2, 3))
    assert (halved.each_volume, halved.once) == pytest.approx((two - one, 2 * one - two), rel=0.01)
    assert halved.once + 3 * halved.each_volume == pytest.approx(three, rel=0.01)
    assert 0.4 * truth < halved.each_volume < truth
    assert 0 < halved.once < cost_of(config).weight_bytes


def test_scores_are_kept_in_bfloat16_where_attention_is_two_products() -> None:
    """ViT-Baseline at 64^3: 512 tokens, whose scores the fused kernel of float32 never holds."""
    config, layers, heads, scores = named("vit-baseline"), 16, 4, 512**2
    plain, halved = (kept_of(config, (64, 64, 64), half_precision=half).each_volume for half in (False, True))
    assert halved - plain / 2 > layers * heads * scores * 2
    assert halved > plain


@pytest.mark.parametrize("name", ["vit-baseline", "medvisionllama", "medvisionllama-u"])
def test_one_pass_costs_the_same_without_what_training_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cost_of(named(name), (32, 32, 32)).to_dict()
    monkeypatch.setattr(costs, "_kept_bytes", lambda *given: pytest.fail("counted what nobody asked for"))
    forward = forward_cost_of(named(name), (32, 32, 32))
    assert vars(forward) | {"input_size": [32, 32, 32]} == {k: v for k, v in whole.items() if k != "kept_bytes"}


@pytest.mark.parametrize("kind", ["language", "identity"])
def test_the_shape_of_a_fetched_model_comes_from_the_cache_it_lies_in(kind: str, tmp_path: Path) -> None:
    hub_id, commit = "someorg/some-bert", "0123456789" * 4
    store = ModelStore(tmp_path, hub_id)
    store.remember("main", commit)
    write_json(store.at(commit) / "config.json", dict(CATALOG["minilm-l6"].numbers))
    known = named("medvisionllama-u" if kind == "language" else "medvisionllama-u-identity")
    config = with_block(known, hub_id)
    with pytest.raises(InputError, match="the shape of someorg/some-bert is not known"):
        forward_cost_of(config, (16, 16, 16))
    assert forward_cost_of(config, (16, 16, 16), cache=tmp_path) == forward_cost_of(known, (16, 16, 16))


def test_recomputing_keeps_less_and_bfloat16_weighs_half() -> None:
    config = with_block(named("medvisionllama"), "llama-3.1-8b")
    usual, again = cost_of(config), cost_of(replace(config, recompute=True))
    assert again.kept_bytes < usual.kept_bytes / 4
    assert (again.flops, again.weight_bytes) == (usual.flops, usual.weight_bytes)
    block = replace(config.middle.block, dtype="bfloat16")
    light = cost_of(replace(config, middle=replace(config.middle, block=block)))
    assert usual.weight_bytes - light.weight_bytes == 2 * (218_112_000 + 4_096)


def test_the_papers_largest_input_is_counted_padded() -> None:
    """v1 B2: 156 slices make 20 patches of 8."""
    cost = cost_of(named("vit-v1"), (240, 240, 156))
    assert cost.tokens == 30 * 30 * 20
    assert cost.flops == cost_of(named("vit-v1"), (240, 240, 160)).flops


def test_hybrid_attention_spares_what_grows_with_the_square() -> None:
    plain, hybrid = named("vit-baseline"), named("vit-baseline-hybrid")
    sizes = [(64, 64, 64), (128, 128, 128)]
    growth = [cost_of(config, sizes[1]).flops / cost_of(config, sizes[0]).flops for config in (plain, hybrid)]
    assert growth[0] > 20
    assert growth[1] == pytest.approx(8, rel=0.01)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        cost_of(named("vit-baseline"), (17, 16, 16))
