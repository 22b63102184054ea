"""The training loop: schedules, what is optimised, and what a step is a function of."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medvisionllama.data.augment import AugmentConfig
from medvisionllama.data.dataset import BatchSource, PreparedCase
from medvisionllama.errors import InputError
from medvisionllama.models.medvisionllama import MedVisionLlama, build
from medvisionllama.models.zoo import named
from medvisionllama.run_folder import RunFolder
from medvisionllama.train import Recipe, make_optimizer, seconds_per_step, train, train_step

CPU = torch.device("cpu")
SIZE = (16, 16, 16)


def cases(count: int = 3) -> list[PreparedCase]:
    made = []
    for index in range(count):
        draw = np.random.default_rng(index)
        label = np.zeros(SIZE, np.uint8)
        label[4 : 8 + index, 4:10, 5:9] = 1
        image = (label + 0.1 * draw.standard_normal(SIZE)).astype(np.float32)[None]
        places = np.column_stack([np.ones(int(label.sum()), int), np.argwhere(label)]).astype(np.int32)
        made.append(PreparedCase(f"case_{index}", image, label, places))
    return made


def network(name: str = "vit-baseline") -> MedVisionLlama:
    return build(replace(named(name), input_size=SIZE, out_channels=2, depth=1))


def source(seed: int = 0) -> BatchSource:
    return BatchSource(cases(), SIZE, batch_size=2, foreground_share=0.3, seed=seed)


def recipe(**changes: object) -> Recipe:
    return replace(Recipe(steps=20, precision="float32", validations=0), **changes)


def fit(model: MedVisionLlama, what: Recipe, folder: Path, seed: int = 0) -> float:
    outcome = train(
        model, source(seed), what, RunFolder(folder), device=CPU, left_out=model.left_out_of_files(), notes={}
    )
    assert outcome.steps == what.steps
    return RunFolder(folder).read_log()[-1]["loss"]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "poly"])
def test_the_rate_warms_up_to_its_peak_and_ends_where_it_should(schedule: str) -> None:
    what = recipe(schedule=schedule, steps=100, warmup=0.1, learning_rate=0.5)
    rates = [what.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == rates[10] == max(rates) == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10])
    end = {"constant": 0.5, "cosine": 0.5 * 0.5 * (1 + math.cos(math.pi * 89 / 90)), "poly": 0.5 * (1 / 90) ** 0.9}
    assert rates[-1] == pytest.approx(end[schedule])


def test_nnunets_poly_schedule_is_a_value() -> None:
    what = recipe(schedule="poly", warmup=0.0, learning_rate=0.01, steps=1000)
    assert what.rate(0) == 0.01
    assert what.rate(500) == pytest.approx(0.01 * 0.5**0.9)


def test_validations_are_spread_evenly_and_the_last_is_at_the_end() -> None:
    assert recipe(steps=100, validations=4).validation_steps() == {25, 50, 75, 100}
    assert recipe(steps=100, validations=0).validation_steps() == set()


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"steps": 0, "epochs": 0},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"clip_norm": -1.0},
        {"foreground_share": 7.0},
        {"validations": -1},
    ],
)
def test_impossible_recipes_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        recipe(**bad)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimiser_holds_what_trains_and_nothing_else(optimizer: str) -> None:
    model = network("medvisionllama")
    held = {id(p) for g in make_optimizer(model, recipe(optimizer=optimizer)).param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert any(not p.requires_grad for p in model.parameters())


def test_biases_and_norms_do_not_decay() -> None:
    groups = make_optimizer(network(), recipe(weight_decay=0.1)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim < 2 for p in groups[1]["params"])


@pytest.mark.parametrize(("optimizer", "rate", "steps"), [("adam", 3e-3, 80), ("adamw", 3e-3, 80), ("sgd", 1e-2, 150)])
def test_a_network_learns(optimizer: str, rate: float, steps: int, tmp_path: Path) -> None:
    model = network()
    first = fit(network(), recipe(optimizer=optimizer, learning_rate=rate, steps=1), tmp_path / "one")
    last = fit(model, recipe(optimizer=optimizer, learning_rate=rate, steps=steps), tmp_path / "many")
    assert last < 0.7 * first


def test_a_step_is_a_function_of_seed_and_step() -> None:
    """Neither the global generator nor the steps before matter."""
    what = recipe(augment=AugmentConfig(noise_probability=1.0, rotate_probability=1.0))
    losses = []
    for noise in (1, 2):
        model = network()
        torch.manual_seed(noise)
        np.random.default_rng(noise)
        losses.append(train_step(model.train(), make_optimizer(model, what), source(), what, 7, CPU))
    assert losses[0] == losses[1]
    model = network()
    assert train_step(model.train(), make_optimizer(model, what), source(), what, 8, CPU) != losses[0]
    model = network()
    assert train_step(model.train(), make_optimizer(model, what), source(seed=1), what, 7, CPU) != losses[0]


def test_the_global_generator_is_left_as_it_was() -> None:
    model, what = network(), recipe()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train_step(model.train(), make_optimizer(model, what), source(), what, 0, CPU)
    assert torch.equal(torch.rand(2), expected)


def test_timing_steps_undoes_them() -> None:
    model = network("vit-u")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert seconds_per_step(model, source(), recipe(), CPU) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_with_a_word(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.decoder.linear.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"no longer finite at step 1"):
        fit(model, recipe(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_best_validation_is_kept(tmp_path: Path) -> None:
    model, dice = network(), iter([0.2, 0.9, 0.5, 0.4])
    kept = {}

    def validate(network_now: torch.nn.Module) -> dict[str, float]:
        value = next(dice)
        kept[value] = {n: t.clone() for n, t in network_now.state_dict().items()}
        return {"mean": value}

    outcome = train(
        model, source(), recipe(validations=4), RunFolder(tmp_path), device=CPU, left_out=set(), notes={},
        validate=validate,
    )  # fmt: skip
    assert (outcome.best_dice, outcome.best_step) == (0.9, 10)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], kept[0.9][name]) for name in saved)
    assert any(not torch.equal(saved[name], kept[0.4][name]) for name in saved)


def test_ctrl_c_ends_the_step_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of step 7 leaves a checkpoint of seven whole steps; going on ends as if it never came."""
    what = recipe(steps=13)
    fit(network(), what, tmp_path / "whole")
    steps_done = 0

    def pressing(*arguments: Any) -> float:
        nonlocal steps_done
        steps_done += 1
        if steps_done == 7:
            signal.raise_signal(signal.SIGINT)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("medvisionllama.train.train_step", pressing)
        with pytest.raises(KeyboardInterrupt):
            fit(network(), what, tmp_path / "broken")
    assert steps_done == 7
    state = json.loads((tmp_path / "broken" / "checkpoint.json").read_text())
    assert state["step"] == 7
    assert len(state["losses"]) == 7
    train(
        network(), source(), what, RunFolder(tmp_path / "broken"), device=CPU, left_out=set(), notes={}, resume=True
    )  # fmt: skip
    whole, broken = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    logs = [[entry["loss"] for entry in RunFolder(tmp_path / name).read_log()] for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_resuming_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.safetensors"):
        train(
            network(), source(), recipe(), RunFolder(tmp_path), device=CPU, left_out=set(), notes={}, resume=True
        )  # fmt: skip
