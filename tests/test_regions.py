"""Overlapping regions, voxels nobody labelled, and a lone patient: from dataset.json to scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medvisionllama.config import make_experiment, read_experiment
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import read_label_map, write_label_map
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.plan import read_plan
from medvisionllama.data.planning import make_plan
from medvisionllama.data.splits import Splits
from medvisionllama.errors import InputError
from medvisionllama.evaluate import evaluate_folders
from medvisionllama.geometry import Volume
from medvisionllama.machine import Machine
from medvisionllama.run import train_run
from medvisionllama.run_folder import RunFolder, read_scores

SMALL = ("--model.depth", "1", "--recipe.validations", "1", "--recipe.precision", "float32")
REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated task whose second class lies within a region, and of whose label maps a third is not labelled."""
    settings = PhantomSettings(spacing_mm=(3.2, 3.8))
    folder = write_phantom_task(tmp_path_factory.mktemp("regions") / "task", cases=4, settings=settings)
    description = json.loads((folder / "dataset.json").read_text())
    description |= {"labels": REGIONS, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(description))
    for path in sorted((folder / "labelsTr").iterdir()):
        label = read_label_map(path)
        array = label.array.copy()
        array[: array.shape[0] // 3] = 3
        write_label_map(Volume(array, label.affine), path)
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(torch.device("cpu"), tmp_path_factory.mktemp("cache"), offline=True)


def test_regions_are_trained_written_and_scored(task: Path, machine: Machine, tmp_path: Path) -> None:
    experiment = make_experiment(task, model="vit-u", steps=2, overrides=SMALL)
    train_run(experiment, tmp_path / "run", machine)
    run = RunFolder(tmp_path / "run")
    stored, plan = read_experiment(run.config), read_plan(run.plan)
    assert (stored.recipe.loss, stored.model.out_channels) == ("dice_bce", 2)  # asked for was dice_ce
    assert plan.targets == {"whole": (1, 2), "core": (2,)}
    assert train_run(experiment, run.path, machine, resume=True)["steps"] == 2, "asked for as it was begun"
    part = run.part("validation", None)
    assert {row.class_name for row in read_scores(part / "scores.csv")} == {"whole", "core"}
    (mask, *_) = sorted((part / "predictions").iterdir())
    assert set(np.unique(read_label_map(mask).array)) <= {0, 1, 2}


def test_what_nobody_labelled_is_not_judged(task: Path, tmp_path: Path) -> None:
    """Wherever the reference is ignored, a prediction may say what it likes: the scores stay perfect."""
    labels = task / "labelsTr"
    rng = np.random.default_rng(0)
    for path in sorted(labels.iterdir()):
        label = read_label_map(path)
        anything = rng.integers(0, 3, label.array.shape).astype(np.uint8)
        write_label_map(Volume(np.where(label.array == 3, anything, label.array), label.affine), tmp_path / path.name)
    classes = evaluate_folders(tmp_path, labels, tmp_path / "out", tolerance_mm=1.0)["classes"]
    assert {name: content["dice"]["mean"] for name, content in classes.items()} == {"whole": 1.0, "core": 1.0}
    for path in sorted(tmp_path.glob("*.nii.gz")):  # negative control: the same voxels, where they count
        label = read_label_map(labels / path.name)
        write_label_map(label.with_array(rng.integers(0, 3, label.array.shape).astype(np.uint8)), path)
    classes = evaluate_folders(tmp_path, labels, tmp_path / "out", tolerance_mm=1.0)["classes"]
    assert classes["core"]["dice"]["mean"] < 0.5


def test_a_lone_patient_can_be_trained_on_and_is_not_scored(task: Path, machine: Machine, tmp_path: Path) -> None:
    names = [case.name for case in read_task(task).cases]
    splits = Splits(0, (), ((), tuple(names)), dict.fromkeys(names, "one"))
    summary = train_run(
        make_experiment(task, model="vit-u", steps=1, overrides=SMALL), tmp_path, machine, splits=splits
    )
    assert "validation" not in summary
    assert summary["cases"] == {"training": 4, "validation": 0, "test": 0}
    assert RunFolder(tmp_path).model.exists()


def test_window_and_batch_fit_the_memory_asked_for(task: Path) -> None:
    described = read_task(task)
    plan = make_plan(described, described.cases)
    experiment = make_experiment(task, model="vit-u", overrides=SMALL)
    whole = experiment.fitted_to(plan).memory_gb(plan.window)
    smaller = experiment.within(0.9 * whole, plan)
    fitted = experiment.fitted_to(smaller)
    assert fitted.recipe.batch_size == smaller.batch_size == 2  # of four cases' voxels 5 % is less than that
    assert fitted.memory_gb(smaller.window) <= 0.9 * whole
    with pytest.raises(InputError, match="does not fit"):
        experiment.within(1e-6, plan)
