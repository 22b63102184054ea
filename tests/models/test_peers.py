"""Rivals have the published topology and go through the same training as ours."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medvisionllama.checkpoint import load_tensors, model_tensors, put_model_tensors, save_tensors
from medvisionllama.config import make_experiment, read_experiment, write_experiment
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.errors import InputError
from medvisionllama.models.costs import cost_of
from medvisionllama.models.network import build_network
from medvisionllama.models.peers.dynunet import DynUNetConfig
from medvisionllama.models.zoo import DESCRIPTIONS, MODELS, PEERS, network_named

pytest.importorskip("monai")


def test_every_peer_has_a_name_of_its_own_and_a_description() -> None:
    assert not PEERS.keys() & MODELS.keys()
    assert PEERS.keys() | MODELS.keys() == DESCRIPTIONS.keys()
    assert network_named("dynunet") == PEERS["dynunet"]
    with pytest.raises(InputError, match="no model is called 'dynunets'"):
        network_named("dynunets")


def test_dynunet_has_the_topology_that_nnunet_plans_for_task04() -> None:
    # nnU-Net's own plan: window 40x56x40, four levels, 32 to 256 features.
    config = DynUNetConfig(1, 3, (40, 56, 40))
    assert config.features == (32, 64, 128, 256)
    assert config.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))


def test_dynunet_pools_flat_windows_along_their_long_axes_only() -> None:
    assert DynUNetConfig(1, 2, (64, 64, 8)).strides[1:] == ((2, 2, 2), (2, 2, 1), (2, 2, 1), (2, 2, 1))


@pytest.mark.parametrize("window", [(5, 5, 5), (8, 8, 8), (14, 14, 14), (12, 12, 12)])
def test_dynunet_says_which_windows_it_takes(window: tuple[int, int, int]) -> None:
    assert len(DynUNetConfig(1, 2, window).strides) <= 2
    with pytest.raises(InputError, match="at least 16 voxels that is a multiple of 4"):
        build_network(DynUNetConfig(1, 2, window))
    build_network(DynUNetConfig(1, 2, (16, *window[1:]), base_features=2))  # one such edge is enough


@pytest.mark.parametrize("name", sorted(PEERS))
def test_peers_are_built_alike_from_one_seed_and_give_logits_of_the_image_s_size(name: str) -> None:
    config = DynUNetConfig(2, 3, (16, 16, 8), base_features=PEERS[name].base_features // 8)
    one, again, other = (build_network(config, seed=seed) for seed in (0, 0, 1))
    image = torch.randn(1, 2, 16, 16, 8)
    assert one(image).shape == (1, 3, 16, 16, 8)
    assert torch.equal(one(image), again(image))
    assert not torch.equal(one(image), other(image))
    # The stages a page draws are the whole network: nothing is counted twice or forgotten.
    in_parts = sum(p.numel() for part in one.parts().values() for p in part.parameters())
    assert in_parts == sum(p.numel() for p in one.parameters())
    assert cost_of(config).trainable_parameters == in_parts


def test_deep_supervision_gives_coarser_logits_while_training_alone() -> None:
    config = DynUNetConfig(1, 2, (32, 32, 16), base_features=4)
    assert len(config.strides) == 4
    image = torch.randn(1, 1, 32, 32, 16)
    model = build_network(replace(config, deep_supervision=True))
    given = model.train()(image)
    # nnU-Net gives the coarsest of its decoder's levels no weight; MONAI stretches the others to full size.
    assert [tuple(logits.shape) for logits in given] == [(1, 2, 32, 32, 16)] * 2
    coarse = given[1][0, 0].reshape(16, 2, 16, 2, 8, 2)
    assert torch.equal(coarse.amax((1, 3, 5)), coarse.amin((1, 3, 5)))
    assert isinstance(model.eval()(image), torch.Tensor)
    assert isinstance(build_network(config).train()(image), torch.Tensor)
    with pytest.raises(ValueError, match="pooled twice"):
        replace(config, input_size=(8, 8, 8), deep_supervision=True)


def test_a_peer_s_settings_are_stored_and_overridden(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, model="dynunet", overrides=["--model.base_features", "4"])
    rules = (IntensityRule("body-zscore"),)
    fitted = experiment.fitted_to(
        Plan("native", "T", (40, 56, 40), (1, 1, 1), rules, {1: "a", 2: "b"}, 9, (35, 50, 36))
    )
    write_experiment(fitted, tmp_path / "config.yaml")
    assert read_experiment(tmp_path / "config.yaml") == fitted
    assert isinstance(fitted.model, DynUNetConfig)
    assert fitted.model == DynUNetConfig(1, 3, (40, 56, 40), base_features=4)
    with pytest.raises(InputError, match="no language block"):
        make_experiment(tmp_path, model="dynunet", block="minilm-l6")


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_file_holds_every_weight_once_and_gives_the_network_back(tmp_path: Path, deep_supervision: bool) -> None:
    config = DynUNetConfig(1, 2, (32, 32, 16), base_features=4, deep_supervision=deep_supervision)
    model, other = build_network(config, seed=0).eval(), build_network(config, seed=1).eval()
    kept = model_tensors(model, model.left_out_of_files())
    assert {t.data_ptr() for t in model.state_dict().values()} == {t.data_ptr() for t in kept.values()}
    assert sum(t.numel() for t in kept.values()) == sum(p.numel() for p in model.parameters())
    save_tensors(tmp_path / "model.safetensors", kept, {})
    put_model_tensors(other, load_tensors(tmp_path / "model.safetensors")[0], other.left_out_of_files())
    image = torch.randn(1, 1, 32, 32, 16)
    assert torch.equal(model(image), other(image))
