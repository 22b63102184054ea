"""From run folders to label maps: folds as one ensemble, clean-up chosen on validation, probabilities."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medvisionllama.cleanup import Trial, read_trials, write_trials
from medvisionllama.cli import main
from medvisionllama.config import make_experiment, read_experiment, write_experiment
from medvisionllama.data.nifti import read_label_map, read_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume
from medvisionllama.loading import Inference, load_segmenter
from medvisionllama.machine import Machine
from medvisionllama.run import train_run
from medvisionllama.run_folder import RunFolder, read_scores
from medvisionllama.score_part import predict_part
from medvisionllama.segment import predict_files

OVERRIDES = ("--model.depth", "1", "--recipe.validations", "0", "--recipe.precision", "float32")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    return write_phantom_task(folder / "task", cases=8, settings=PhantomSettings(spacing_mm=(2.2, 2.8)))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(torch.device("cpu"), tmp_path_factory.mktemp("cache"), offline=True)


@pytest.fixture(scope="module")
def folds(phantom: Path, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, hardly trained: unsure of everything, with islands everywhere."""
    folder = tmp_path_factory.mktemp("runs") / "folds"
    for fold in (0, 1):
        asked = make_experiment(phantom, model="vit-u", steps=8, fold=fold, seed=fold, overrides=OVERRIDES)
        train_run(asked, folder / f"fold_{fold}", machine)
    return folder


def predictions(folder: Path) -> dict[str, Volume]:
    return {path.name: read_label_map(path) for path in sorted((folder / "predictions").iterdir())}


def test_the_test_part_of_all_folds_is_their_ensembles(phantom: Path, folds: Path, machine: Machine) -> None:
    summary = predict_part(RunFolder(folds), "test", machine)
    assert summary["ensemble"] == ["fold_0", "fold_1"]
    assert summary["model"] == "vit-u"
    assert not summary.keys() & {"fold", "seconds", "validation"}
    stored = json.loads((folds / "summary.json").read_text())
    assert stored.keys() == summary.keys()
    assert stored["test"]["dice"] == summary["test"]["dice"]
    names = json.loads((folds / "fold_0" / "splits.json").read_text())["test"]
    assert {row.case for row in read_scores(folds / "test" / "scores.csv")} == set(names)
    both = load_segmenter([folds], machine)
    assert len(both.members) == 2
    differs = 0
    for name, found in predictions(folds / "test").items():
        image = read_volume(phantom / "imagesTr" / name)
        np.testing.assert_array_equal(found.array, both.segment(image).array)
        alone = [load_segmenter([folds / f"fold_{fold}"], machine).segment(image).array for fold in (0, 1)]
        differs += sum(int((found.array != each).any()) for each in alone)
    assert differs == 2 * len(names), "negative control: an ensemble is neither of its members"


def test_each_fold_has_a_validation_part_of_its_own(folds: Path, machine: Machine) -> None:
    with pytest.raises(InputError, match="fold_0"):
        predict_part(RunFolder(folds), "validation", machine)


def test_what_helps_on_validation_is_applied_there_and_on_test(folds: Path, machine: Machine) -> None:
    run = RunFolder(folds / "fold_0")
    predict_part(run, "validation", machine, inference=Inference(cleanup=False))
    raw = predictions(run.part("validation"))
    summary = predict_part(run, "validation", machine)
    trials = read_trials(run)
    assert trials
    cleaned = predictions(run.part("validation"))
    for name, trial in trials.items():
        assert summary["validation"]["dice"][name] == pytest.approx(max(trial.dice, trial.dice_cleaned))
        for case, found in cleaned.items():
            if trial.helps:
                assert ndimage.label(found.array == trial.label, np.ones((3, 3, 3)))[1] <= 1
            else:
                np.testing.assert_array_equal(found.array == trial.label, raw[case].array == trial.label)
    helping = {label: Trial(label, 1, 0.1, 0.9) for label in (1, 2)}
    kept = run.postprocessing.read_text()
    write_trials(run, {str(label): trial for label, trial in helping.items()})
    try:
        predict_part(run, "test", machine)
        for found in predictions(run.part("test")).values():
            for label in (1, 2):
                assert ndimage.label(found.array == label, np.ones((3, 3, 3)))[1] <= 1
        predict_part(run, "test", machine, inference=Inference(cleanup=False))
        islands = [
            ndimage.label(found.array == label, np.ones((3, 3, 3)))[1]
            for found in predictions(run.part("test")).values()
            for label in (1, 2)
        ]
        assert max(islands) > 1, "negative control: there are islands to clean"
        assert json.loads(run.postprocessing.read_text())["largest_component"]["1"]["dice"] == 0.1, "test chose nothing"
    finally:
        run.postprocessing.write_text(kept)


