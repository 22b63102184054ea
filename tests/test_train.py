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

from medvisionllama.averaging import WeightAverage
from medvisionllama.checkpoint import load_tensors, save_tensors
from medvisionllama.data.augment import AugmentConfig
from medvisionllama.data.dataset import BatchSource, PreparedCase
from medvisionllama.errors import InputError
from medvisionllama.losses import segmentation_loss
from medvisionllama.models.medvisionllama import MedVisionLlama, build
from medvisionllama.models.zoo import named
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import RunFolder
from medvisionllama.train import (
    Validated,
    loss_at_all_resolutions,
    make_optimizer,
    seconds_per_step,
    train,
    train_step,
)

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


def network(name: str = "vit-baseline", **changes: Any) -> MedVisionLlama:
    return build(replace(named(name), input_size=SIZE, out_channels=2, depth=1, **changes))


def source(seed: int = 0) -> BatchSource:
    return BatchSource(cases(), SIZE, batch_size=2, foreground_share=0.3, seed=seed)


def recipe(**changes: object) -> Recipe:
    return replace(Recipe(steps=20, precision="float32", validations=0), **changes)


def fit(model: MedVisionLlama, what: Recipe, folder: Path, seed: int = 0, **more: Any) -> float:
    outcome = train(
        model, source(seed), what, RunFolder(folder), device=CPU, left_out=model.left_out_of_files(), notes={}, **more
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


@pytest.mark.parametrize(("schedule", "end"), [("constant", 0.5), ("cosine", 0.0), ("poly", 0.0)])
@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_beyond_the_last_step_the_rate_stays_where_it_ended(schedule: str, end: float, warmup: float) -> None:
    what = recipe(schedule=schedule, steps=4, warmup=warmup, learning_rate=0.5)
    assert [what.rate(step) for step in (4, 5, 100)] == [pytest.approx(end)] * 3


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
        {"patience": -1},
        {"patience": 2, "validations": 0},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
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


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_with_a_word(clip_norm: float, tmp_path: Path) -> None:
    """The last step's loss is finite, but it left weights that are not: no later loss would tell."""
    model = network()
    grown = torch.nn.Parameter(torch.zeros(()))  # the slope of its root is infinite, the root itself 0
    model.decoder.register_parameter("grown", grown)
    model.decoder.register_forward_hook(lambda module, inputs, logits: logits + 0 * grown.sqrt())
    with pytest.raises(InputError, match=r"or its gradient is no longer finite at step 1"):
        fit(model, recipe(steps=1, clip_norm=clip_norm), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_best_validation_is_kept(tmp_path: Path) -> None:
    model, dice = network(), iter([0.2, 0.9, 0.5, 0.4])
    kept = {}

    def validate(network_now: torch.nn.Module) -> Validated:
        value = next(dice)
        kept[value] = {n: t.clone() for n, t in network_now.state_dict().items()}
        return Validated({"mean": value}, loss=1 - value)

    outcome = train(
        model, source(), recipe(validations=4), RunFolder(tmp_path), device=CPU, left_out=set(), notes={},
        validate=validate,
    )  # fmt: skip
    assert (outcome.best_dice, outcome.best_step) == (0.9, 10)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], kept[0.9][name]) for name in saved)
    assert any(not torch.equal(saved[name], kept[0.4][name]) for name in saved)
    looks = [entry for entry in RunFolder(tmp_path).read_log() if "validation_dice" in entry]
    assert [(e["step"], e["validation_dice"], e["validation_loss"]) for e in looks] == [
        (5, 0.2, 0.8), (10, 0.9, 1 - 0.9), (15, 0.5, 0.5), (20, 0.4, 0.6),
    ]  # fmt: skip


