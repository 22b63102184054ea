"""The assembled networks: the papers' counts, shapes, and what is trained."""

import json
import math
import zlib
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.functional import layer_norm

from medvisionllama.language.block import BlockConfig
from medvisionllama.models.medvisionllama import MedVisionLlama, ModelConfig, build
from medvisionllama.models.middle import LoraLinear, MiddleConfig
from medvisionllama.models.vit import PositionEmbedding
from medvisionllama.models.zoo import MODELS, PAPER_ROWS, PaperRow, named, with_block

LLAMA = "llama-3.1-8b"
TINY = {"input_size": (16, 24, 16), "depth": 2}


def trainable(model: MedVisionLlama) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def on_meta(config: ModelConfig) -> MedVisionLlama:
    return build(config, meta=True)


def test_vit_baseline_has_the_published_size() -> None:
    assert trainable(on_meta(named("vit-baseline"))) == 1_128_000
    assert trainable(on_meta(replace(named("vit-baseline"), out_channels=2))) == 1_161_280


@pytest.mark.parametrize(
    ("rank", "mappers", "both"), [(2, 1.149, 1.175), (4, 1.165, 1.219), (8, 1.199, 1.305), (16, 1.265, 1.478)]
)
def test_lora_ranks_have_the_right_sizes(rank: int, mappers: float, both: float) -> None:
    """SPEC 11's right values, in millions."""
    config = with_block(named("medvisionllama"), LLAMA)
    for lora, expected in (("mappers", mappers), ("both", both)):
        middle = replace(config.middle, lora=lora, rank=rank)
        assert round(trainable(on_meta(replace(config, middle=middle))) / 1e6, 3) == expected


def test_linear_mappers_train_what_the_spec_says() -> None:
    model = on_meta(with_block(named("medvisionllama-linear"), LLAMA))
    assert round(trainable(model) / 1e6, 3) == 1.652


def test_the_llama_layer_is_frozen_whole() -> None:
    model = on_meta(with_block(named("medvisionllama"), LLAMA))
    assert model.middle is not None
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    mappers_start = 2 * 64 * 4096
    assert frozen == 218_112_000 + 4_096 + mappers_start


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_named_network_gives_logits_of_the_input_size(name: str) -> None:
    config = replace(named(name), in_channels=2, out_channels=3, input_size=(16, 24, 16))
    model = build(replace(config, depth=2))
    logits = model(torch.randn(2, 2, 16, 24, 16))
    assert logits.shape == (2, 3, 16, 24, 16)
    # Another size is taken too: the position embedding stretches.
    assert model(torch.randn(1, 2, 24, 24, 32)).shape == (1, 3, 24, 24, 32)


@pytest.mark.parametrize("name", ["medvisionllama", "medvisionllama-u"])
def test_only_what_may_train_gets_a_gradient(name: str) -> None:
    model = build(replace(named(name), **TINY))
    model(torch.randn(2, 1, 16, 24, 16)).square().mean().backward()
    block = model.block
    assert block is not None
    base = {f"middle.block.{n}" for n in block.base_state_names()}
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not with_gradient & base
    assert {"middle.mapper_in.weight", "middle.mapper_out.weight"} & with_gradient == set()
    assert "middle.mapper_in.lora_b" in with_gradient
    assert model.left_out_of_files() == base


def test_parts_start_alike_whatever_stands_between_them() -> None:
    """The same seed gives encoder and decoder the same start with and without a block."""
    with_it, without = build(replace(named("medvisionllama-u"), **TINY)), build(replace(named("vit-u"), **TINY))
    ours, theirs = with_it.state_dict(), without.state_dict()
    shared = {name for name in theirs if not name.startswith("middle")}
    assert shared == {name for name in ours if not name.startswith("middle")}
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    other = build(replace(named("vit-u"), **TINY), seed=1).state_dict()
    assert any(not torch.equal(theirs[name], other[name]) for name in shared)


# Names decide whether the weights of a finished run can be loaded, starts whether it can be repeated.
@pytest.mark.parametrize(
    ("name", "tensors", "names", "start"),
    [
        ("vit-baseline", 29, 3887956838, 8227.343),
        ("medvisionllama", 57, 4021671267, 10503.444),
        ("vit-u", 75, 61105415, 26105.756),
        ("medvisionllama-u", 103, 1568647919, 29662.052),
    ],
)
def test_networks_of_finished_runs_keep_their_names_and_starts(
    name: str, tensors: int, names: int, start: float
) -> None:
    state = build(replace(named(name), **TINY), seed=3).state_dict()
    assert len(state) == tensors
    assert zlib.crc32("\n".join(state).encode()) == names
    own = [tensor for key, tensor in state.items() if not key.startswith("middle.block.")]
    assert sum(tensor.double().abs().sum().item() for tensor in own) == pytest.approx(start, rel=1e-6)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build(replace(named("medvisionllama"), **TINY))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_parameter_is_in_one_stage(name: str) -> None:
    config = with_block(named(name), "minilm-l6")
    if config.middle.kind not in ("none", "identity"):
        config = replace(config, middle=replace(config.middle, norm_in=True))
    model = build(config, meta=True)
    in_stages = [p for part in model.parts().values() for p in part.parameters()]
    assert len(in_stages) == len({id(p) for p in in_stages})
    assert {id(p) for p in in_stages} == {id(p) for p in model.parameters()}
    first, last = ("mapper in", "encoder") if config.place == "before-encoder" else ("encoder", "mapper in")
    order = [*model.parts()]
    assert config.middle.kind == "none" or order.index(first) < order.index(last)


