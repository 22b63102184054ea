"""Activation and attention maps: against the layers themselves, by hand, and as the page reads them."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medvisionllama.cli import main
from medvisionllama.config import make_experiment
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import read_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.explain import (
    BlockAttention,
    EncoderAttention,
    checked_stages,
    default_stages,
    foreground_log_odds,
    received,
    stage_names,
    volume_maps,
    watching,
)
from medvisionllama.geometry import ras_grid
from medvisionllama.language.block import BlockConfig
from medvisionllama.language.building import load_block
from medvisionllama.machine import Machine
from medvisionllama.models.attention import SelfAttention
from medvisionllama.models.medvisionllama import MedVisionLlama, build
from medvisionllama.models.zoo import named
from medvisionllama.provenance import stages
from medvisionllama.reports.run_contents import read_maps
from medvisionllama.run import train_run

sys.path.append(str(Path(__file__).parent / "language"))
from tiny_models import FAMILY_NAMES, full_model

TINY = {"input_size": (16, 24, 16), "depth": 2, "out_channels": 3}


def tiny(name: str, **changes: Any) -> MedVisionLlama:
    torch.manual_seed(0)
    return build(replace(named(name), **TINY | changes)).eval()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_block_attention_is_what_the_layer_attends_with(family: str, tmp_path: Path) -> None:
    """Map times values is what enters the layer's output projection, whatever the family; rows sum to 1."""
    full_model(family).save_pretrained(tmp_path)
    block = load_block(BlockConfig(str(tmp_path), lora_rank=2))
    attention = BlockAttention(block)
    holder = attention._attention
    seen: dict[str, Tensor] = {}
    value = getattr(holder, block.family.query_value[1])
    value.register_forward_hook(lambda module, inputs, output: seen.update(value=output))
    if family == "bert":
        holder.register_forward_hook(lambda module, inputs, output: seen.update(attended=output[0]))
    else:
        last = holder.out_proj if family == "biogpt" else holder.o_proj
        last.register_forward_pre_hook(lambda module, inputs: seen.update(attended=inputs[0]))
    attention.hooks()
    tokens = 2 * torch.randn(2, 300, block.width)
    with torch.no_grad():
        block(tokens)
        rows = torch.cat(list(attention.rows()), dim=2)
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:3]))
        heads = rows.shape[1]
        values = seen["value"].view(2, 300, -1, seen["attended"].shape[-1] // heads).transpose(1, 2)
        values = values.repeat_interleave(heads // values.shape[1], dim=1)
        torch.testing.assert_close((rows @ values).transpose(1, 2).flatten(2), seen["attended"], rtol=1e-4, atol=1e-5)
        block(tokens)
        torch.testing.assert_close(received(attention), rows.mean(dim=(1, 2)) * 300)


def test_block_attention_agrees_with_the_full_model(tmp_path: Path) -> None:
    model = full_model("bert", headless=True)
    model.save_pretrained(tmp_path)
    block = load_block(BlockConfig(str(tmp_path)))
    with torch.no_grad():
        found = model(torch.arange(22).view(2, 11), output_hidden_states=True, output_attentions=True)
        attention = BlockAttention(block)
        attention.hooks()
        block(found.hidden_states[-2])
        torch.testing.assert_close(torch.cat(list(attention.rows()), dim=2), found.attentions[-1])


@pytest.mark.parametrize("name", ["vit-baseline", "vit-baseline-hybrid"])
def test_encoder_attention_is_that_of_the_last_block(name: str) -> None:
    model = tiny(name)
    module = [m for m in model.encoder[-1].modules() if isinstance(m, SelfAttention)][-1]
    entered = []
    module.register_forward_pre_hook(lambda m, inputs: entered.append(inputs[0]))
    image = torch.randn(1, 1, 16, 24, 16)
    attention = EncoderAttention(module)
    handles = attention.hooks()
    with torch.no_grad():
        model(image)
        looked_at = received(attention)
        torch.testing.assert_close(looked_at, module.map(entered[0]).mean(dim=(1, 2)) * 12)
    torch.testing.assert_close(looked_at.sum(), torch.tensor(12.0))
    for handle in handles:
        handle.remove()


def test_stages_stand_in_the_models_order() -> None:
    assert default_stages(tiny("vit-baseline")) == ["encoder", "decoder", "attention"]
    ours = tiny("medvisionllama")
    assert default_stages(ours) == ["encoder", "mapper in", "block", "mapper out", "decoder", "attention"]
    assert stage_names(ours)[-3:] == ["attention", "encoder attention", "block attention"]
    assert default_stages(tiny("as-published-code"))[:4] == ["mapper in", "block", "mapper out", "encoder"]
    assert stage_names(tiny("medvisionllama-v1"))[:3] == ["stem", "fusion", "encoder"]
    assert stage_names(tiny("vit-v1", attention="spatial")) == ["stem", "fusion", "encoder", "decoder"]
    assert checked_stages(ours, ["decoder", "block"]) == ["block", "decoder"]
    with pytest.raises(InputError, match="no stage 'blok'"):
        checked_stages(ours, ["blok"])


def test_the_last_attention_is_the_one_next_to_the_output() -> None:
    image = torch.randn(1, 1, 16, 24, 16)
    for name, last in (("medvisionllama", "block attention"), ("as-published-code", "encoder attention")):
        with torch.inference_mode(), watching(tiny(name), ["attention"]) as ours:
            found = ours(image)
        with torch.inference_mode(), watching(tiny(name), [last]) as theirs:
            torch.testing.assert_close(found, theirs(image))


@pytest.mark.parametrize("name", ["medvisionllama", "medvisionllama-v1", "medvisionllama-u"])
def test_maps_are_those_of_the_stages(name: str) -> None:
    model = tiny(name)
    image = torch.randn(1, 1, 16, 24, 16)
    names = stage_names(model)
    with torch.inference_mode():
        plain = model(image)
        with watching(model, names) as collect:
            maps = dict(zip(names, collect(image)[0], strict=True))
        torch.testing.assert_close(model(image), plain)
        skips = model.stem(image)
        tokens = skips[0].flatten(1, 3) + model.position((2, 3, 2))
        if model.fusion is not None:
            tokens = model.fusion(tokens, (2, 3, 2))
        encoded = model.encoder(tokens, (2, 3, 2))
    assert all(found.shape == (16, 24, 16) for found in maps.values())
    strength = encoded.square().mean(-1).sqrt().view(1, 1, 2, 3, 2)
    expected = torch.nn.functional.interpolate(strength, (16, 24, 16), mode="trilinear")[0, 0]
    torch.testing.assert_close(maps["encoder"], expected)
    torch.testing.assert_close(maps["decoder"], foreground_log_odds(plain)[0])
    assert not model.encoder._forward_hooks
    assert not model.decoder._forward_hooks


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = torch.randn(2, 3, 2, 2, 2)
    torch.testing.assert_close(torch.sigmoid(foreground_log_odds(logits)), 1 - torch.softmax(logits, 1)[:, 0])
    assert torch.equal(foreground_log_odds(logits[:, :1]), logits[:, 0])
    certain = foreground_log_odds(torch.full((1, 2, 1, 1, 1), 9.0), softmax=False)
    assert certain.item() == 9, "two targets by themselves, both there: neither is the other's background"


def test_maps_of_images_larger_than_the_window_and_padded_ones() -> None:
    model = tiny("medvisionllama-v1", input_size=(15, 20, 16))
    maps = volume_maps(model, torch.randn(1, 20, 20, 16), (15, 20, 16), default_stages(model))
    assert maps.shape == (len(default_stages(model)), 20, 20, 16)
    assert torch.isfinite(maps).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Machine]:
    folder = tmp_path_factory.mktemp("explain")
    task = write_phantom_task(folder / "task", cases=6, settings=PhantomSettings(spacing_mm=(2.2, 2.8)))
    machine = Machine(torch.device("cpu"), folder / "cache", offline=True)
    overrides = ("--model.depth", "1", "--recipe.validations", "1", "--recipe.precision", "float32")
    train_run(make_experiment(task, steps=60, overrides=overrides), folder / "run", machine)
    return folder / "run", machine


def test_a_file_of_maps_is_what_the_page_reads(run: tuple[Path, Machine], capsys: pytest.CaptureFixture[str]) -> None:
    folder, machine = run
    task = read_task(folder.parent / "task")
    case = task.cases[0]
    assert main(["explain", str(folder), "--case", case.name, "--cache", str(machine.cache), "--offline"]) == 0
    path = folder / "maps" / f"{case.name}.npz"
    assert capsys.readouterr().out.strip() == str(path)
    read = read_maps(path)
    stored = read_volume(case.image)
    assert list(read.stages) == ["encoder", "mapper in", "block", "mapper out", "decoder", "attention"]
    assert read.picture.image.shape == ras_grid(stored.grid).shape
    assert np.allclose(read.picture.affine, ras_grid(stored.grid).affine)
    assert read.picture.reference is not None
    assert all(np.isfinite(found).all() for found in read.stages.values())
    # What the decoder map says and what was predicted agree: foreground where its odds are better than even.
    agree = (read.stages["decoder"] > 0) == (read.picture.prediction > 0)
    assert agree.mean() > 0.9


def test_faults_are_told(run: tuple[Path, Machine], capsys: pytest.CaptureFixture[str]) -> None:
    folder, machine = run
    given: Callable[..., list[str]] = lambda *more: ["explain", str(folder), "--cache", str(machine.cache), *more]  # noqa: E731
    name = read_task(folder.parent / "task").cases[0].name
    assert main(given("--case", "nobody")) == 2
    assert "no case nobody" in capsys.readouterr().err
    assert main(given("--case", name, "--stages", "blok")) == 2
    assert "no stage 'blok'" in capsys.readouterr().err
    assert main(["explain", str(folder / "nothing"), "--case", name]) == 2


def test_a_runs_summary_and_its_maps_name_stages_alike() -> None:
    model = tiny("medvisionllama-v1")
    told = [stage["name"] for stage in stages(model)]
    assert [name for name in told if name != "position"] == stage_names(model)[:-3]
    assert told.index("position") == 1