def test_by_default_a_step_is_the_plain_one(tmp_path: Path) -> None:
    """Average, early stop, deep supervision and processes off: the losses are those of a loop written out here."""
    what = recipe(steps=12, augment=AugmentConfig(), clip_norm=0.5)
    model = network(dropout=0.0)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": what.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
    losses = []
    for step in range(12):
        batch = source().batch(step)
        for group in optimizer.param_groups:
            group["lr"] = what.rate(step)
        loss = segmentation_loss(model.train()(batch.image), batch.label, "dice_ce")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
    fit(network(dropout=0.0), what, tmp_path)
    logged = [entry["loss"] for entry in RunFolder(tmp_path).read_log()]
    assert logged == [sum(losses[:10]) / 10, sum(losses[10:]) / 2]


def test_the_average_is_what_its_formula_says() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    model[0].weight.data.fill_(1.0)
    average = WeightAverage(model, decay=0.9)
    expected = 1.0
    for steps, weight in enumerate([3.0, -2.0, 0.5], start=1):
        model[0].weight.data.fill_(weight)
        model[1].num_batches_tracked += 1
        average.update(steps)
        share = 1 - min(0.9, (1 + steps) / (10 + steps))
        expected += share * (weight - expected)
        assert float(average.tensors["0.weight"]) == pytest.approx(expected)
    assert int(average.tensors["1.num_batches_tracked"]) == 3
    with average.in_the_weights_place():
        assert model[0].weight.item() == pytest.approx(expected)
    assert model[0].weight.item() == 0.5
    assert WeightAverage(model, decay=0.9).tensors["1.running_var"].equal(torch.ones(1))


def test_what_does_not_move_is_averaged_to_itself() -> None:
    model = torch.nn.Linear(40, 40)
    average = WeightAverage(model, decay=0.999)
    for steps in range(1, 50):
        average.update(steps)
    assert all(torch.equal(average.tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_the_average_is_validated_and_kept_and_the_weights_go_on(tmp_path: Path) -> None:
    """The losses are those of a run without an average; what is kept is the average of its weights."""
    what, seen = recipe(steps=20, validations=2, ema_decay=0.8), []

    def validate(model: torch.nn.Module) -> Validated:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Validated({"mean": len(seen) / 10}, loss=1.0)

    model = network("vit-u")
    by_hand: dict[str, torch.Tensor] = {}
    steps = 0

    def averaging(*arguments: Any) -> float:
        """One step, and then what the average ought to be."""
        nonlocal steps
        by_hand.update(by_hand or {n: t.clone() for n, t in model.state_dict().items()})
        loss = train_step(*arguments)
        steps += 1
        decay = min(0.8, (1 + steps) / (10 + steps))
        for name, tensor in model.state_dict().items():
            counted = not tensor.is_floating_point()
            by_hand[name] = tensor.clone() if counted else decay * by_hand[name] + (1 - decay) * tensor
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvisionllama.train.train_step", averaging)
        fit(model, what, tmp_path / "average", validate=validate)
    fit(network("vit-u"), replace(what, ema_decay=0.0), tmp_path / "plain", validate=lambda m: Validated({"mean": 0.1}))
    logs = [[entry["loss"] for entry in RunFolder(tmp_path / name).read_log()] for name in ("average", "plain")]
    assert logs[0] == logs[1]
    average, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("average", "plain"))
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, by_hand[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, seen[1][name])
    assert all(torch.equal(plain[name], tensor) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(plain[name], average[name]) for name in plain)


@pytest.mark.parametrize(
    ("patience", "dice", "ends_at", "best"),
    [
        (0, [0.5, 0.4, 0.3, 0.2, 0.1], 20, 4),
        (2, [0.5, 0.4, 0.3, 0.2, 0.1], 12, 4),
        (2, [0.5, 0.4, 0.6, 0.5, 0.4], 20, 12),
        (1, [0.5, 0.5, 0.6, 0.1, 0.9], 16, 12),
        (3, [math.nan, 0.1, 0.0, math.nan, 0.0], 20, 8),
    ],
)
def test_patience_runs_out(patience: int, dice: list[float], ends_at: int, best: int, tmp_path: Path) -> None:
    model, values = network(), iter(dice)
    what = recipe(steps=20, validations=5, patience=patience)
    outcome = train(
        model, source(), what, RunFolder(tmp_path), device=CPU, left_out=set(), notes={},
        validate=lambda m: Validated({"mean": next(values)}),
    )  # fmt: skip
    assert (outcome.steps, outcome.best_step) == (ends_at, best)
    last = RunFolder(tmp_path).read_log()[-1]
    assert last["step"] == ends_at
    assert last.get("stopped_early", False) == (ends_at < 20)


def test_coarse_logits_are_judged_with_half_the_weight_at_each_halving() -> None:
    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    label[0, :4, 2:, :6] = 1
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(1, 2, n, n, n, generator=draw) for n in (8, 4, 2)]
    # The blocks of this label are whole at every resolution, so that coarser labels can be written down.
    half, quarter = torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    half[0, :2, 1:, :3] = 1
    losses = [segmentation_loss(a, b, "dice_ce") for a, b in zip(logits[:2], (label, half), strict=True)]
    two = loss_at_all_resolutions(logits[:2], label, "dice_ce")
    assert float(two) == pytest.approx(float(losses[0] + 0.5 * losses[1]) / 1.5)
    quarter[0, :1, :, :1] = 1  # the voxel nearest to the middle of a block of four: its third
    losses.append(segmentation_loss(logits[2], quarter, "dice_ce"))
    three = loss_at_all_resolutions(logits, label, "dice_ce")
    assert float(three) == pytest.approx(float(losses[0] + losses[1] / 2 + losses[2] / 4) / 1.75)
    assert torch.equal(loss_at_all_resolutions(logits[0], label, "dice_ce"), losses[0])