def test_lists_are_taken_for_tuples() -> None:
    """Configurations arrive from YAML and JSON too."""
    config = replace(named("vit-u"), input_size=(16, 16, 24))
    lists = json.loads(json.dumps(asdict(config)))
    again = ModelConfig(**lists | {"middle": config.middle})
    assert again == config
    assert hash(again.stem_strides) == hash(config.stem_strides)


def test_building_seeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would restore its generator."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(0)
    assert seeded == [0], "negative control: torch seeds them all together"
    build(replace(named("medvisionllama"), **TINY))
    assert seeded == [0]


def test_lora_mapper_starts_as_its_frozen_base() -> None:
    layer = LoraLinear(6, 10, rank=2, scale=1.0, train_base=False)
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), x @ layer.weight.T + layer.bias)
    torch.nn.init.normal_(layer.lora_b)
    expected = x @ (layer.weight + layer.lora_b @ layer.lora_a).T + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_alpha_scales_the_adapter() -> None:
    assert MiddleConfig(rank=4, alpha=1.0).scale == 0.25
    assert MiddleConfig(rank=4).scale == 1.0


@pytest.mark.parametrize("residual", ["none", "in", "out", "both"])
def test_residuals_are_where_they_are_said_to_be(residual: str) -> None:
    block = BlockConfig(init="random")
    config = replace(named("medvisionllama"), middle=MiddleConfig(block=block, residual=residual), **TINY)
    model = build(config)
    assert model.middle is not None
    middle = model.middle.eval()
    tokens = torch.randn(1, 5, 64)
    entering = middle.mapper_in(tokens)
    assert middle.block is not None
    leaving = middle.block(entering)
    expected = middle.mapper_out(leaving + entering if residual in ("in", "both") else leaving)
    if residual in ("out", "both"):
        expected = expected + tokens
    torch.testing.assert_close(middle(tokens), expected)


def test_identity_is_the_same_stage_without_the_block() -> None:
    config = replace(named("medvisionllama"), **TINY)
    control = build(replace(config, middle=replace(config.middle, kind="identity")))
    assert control.middle is not None
    assert control.block is None
    tokens = torch.randn(1, 5, 64)
    mapped = control.middle.mapper_out(control.middle.mapper_in(tokens))
    torch.testing.assert_close(control.middle(tokens), mapped)


def test_mlp_is_gelu_and_layer_norm_between_the_mappers() -> None:
    """v1 section 4.4.1."""
    model = build(replace(named("vit-mlp-v1"), **TINY))
    assert model.middle is not None
    middle, tokens = model.middle.eval(), torch.randn(1, 5, 64)
    entering = tokens @ middle.mapper_in.weight.T
    changed = layer_norm(0.5 * entering * (1 + torch.erf(entering / math.sqrt(2))), (384,))
    torch.testing.assert_close(middle(tokens), (changed + entering) @ middle.mapper_out.weight.T)
    assert model.left_out_of_files() == set()


def test_large_mlp_takes_the_blocks_size_or_the_one_it_is_told() -> None:
    model = build(replace(named("vit-mlp"), **TINY))
    theirs = build(replace(named("medvisionllama-trained"), **TINY))
    assert model.middle is not None
    assert model.middle.block is not None
    assert theirs.block is not None
    ours, block = (sum(p.numel() for p in part.parameters()) for part in (model.middle.block, theirs.block))
    assert abs(ours - block) <= 384 + 1
    told = replace(named("vit-mlp").middle, mlp_width=10)
    small = build(replace(named("vit-mlp"), middle=told, **TINY))
    assert small.middle is not None
    assert sum(p.numel() for p in small.middle.block.parameters()) == 2 * 384 * 10 + 384 + 10


def test_trained_trains_the_whole_block() -> None:
    config = replace(named("medvisionllama"), **TINY)
    model = build(replace(config, middle=replace(config.middle, kind="trained")))
    assert model.block is not None
    assert all(p.requires_grad for p in model.block.parameters())
    assert model.block.identity.init == "random", "from scratch"
    assert model.left_out_of_files() == set()


