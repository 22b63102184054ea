"""Experiments as values: names, files, overrides."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from medvisionllama.config import (
    Experiment,
    load_recipe,
    make_experiment,
    read_experiment,
    recipe_names,
    write_experiment,
)
from medvisionllama.data.augment import AugmentConfig
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.errors import InputError
from medvisionllama.models.zoo import MODELS


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load_recipe(name).batch_size == {"nnunet": 2}.get(name, 4)


def test_nnunets_recipe_is_nnunets() -> None:
    recipe = load_recipe("nnunet")
    assert (recipe.optimizer, recipe.learning_rate, recipe.schedule, recipe.warmup) == ("sgd", 1e-2, "poly", 0.0)
    assert (recipe.weight_decay, recipe.clip_norm, recipe.batch_size, recipe.steps) == (3e-5, 12.0, 2, 1000 * 250)
    assert (recipe.loss, recipe.deep_supervision, recipe.foreground_share) == ("dice_ce", True, pytest.approx(0.333))
    assert recipe.augment == AugmentConfig(
        rotate_probability=0.2,
        rotate_degrees=30.0,
        scale_probability=0.2,
        scale_range=(0.7, 1.4),
        mirror_axes=(0, 1, 2),
        noise_probability=0.1,
        noise_sd=0.1,
        blur_probability=0.2,
        brightness_probability=0.15,
        contrast_probability=0.15,
        low_resolution_probability=0.25,
        inverted_gamma_probability=0.1,
        gamma_probability=0.3,
        gamma_keeps_moments=True,
    )
    assert recipe.rate(125_000) == pytest.approx(0.01 * 0.5**0.9)


def test_deep_supervision_is_asked_for_by_the_recipe(tmp_path: Path) -> None:
    plan = Plan("native", "T", (16, 16, 24), (1.0, 1.0, 1.0), (IntensityRule("zscore"),), {1: "a"}, 3, (16, 16, 20))
    for model in ("vit-u", "dynunet"):
        for recipe in ("nnunet", "native"):
            fitted = make_experiment(tmp_path, model=model, recipe=recipe).fitted_to(plan)
            assert fitted.model.deep_supervision == (recipe == "nnunet")
    with pytest.raises(InputError, match=r"vit-baseline does not fit the plan.*coarser maps"):
        make_experiment(tmp_path, model="vit-baseline", recipe="nnunet").fitted_to(plan)


def test_the_papers_recipes_are_the_papers() -> None:
    v1, v2 = load_recipe("paper-v1"), load_recipe("paper-v2")
    assert (v1.loss, v1.optimizer, v1.learning_rate, v1.epochs) == ("bce", "adam", 1e-5, 100)
    assert (v2.loss, v2.optimizer, v2.learning_rate, v2.epochs) == ("dice_bce", "adam", 2e-3, 200)


@pytest.mark.parametrize(
    ("source", "folder"),
    [("minilm-l6", False), ("org/model", False), ("/blocks/llama", True), ("C:\\blocks\\llama", True)],
)
def test_a_block_that_is_a_folder_is_known_on_every_system(source: str, folder: bool, tmp_path: Path) -> None:
    made = make_experiment(tmp_path, model="medvisionllama-u", overrides=["--model.middle.block.source", source])
    assert made.folder_of_block == (made.model.middle.block.source if folder else None)
    there = make_experiment(tmp_path / "b", model="medvisionllama-u", overrides=["--model.middle.block.source", "/new"])
    moved = made.found_where(there)
    assert moved.dataset == there.dataset
    assert moved.model.middle.block.source == ("/new" if folder else source)
    assert replace(moved, dataset=made.dataset, model=made.model) == made


@pytest.mark.parametrize("model", sorted(MODELS))
def test_what_is_written_is_read_again(model: str, tmp_path: Path) -> None:
    made = make_experiment(tmp_path, model=model, seed=5, fraction=0.3, overrides=["--model.width", "128"])
    assert made.model.width == 128
    write_experiment(made, tmp_path / "config.yaml")
    assert read_experiment(tmp_path / "config.yaml") == made


def test_overrides_reach_every_depth(tmp_path: Path) -> None:
    made = make_experiment(
        tmp_path,
        model="medvisionllama",
        overrides=["--model.middle.block.layers", "[-2,-1]", "--recipe.augment.mirror_axes", "[0,1]"],
    )
    assert made.model.middle.block.layers == (-2, -1)
    assert made.recipe.augment.mirror_axes == (0, 1)


@pytest.mark.parametrize(
    "override",
    [
        ["--model.depht", "3"],
        ["--model.dept", "3"],  # an abbreviation is a typo too
        ["--model.depth", "deep"],
        ["--model.width", "63"],
        ["--recipe.schedule", "linear"],
        ["--recipe.learning_rate", "-1"],
        ["stray"],
    ],
)
def test_typos_and_nonsense_are_refused(override: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        make_experiment(tmp_path, overrides=override)


def test_a_recipe_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 0.5\nsteps: 7\n")
    made = make_experiment(tmp_path, recipe=str(path))
    assert (made.recipe.learning_rate, made.recipe.steps) == (0.5, 7)
    path.write_text("learning_rat: 0.5\n")
    with pytest.raises(InputError, match="learning_rat"):
        make_experiment(tmp_path, recipe=str(path))


def test_length_is_steps_or_epochs(tmp_path: Path) -> None:
    assert make_experiment(tmp_path, epochs=3).lasting(10).recipe.steps == 3 * 3
    assert make_experiment(tmp_path, steps=11).lasting(10).recipe.steps == 11


def test_a_block_is_named_or_a_folder(tmp_path: Path) -> None:
    assert make_experiment(tmp_path, block="smollm2-135m").model.middle.block.source == "smollm2-135m"
    assert make_experiment(tmp_path, block=str(tmp_path)).model.middle.block.source == str(tmp_path.resolve())
    with pytest.raises(InputError, match="no language block"):
        make_experiment(tmp_path, model="vit-baseline", block="smollm2-135m")


def test_the_plan_sizes_the_networks_ends() -> None:
    plan = Plan(
        "native", "t", (16, 24, 32), (1.0, 1.0, 1.0), (IntensityRule("zscore"),) * 2, {1: "a", 4: "b"}, 3, (16, 24, 32)
    )
    model = Experiment("x").fitted_to(plan).model
    assert (model.in_channels, model.out_channels, model.input_size) == (2, 3, (16, 24, 32))
    with_sigmoid = Experiment("x", recipe=load_recipe("paper-v2"))
    merged = with_sigmoid.fitted_to(replace(plan, protocol="paper")).model
    assert merged.out_channels == 1


@pytest.mark.parametrize("name", ["vit-u", "vit-baseline", "medvisionllama", "dynunet"])
@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 11}])
def test_an_experiment_fitted_to_one_folds_plan_fits_anothers_as_if_it_came_fresh(
    name: str, length: dict[str, int], tmp_path: Path
) -> None:
    one = Plan("native", "t", (64, 64, 32), (1.0, 1.0, 3.0), (IntensityRule("zscore"),), {1: "a"}, 20, (64, 64, 32))
    one = replace(one, stem_strides=((2, 2, 1), (2, 2, 2), (2, 2, 2)))
    other = replace(one, window=(64, 32, 32), training_cases=13, stem_strides=((2, 2, 2),) * 3)
    assert one.patch_size != other.patch_size
    start = make_experiment(tmp_path, model=name, **length)
    stored = start.fitted_to(one).lasting(one.training_cases)
    fresh = replace(start, fold=2).fitted_to(other).lasting(other.training_cases)
    assert stored.of_fold(2, one).fitted_to(other).lasting(other.training_cases) == fresh


def test_memory_is_planned_for_one_processs_share_and_a_typed_batch_stays(tmp_path: Path) -> None:
    plan = Plan(
        "native", "t", (64, 64, 64), (1.0, 1.0, 1.0), (IntensityRule("zscore"),), {1: "a"}, 400, (160, 160, 160)
    )
    start = make_experiment(tmp_path, model="vit-u", overrides=("--recipe.batch_size", "12"))
    alone, three = start.within(4.0, plan), start.within(4.0, plan, 3)
    assert alone.batch_size is not None
    assert three == replace(alone, batch_size=3 * alone.batch_size)
    own, shared = start.within(4.0, plan, own_batch=True), start.within(4.0, plan, 3, own_batch=True)
    assert own.batch_size == shared.batch_size == 12
    assert start.fitted_to(own).memory_gb(own.window) <= 4.0
    assert math.prod(own.window) < math.prod(shared.window), "a third of the batch leaves room for larger windows"


@pytest.mark.parametrize("text", ["", "- a list", "model: [", "format: 1\nnonsense: 2"])
def test_a_damaged_config_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError):
        read_experiment(tmp_path / "config.yaml")