def test_deep_supervision_teaches_every_resolution_and_predicts_one(tmp_path: Path) -> None:
    model, plain = network("vit-u", deep_supervision=True), network("vit-u")
    shared = plain.state_dict()
    assert all(torch.equal(model.state_dict()[name], shared[name]) for name in shared)
    image = torch.randn(2, 1, *SIZE)
    assert torch.equal(model.eval()(image), plain.eval()(image))
    assert [tuple(t.shape[1:]) for t in model.train()(image)] == [(2, 16, 16, 16), (2, 8, 8, 8), (2, 4, 4, 4)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, recipe(steps=2), tmp_path)
    heads = [name for name in before if "coarse_logits" in name]
    assert len(heads) == 4
    assert all(not torch.equal(before[name], model.state_dict()[name]) for name in heads)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_step_and_loses_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of step 7 leaves a checkpoint of seven whole steps; going on ends as if it never came."""
    what = recipe(steps=13, ema_decay=0.9)
    fit(network(), what, tmp_path / "whole")
    steps_done = 0

    def pressing(*arguments: Any) -> float:
        nonlocal steps_done
        steps_done += 1
        if steps_done == 7:
            signal.raise_signal(number)
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


def test_a_checkpoint_follows_each_validation(tmp_path: Path) -> None:
    """So what validating cost is not paid again, however seldom checkpoints are written else."""
    what, seen = recipe(steps=6, validations=3), []

    def validate(model: torch.nn.Module) -> Validated:
        state = RunFolder(tmp_path).checkpoint_state
        seen.append(json.loads(state.read_text())["step"] if state.exists() else None)
        return Validated({"mean": 0.5})

    fit(network(), what, tmp_path, validate=validate, checkpoint_seconds=1e9)
    assert seen == [None, 2, 4]
    assert json.loads(RunFolder(tmp_path).checkpoint_state.read_text())["step"] == 6


def test_a_checkpoint_with_unknown_notes_is_told(tmp_path: Path) -> None:
    what = recipe(steps=2, validations=1)
    fit(network(), what, tmp_path, validate=lambda model: Validated({"mean": 0.5}))
    tensors, notes = load_tensors(tmp_path / "checkpoint.safetensors")
    save_tensors(tmp_path / "checkpoint.safetensors", tensors, notes | {"mood": "good"})
    with pytest.raises(InputError, match=r"not understood.*mood"):
        fit(network(), what, tmp_path, resume=True)