def test_place_decides_the_order() -> None:
    config = replace(named("medvisionllama"), **TINY)
    image = torch.randn(1, 1, 16, 24, 16)
    after, before = build(config).eval(), build(replace(config, place="before-encoder")).eval()
    assert not torch.allclose(after(image), before(image))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 62}, "heads"),
        ({"input_size": (20, 24, 16)}, "multiple"),
        ({"input_size": (20, 24, 16)}, r"set pad_input, or use \(24, 24, 16\)"),
        ({"decoder": "ushape"}, "need each other"),
        ({"stem": "convolutions", "decoder": "upconv"}, "need each other"),
        ({"fusion": (3, 4)}, "odd"),
        ({"dropout": 1.0}, "dropout"),
        ({"in_channels": 0}, "at least 1"),
    ],
)
def test_impossible_combinations_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(ModelConfig(), **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rank": 0}, "rank"),
        ({"kind": "identity", "norm_in": True}, "in front of a block"),
        ({"mlp_width": 8}, "no width of a large-mlp"),
        ({"kind": "large-mlp", "mlp_width": 0}, "no width of a large-mlp"),
    ],
)
def test_impossible_middle_stages_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(MiddleConfig(), **change)


@pytest.mark.parametrize(
    ("size", "patch"), [((13, 24, 9), (8, 8, 8)), ((16, 24, 5), (8, 8, 4)), ((7, 6, 5), (4, 3, 1))]
)
def test_an_input_is_padded_to_whole_patches_and_cut_back(
    size: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    config = replace(named("vit-v1"), input_size=size, patch_size=patch, pad_input=True, depth=1)
    model = build(config).eval()
    image = torch.randn(1, 1, *size)
    padded = torch.zeros(1, 1, *config.padded(size))
    padded[:, :, : size[0], : size[1], : size[2]] = image
    logits = model(image)
    assert logits.shape[2:] == size
    torch.testing.assert_close(logits, model(padded)[:, :, : size[0], : size[1], : size[2]])


@pytest.mark.parametrize("row", PAPER_ROWS["v1", "B2"].values())
def test_the_papers_input_sizes_have_whole_grids_of_tokens(row: PaperRow) -> None:
    expected = {(64, 64, 40): (8, 8, 5), (128, 128, 80): (16, 16, 10), (240, 240, 156): (30, 30, 20)}
    assert row.config.token_grid == expected[row.input_size]


def test_the_papers_largest_input_gets_logits_of_its_own_size() -> None:
    model = on_meta(PAPER_ROWS["v1", "B2"]["ViT + Llama, 240x240x156"].config)
    assert model(torch.empty(1, 1, 240, 240, 156, device="meta")).shape == (1, 1, 240, 240, 156)


def test_the_convolutional_stem_takes_uneven_strides() -> None:
    strides = ((2, 2, 1), (2, 2, 2), (2, 2, 2))
    config = replace(named("medvisionllama-u"), stem_strides=strides, patch_size=(8, 8, 4), **TINY)
    assert config.token_grid == (2, 3, 4)
    assert build(config)(torch.randn(2, 1, 16, 24, 16)).shape == (2, 1, 16, 24, 16)


def test_position_embedding_stretches_to_another_grid() -> None:
    """Linearly, also where axes differ: a ramp stays a ramp."""
    position = PositionEmbedding((4, 2, 2), 1)
    ramp = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 2)
    position.vectors.data = ramp.reshape(1, 16, 1).clone()
    stretched = position((8, 3, 2)).view(8, 3, 2)
    assert torch.equal(position((4, 2, 2)), position.vectors)
    torch.testing.assert_close(stretched[:, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert (stretched == stretched[:, :1, :1]).all()


SWITCHED = ("medvisionllama", "medvisionllama-v1", "medvisionllama-u")


def gradients(model: MedVisionLlama) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(5)  # dropout's
    logits = model.train()(torch.linspace(-1, 1, 2 * 16 * 24 * 16).view(2, 1, 16, 24, 16))
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SWITCHED)
def test_gradient_checkpointing_changes_no_result(name: str) -> None:
    config = replace(named(name), **TINY)
    kept, again = gradients(build(config)), gradients(build(replace(config, recompute=True)))
    torch.testing.assert_close(again, kept)


def test_gradient_checkpointing_keeps_less() -> None:
    config = replace(named("medvisionllama"), **TINY | {"depth": 6})

    def kept_bytes(recompute: bool) -> int:
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        model = build(replace(config, recompute=recompute)).train()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.randn(1, 1, 16, 24, 16))
        return kept

    assert kept_bytes(True) < kept_bytes(False) / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHED)
def test_compiling_changes_no_result(name: str) -> None:
    config = replace(named(name), **TINY)
    plain, compiled = build(config), build(replace(config, compiled=True))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(gradients(compiled), gradients(plain), rtol=1e-3, atol=1e-5)


def test_a_wrong_input_is_told_how_to_mend() -> None:
    model = build(replace(named("vit-baseline"), **TINY))
    with pytest.raises(ValueError, match=r"pad to \(24, 24, 16\)"):
        model(torch.zeros(1, 1, 20, 24, 16))
    with pytest.raises(ValueError, match=r"\(B,1,I,J,K\)"):
        model(torch.zeros(1, 3, 16, 24, 16))