def test_probabilities_lie_in_the_images_grid(folds: Path, machine: Machine, phantom: Path, tmp_path: Path) -> None:
    """Stored orientations differ from case to case; the likeliest channel is the label map's, voxel by voxel."""
    run = folds / "fold_1"
    asked = Inference(probabilities=True, cleanup=False)
    written = predict_files([run], phantom / "imagesTr", tmp_path, machine, inference=asked)
    assert json.loads((tmp_path / "probabilities" / "channels.json").read_text()) == [
        "background", "Anterior", "Posterior",
    ]  # fmt: skip
    plain = predict_files([run], phantom / "imagesTr", tmp_path / "plain", machine, inference=Inference(cleanup=False))
    seen = set()
    for path, alone in zip(written, plain, strict=True):
        probability, label_map = read_volume(tmp_path / "probabilities" / path.name), read_label_map(path)
        np.testing.assert_array_equal(label_map.array, read_label_map(alone).array)
        assert probability.grid.same_as(label_map.grid, 0)
        np.testing.assert_allclose(probability.array.sum(0), 1, atol=3e-5)
        own = np.take_along_axis(probability.array, label_map.array[None].astype(np.intp), 0)[0]
        assert (probability.array.max(0) - own).max() <= 2 / 65535
        seen.add(label_map.grid.orientation)
    assert len(seen) > 1
    assert not list((machine.cache / "passing").iterdir())


def test_the_command_takes_its_options(folds: Path, phantom: Path, tmp_path: Path) -> None:
    image = sorted((phantom / "imagesTr").iterdir())[0]
    common = ["predict", str(folds), str(image), "--cache", str(tmp_path / "cache"), "--offline", "--device", "cpu"]
    assert main([*common, "--out", str(tmp_path / "a"), "--memory-gb", "0.00001", "--no-cleanup"]) == 0
    assert main([*common, "--out", str(tmp_path / "b"), "--no-cleanup"]) == 0
    assert main([*common, "--out", str(tmp_path / "c"), "--probabilities", "--no-cleanup"]) == 0
    little, plain, _ = (read_label_map(tmp_path / name / image.name).array for name in "abc")
    np.testing.assert_array_equal(little, plain)
    assert (tmp_path / "c" / "probabilities" / image.name).exists()


@pytest.mark.parametrize("axes", [(), (0, 2)])
def test_mirror_images_are_shown_as_far_as_training_showed_them(
    folds: Path,
    machine: Machine,
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    axes: Sequence[int],
) -> None:
    run = RunFolder(shutil.copytree(folds / "fold_0", tmp_path / "run"))
    trained = read_experiment(run.config)
    augment = replace(trained.recipe.augment, mirror_axes=tuple(axes))
    write_experiment(replace(trained, recipe=replace(trained.recipe, augment=augment)), run.config)
    mirrored = load_segmenter([run.path], machine, Inference(mirror=True))
    assert [member.mirror for member in mirrored.members] == [tuple(axes)]
    assert [member.mirror for member in load_segmenter([run.path], machine).members] == [()]
    image = sorted((phantom / "imagesTr").iterdir())[0]
    typed = ["predict", str(run.path), str(image), "--cache", str(machine.cache), "--offline", "--device", "cpu"]
    for more in ([], ["--mirror"]):
        assert main([*typed, "--no-cleanup", "--out", str(tmp_path / "out" / str(len(more))), *more]) == 0
    told = capsys.readouterr().err
    assert told.count("never saw mirror images in training: it is shown none") == (not axes)
    plain, both = (read_label_map(tmp_path / "out" / name / image.name).array for name in "01")
    assert (plain != both).any() == bool(axes), "a network hardly trained answers mirror images otherwise"
