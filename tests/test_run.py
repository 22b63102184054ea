"""One experiment from top to bottom, on a small generated task."""

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medvisionllama.config import Experiment, make_experiment, read_experiment
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import read_label_map, read_volume, write_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.plan import Plan, read_plan
from medvisionllama.data.planning import make_plan
from medvisionllama.data.splits import Splits
from medvisionllama.errors import InputError
from medvisionllama.held import sole_writer
from medvisionllama.listener import Silent
from medvisionllama.loading import Inference, load_member, load_segmenter
from medvisionllama.machine import Machine
from medvisionllama.predict import Look, Room, look_at_volumes
from medvisionllama.run import train_run
from medvisionllama.run_folder import RunFolder, read_scores
from medvisionllama.score_part import predict_part
from medvisionllama.segment import predict_files

SMALL = ("--model.depth", "1", "--recipe.validations", "2", "--recipe.precision", "float32")


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    return write_phantom_task(folder / "task", cases=8, settings=PhantomSettings(spacing_mm=(2.2, 2.8)))


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(torch.device("cpu"), tmp_path_factory.mktemp("cache"), offline=True, checkpoint_seconds=0.0)


def experiment(task: Path, model: str = "vit-u", steps: int = 20, **changes: Any) -> Experiment:
    return make_experiment(task, model=model, steps=steps, overrides=SMALL, **changes)


@pytest.fixture(scope="session")
def trained(phantom: Path, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "medvisionllama-u"
    train_run(experiment(phantom, "medvisionllama-u"), folder, machine, command=["medvisionllama", "train"])
    return folder


def test_a_run_leaves_what_the_contract_names(trained: Path) -> None:
    left = {path.name for path in trained.iterdir()}
    assert left == {
        "config.yaml", "plan.json", "splits.json", "log.jsonl", "model.safetensors", "environment.json",
        "summary.json", "postprocessing.json", "validation",
    }  # fmt: skip
    summary = json.loads((trained / "summary.json").read_text())
    assert {"model", "block", "seed", "steps", "seconds", "validation"} <= summary.keys()
    assert 0 <= summary["validation"]["dice_mean"] <= 1
    log = RunFolder(trained).read_log()
    assert [entry["step"] for entry in log] == [10, 20]
    assert all({"step", "seconds", "loss", "validation_dice", "block_norms"} <= entry.keys() for entry in log)
    assert all(entry["block_norms"]["entering"] > 0 < entry["block_norms"]["leaving"] for entry in log)
    rows = read_scores(trained / "validation" / "scores.csv")
    validated = json.loads((trained / "splits.json").read_text())["folds"][0]
    assert {row.case for row in rows} == set(validated)
    assert {row.class_name for row in rows} == {"Anterior", "Posterior"}


def test_files_hold_everything_but_the_block(trained: Path, machine: Machine) -> None:
    tensors = load_file(trained / "model.safetensors")
    model = load_member(trained, machine).model
    base = model.left_out_of_files()
    assert base
    assert tensors.keys() == model.state_dict().keys() - base
    for wanted in ("middle.mapper_in.weight", "middle.mapper_in.lora_b", "stem.stages.0.0.1.running_mean"):
        assert wanted in tensors, wanted
    size = sum(t.numel() for n, t in model.state_dict().items() if n in base) * 4
    assert (trained / "model.safetensors").stat().st_size < size, "the block alone is larger than the file"


def test_the_frozen_stay_bit_identical_and_the_trained_move(phantom: Path, trained: Path, machine: Machine) -> None:
    from medvisionllama.models.medvisionllama import build

    config = read_experiment(trained / "config.yaml")
    start, end = build(config.model, seed=config.seed).state_dict(), load_member(trained, machine).model.state_dict()
    frozen = {n for n, p in build(config.model).named_parameters() if not p.requires_grad}
    assert {"middle.mapper_in.weight", "middle.mapper_out.weight"} <= frozen
    assert all(torch.equal(start[name], end[name]) for name in frozen)
    moved = {n for n, t in end.items() if not torch.equal(start[n], t)}
    assert {"middle.mapper_in.lora_b", "decoder.logits.weight", "stem.stages.0.0.0.weight"} <= moved


@pytest.mark.parametrize("init", ["pretrained", "random", "random-matched", "shuffled"])
def test_a_block_is_named_by_hash_and_compared(phantom: Path, machine: Machine, tmp_path: Path, init: str) -> None:
    start = experiment(phantom, "medvisionllama", steps=1)
    block = replace(start.model.middle.block, init=init, seed=3)
    changed = replace(start, model=replace(start.model, middle=replace(start.model.middle, block=block)))
    train_run(changed, tmp_path / "run", machine)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["block"]["init"] == init
    assert len(summary["block"]["sha256"]) == 64
    load_member(tmp_path / "run", machine)

    # Another seed, or none at all, draws another block, and that is noticed.
    text = (tmp_path / "run" / "config.yaml").read_text()
    other = "init: shuffled" if init == "pretrained" else "seed: 4"
    was = "init: pretrained" if init == "pretrained" else "seed: 3"
    assert was in text
    (tmp_path / "run" / "config.yaml").write_text(text.replace(was, other))
    with pytest.raises(InputError, match=r"sha256|hash"):
        load_member(tmp_path / "run", machine)


def test_a_local_folder_gives_the_block(phantom: Path, machine: Machine, tmp_path: Path, real_data: Path) -> None:
    hashes = []
    for form in ("hf", "hf_sharded"):
        block = real_data / "weights" / "stories260K" / form
        run = tmp_path / form
        train_run(experiment(phantom, "medvisionllama-u", steps=2, block=str(block)), run, machine)
        hashes.append(json.loads((run / "summary.json").read_text())["block"]["sha256"])
        assert load_segmenter([run], machine).members
    assert hashes[0] == hashes[1], "plain and sharded hold the same weights"


class Stop(Silent):
    """Interrupts a training at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def training(self, entry: dict[str, Any], steps: int) -> None:
        if entry["step"] == self.step:
            raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("model", ["vit-baseline", "medvisionllama-u"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    model: str, phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    what = experiment(phantom, model, steps=40)
    train_run(what, tmp_path / "whole", machine)
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path / "broken", machine, listener=Stop(20))
    assert (tmp_path / "broken" / "checkpoint.safetensors").exists()
    train_run(what, tmp_path / "broken", machine, resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [RunFolder(tmp_path / name).read_log() for name in ("whole", "broken")]
    assert [e["step"] for e in logs[0]] == [e["step"] for e in logs[1]]
    assert [e["loss"] for e in logs[0]] == [e["loss"] for e in logs[1]]


def test_what_counts_when_a_run_begins_is_told_to_change_nothing_later(
    phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    told: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    with pytest.raises(KeyboardInterrupt):
        train_run(experiment(phantom, steps=20), tmp_path, machine, listener=Stop(10))
    train_run(None, tmp_path, machine, resume=True, max_minutes=1.0, memory_gb=1.0, listener=Notes())
    assert "change nothing" in told[0]
    assert read_experiment(tmp_path / "config.yaml").recipe.steps == 20


def test_a_finished_run_is_left_as_it_is(phantom: Path, trained: Path, machine: Machine) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    summary = train_run(None, trained, machine, resume=True)
    assert summary == json.loads((trained / "summary.json").read_text())
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_without_validation_part_is_left_as_it_is(
    phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    names = [case.name for case in read_task(phantom).cases]
    splits = Splits(0, (), ((), tuple(names)), {name: name for name in names})
    train_run(experiment(phantom, steps=2), tmp_path, machine, splits=splits)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train_run(None, tmp_path, machine, resume=True)["cases"]["validation"] == 0
    assert {path: path.read_bytes() for path in before} == before


def test_weights_that_were_scored_before_the_training_ended_are_trained_on(
    phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    slow = replace(machine, checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        train_run(experiment(phantom, steps=20), tmp_path, slow, listener=Stop(10))
    assert "validation" in predict_part(RunFolder(tmp_path), "validation", machine)
    assert train_run(None, tmp_path, machine, resume=True)["steps"] == 20


def test_killed_before_the_first_checkpoint_begins_again(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    what = experiment(phantom, steps=20)
    train_run(what, tmp_path / "whole", machine)
    slow = replace(machine, checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path / "broken", slow, listener=Stop(10))
    assert not (tmp_path / "broken" / "checkpoint.safetensors").exists()
    train_run(None, tmp_path / "broken", machine, resume=True)
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [e["step"] for e in RunFolder(tmp_path / "broken").read_log()] == [10, 20]


def test_killed_before_the_first_checkpoint_begins_again_from_another_run(
    phantom: Path, trained: Path, machine: Machine, tmp_path: Path
) -> None:
    what = experiment(phantom, steps=20, init_from=trained)
    train_run(what, tmp_path / "whole", machine)
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path / "broken", replace(machine, checkpoint_seconds=1e9), listener=Stop(10))
    (tmp_path / "broken" / "model.safetensors").unlink()  # of the validation at step 10
    train_run(None, tmp_path / "broken", machine, resume=True)
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_passes_while_validating_lies_in_the_cache(
    phantom: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Room] = []

    def look(*arguments: Any) -> Look:
        seen.append(arguments[-1])
        return look_at_volumes(*arguments)

    monkeypatch.setattr("medvisionllama.run.look_at_volumes", look)
    train_run(experiment(phantom, steps=2), tmp_path / "run", machine)
    assert seen == [Room(4.0, machine.cache / "passing")] * 2


def test_going_on_with_other_settings_is_refused(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    what = experiment(phantom, steps=20)
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path / "run", machine, listener=Stop(10))
    other = replace(what, seed=9, recipe=replace(what.recipe, learning_rate=0.5))
    with pytest.raises(InputError, match=r"seed 9 instead of 0.*learning_rate 0\.5"):
        train_run(other, tmp_path / "run", machine, resume=True)
    # What was not named is the run's own.
    train_run(other, tmp_path / "run", machine, resume=True, named=["dataset", "fold"])
    assert read_experiment(tmp_path / "run" / "config.yaml").seed == 0


def test_a_run_goes_on_where_its_data_lies_now(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    """Where files lie decides no result: another machine mounts them elsewhere."""
    what = experiment(phantom, steps=20)
    train_run(what, tmp_path / "whole", machine)
    old = Path(shutil.copytree(phantom, tmp_path / "old"))
    with pytest.raises(KeyboardInterrupt):
        train_run(replace(what, dataset=str(old)), tmp_path / "run", machine, listener=Stop(10))
    new = replace(what, dataset=str(old.rename(tmp_path / "new")))
    train_run(new, tmp_path / "run", machine, resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_scores(tmp_path / "run" / "validation" / "scores.csv")
    assert read_experiment(tmp_path / "run" / "config.yaml").dataset == new.dataset, "later commands look there"
    predict_part(RunFolder(tmp_path / "run"), "test", machine)
    (old.parent / "new" / "dataset.json").write_text(
        (phantom / "dataset.json").read_text().replace("phantom_000", "renamed")
    )
    with pytest.raises(InputError, match="renamed"):
        train_run(new, tmp_path / "run", machine, resume=True)


def test_a_run_does_not_go_on_with_other_voxels_of_the_same_names(
    phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    what = experiment(phantom, steps=20)
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path / "run", machine, listener=Stop(10))
    other = Path(shutil.copytree(phantom, tmp_path / "other"))
    trained_on = tmp_path / "run" / "splits.json"
    path = other / "imagesTr" / f"{json.loads(trained_on.read_text())['folds'][1][0]}.nii.gz"
    image = read_volume(path)
    write_volume(image.with_array(image.array + 1), path)
    with pytest.raises(InputError, match="have the names, but not the files"):
        train_run(replace(what, dataset=str(other)), tmp_path / "run", machine, resume=True)
    written = (tmp_path / "run" / "environment.json").read_bytes()
    (tmp_path / "run" / "checkpoint.safetensors").rename(tmp_path / "kept")  # killed before the first one
    with pytest.raises(InputError, match="have the names, but not the files"):
        train_run(replace(what, dataset=str(other)), tmp_path / "run", machine, resume=True)
    assert (tmp_path / "run" / "environment.json").read_bytes() == written, "what was refused has changed nothing"
    (tmp_path / "kept").rename(tmp_path / "run" / "checkpoint.safetensors")
    train_run(what, tmp_path / "run", machine, resume=True)


def test_folds_are_not_begun_with_other_files_of_the_same_names(
    phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    what = experiment(phantom, steps=2)
    train_run(what, tmp_path / "fold_0", machine)
    other = Path(shutil.copytree(phantom, tmp_path / "other"))
    splits = json.loads((tmp_path / "fold_0" / "splits.json").read_text())
    path = other / "imagesTr" / f"{splits['folds'][1][0]}.nii.gz"
    image = read_volume(path)
    write_volume(image.with_array(image.array + 1), path)
    with pytest.raises(InputError, match=r"not the files, of those that .*fold_0 began with"):
        train_run(replace(what, dataset=str(other), fold=1), tmp_path / "fold_1", machine)
    train_run(replace(what, dataset=str(other), fold=1), tmp_path / "elsewhere", machine)
    train_run(replace(what, fold=1), tmp_path / "fold_1", machine)


def test_a_run_keeps_the_command_that_began_it(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    what = experiment(phantom, steps=20)
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path / "run", machine, listener=Stop(10), command=["train", "--steps", "20"])
    summary = train_run(None, tmp_path / "run", machine, resume=True, command=["train", "--resume"])
    assert summary["command"] == "train --steps 20"
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["command"] == "train --steps 20"


def test_a_run_goes_on_with_its_block_in_another_folder(
    phantom: Path, machine: Machine, tmp_path: Path, real_data: Path
) -> None:
    blocks = {}
    for name in ("here", "there"):
        blocks[name] = Path(shutil.copytree(real_data / "weights" / "stories260K" / "hf", tmp_path / name))
    start, moved = (experiment(phantom, "medvisionllama", steps=20, block=str(b)) for b in blocks.values())
    with pytest.raises(KeyboardInterrupt):
        train_run(start, tmp_path / "run", machine, listener=Stop(10))
    shutil.rmtree(blocks["here"])
    with pytest.raises(InputError, match=r"folder .*here is not there\. .*--block"):
        train_run(start, tmp_path / "run", machine, resume=True)
    told = replace(machine, block_source=str(blocks["there"]))
    weights_file = next(blocks["there"].glob("*.safetensors"))
    kept = weights_file.read_bytes()
    save_file({n: t + 1 for n, t in load_file(weights_file).items()}, weights_file, {"format": "pt"})
    with pytest.raises(InputError, match="not the one that"):
        train_run(moved, tmp_path / "run", machine, resume=True)
    weights_file.write_bytes(kept)
    with pytest.raises(KeyboardInterrupt):
        train_run(moved, tmp_path / "run", machine, resume=True, listener=Stop(20))
    assert train_run(None, tmp_path / "run", told, resume=True)["steps"] == 20
    load_member(tmp_path / "run", machine)


def test_a_run_planned_for_a_memory_is_its_own_and_scored_within_it(
    phantom: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def part(*given: Any, inference: Inference, **named: Any) -> dict[str, Any]:
        seen.append(inference)
        return predict_part(*given, inference=inference, **named)

    monkeypatch.setattr("medvisionllama.run.predict_part", part)
    what = experiment(phantom, steps=2)
    train_run(what, tmp_path / "run", machine, memory_gb=0.3)
    assert read_plan(tmp_path / "run" / "plan.json").batch_size not in (None, what.recipe.batch_size)
    assert [inference.memory_gb < 0.3 for inference in seen] == [True]
    assert train_run(what, tmp_path / "run", machine, resume=True)["steps"] == 2, "asked for as it was begun"


def test_two_trainings_in_one_folder_are_refused(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    what = experiment(phantom, steps=20)
    with sole_writer(tmp_path), pytest.raises(InputError, match=r"another process is writing in .*Wait for it"):
        train_run(what, tmp_path, machine)
    assert not list(tmp_path.iterdir()), "what was refused has left nothing"
    with pytest.raises(KeyboardInterrupt):
        train_run(what, tmp_path, machine, listener=Stop(10))
    assert not list(tmp_path.glob("*.lock")) + list(tmp_path.glob(".*lock"))
    train_run(what, tmp_path, machine, resume=True)


def test_what_another_trained_meanwhile_is_not_written_over(
    phantom: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning takes a while, and what it was planned by may change until the folder is this process's own."""
    what = experiment(phantom, steps=2)

    def another_first(*given: Any, **named: Any) -> Plan:
        monkeypatch.undo()
        train_run(replace(what, seed=1), tmp_path / "run", machine)
        return make_plan(*given, **named)

    monkeypatch.setattr("medvisionllama.run_setup.make_plan", another_first)
    with pytest.raises(InputError, match="another process has trained in"):
        train_run(what, tmp_path / "run", machine)
    assert read_experiment(tmp_path / "run" / "config.yaml").seed == 1


def test_another_seed_gives_other_weights(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    """Negative control of the one above."""
    for seed in (0, 1):
        train_run(experiment(phantom, steps=2, seed=seed), tmp_path / str(seed), machine)
    a, b = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_an_occupied_folder_is_refused(phantom: Path, trained: Path, machine: Machine) -> None:
    before = (trained / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        train_run(experiment(phantom), trained, machine)
    assert (trained / "model.safetensors").read_bytes() == before


def test_files_are_segmented_in_their_own_grid(phantom: Path, trained: Path, machine: Machine, tmp_path: Path) -> None:
    written = predict_files([trained], phantom / "imagesTr", tmp_path / "out", machine)
    images = sorted((phantom / "imagesTr").glob("*.nii.gz"))
    assert [path.name for path in written] == [path.name for path in images]
    for image, mask in zip(images, written, strict=True):
        a, b = read_volume(image), read_label_map(mask)
        assert a.array.shape == b.array.shape
        assert np.array_equal(a.affine, b.affine)
        assert set(np.unique(b.array)) <= {0, 1, 2}


def test_an_image_is_never_overwritten_by_its_label_map(
    phantom: Path, trained: Path, machine: Machine, tmp_path: Path
) -> None:
    image = sorted((phantom / "imagesTr").glob("*.nii.gz"))[0]
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(image.read_bytes())
    for source in (scan, tmp_path):
        with pytest.raises(InputError, match="would be overwritten"):
            predict_files([trained], source, tmp_path, machine)
    assert scan.read_bytes() == image.read_bytes()


def test_files_of_one_name_and_two_endings_get_a_mask_each(
    phantom: Path, trained: Path, machine: Machine, tmp_path: Path
) -> None:
    first, second = sorted((phantom / "imagesTr").glob("*.nii.gz"))[:2]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(first.read_bytes())
    (tmp_path / "in" / "a.nii").write_bytes(gzip.decompress(second.read_bytes()))
    written = predict_files([trained], tmp_path / "in", tmp_path / "out", machine)
    assert {path.name for path in written} == {"a.nii", "a.nii.gz"}
    with pytest.raises(InputError, match=r"holds a case twice, as \.nii and \.nii\.gz"):
        predict_files([trained], tmp_path / "in", tmp_path / "out", machine, inference=Inference(probabilities=True))
    shapes = {path.name: read_volume(path).array.shape for path in written}
    assert shapes == {"a.nii.gz": read_volume(first).array.shape, "a.nii": read_volume(second).array.shape}


@pytest.mark.parametrize(("protocol", "recipe"), [("native", "paper-v2"), ("paper", "native")])
def test_a_loss_that_does_not_fit_the_output_is_refused(
    protocol: str, recipe: str, phantom: Path, machine: Machine, tmp_path: Path
) -> None:
    what = make_experiment(phantom, model="vit-baseline", steps=2, protocol=protocol, recipe=recipe, grid=16)
    with pytest.raises(InputError, match="loss"):
        train_run(what, tmp_path / "run", machine)


def test_a_moved_block_is_named_anew(phantom: Path, machine: Machine, tmp_path: Path, real_data: Path) -> None:
    source = real_data / "weights" / "stories260K" / "hf"
    shutil.copytree(source, tmp_path / "here")
    train_run(experiment(phantom, "medvisionllama", steps=1, block=str(tmp_path / "here")), tmp_path / "run", machine)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(InputError, match=r"run cannot be loaded.*--block"):
        load_member(tmp_path / "run", machine)
    load_member(tmp_path / "run", replace(machine, block_source=str(tmp_path / "there")))


def test_a_run_starts_from_another(phantom: Path, trained: Path, machine: Machine, tmp_path: Path) -> None:
    """With no step to speak of, the start is what is left: the other run's, where it fits."""
    told: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    overrides = (*SMALL, "--recipe.learning_rate", "1e-12", "--model.width", "64")
    what = make_experiment(phantom, model="vit-u", steps=1, init_from=trained, overrides=overrides)
    train_run(what, tmp_path / "run", machine, listener=Notes())
    start, end = weights(trained), weights(tmp_path / "run")
    kept = {n for n in end if n in start and start[n].shape == end[n].shape and "running" not in n and "num_" not in n}
    assert "stem.stages.0.0.0.weight" in kept
    assert "encoder.0.attention.qkv.weight" not in kept, "another width does not fit"
    for name in kept:
        torch.testing.assert_close(end[name], start[name], atol=1e-9, rtol=0)
    assert " tensors start from " in told[0]


def test_a_full_disk_keeps_the_old_picture(
    phantom: Path, trained: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    pictures = {path: path.read_bytes() for path in (trained / "validation" / "pictures").iterdir()}
    monkeypatch.setattr("numpy.savez_compressed", full)
    with pytest.raises(InputError, match="No space left"):
        predict_part(RunFolder(trained), "validation", machine)
    assert {path: path.read_bytes() for path in pictures} == pictures


def test_one_bad_file_does_not_stop_the_others(phantom: Path, trained: Path, machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    good = sorted((phantom / "imagesTr").glob("*.nii.gz"))[0]
    (source / good.name).write_bytes(good.read_bytes())
    (source / "broken.nii.gz").write_bytes(good.read_bytes()[:500])
    with pytest.raises(InputError, match=r"broken\.nii\.gz") as caught:
        predict_files([trained], source, tmp_path / "out", machine)
    assert "1 of 2" in str(caught.value)
    assert (tmp_path / "out" / good.name).exists()


def test_the_test_part_is_scored_when_asked(trained: Path, machine: Machine) -> None:
    assert not (trained / "test").exists()
    summary = predict_part(RunFolder(trained), "test", machine)
    assert {"validation", "test"} <= summary.keys()
    tests = json.loads((trained / "splits.json").read_text())["test"]
    assert {row.case for row in read_scores(trained / "test" / "scores.csv")} == set(tests)


def test_the_paper_protocol_is_scored_on_both_grids(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    what = experiment(phantom, "medvisionllama", steps=4, protocol="paper", grid=16)
    assert what.recipe_name == "paper-v2"
    train_run(what, tmp_path / "run", machine)
    case = read_task(phantom).cases[0]
    for grid in ("native", "model"):
        part = tmp_path / "run" / "validation" / grid
        rows = read_scores(part / "scores.csv")
        assert {row.class_name for row in rows} == {"foreground"}
        shapes = {read_label_map(path).array.shape for path in (part / "predictions").iterdir()}
        assert (shapes == {(16, 16, 16)}) == (grid == "model")
    assert read_volume(case.image).array.shape != (16, 16, 16)


def test_minutes_become_steps_that_are_stored(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    told: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    summary = train_run(experiment(phantom), tmp_path / "run", machine, max_minutes=0.02, listener=Notes())
    assert read_experiment(tmp_path / "run" / "config.yaml").recipe.steps == summary["steps"] >= 1
    assert any("steps in" in text for text in told)


def test_few_shot_trains_on_a_part_of_the_training_part(phantom: Path, machine: Machine, tmp_path: Path) -> None:
    whole = train_run(experiment(phantom, steps=1), tmp_path / "whole", machine)
    part = train_run(experiment(phantom, steps=1, fraction=0.3), tmp_path / "part", machine)
    assert part["cases"]["training"] < whole["cases"]["training"]
    assert part["cases"]["validation"] == whole["cases"]["validation"]


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.yaml", ("format: 1", "format: 99"), "another version"),
        ("plan.json", ('"format": 1', '"format": 99'), "another version"),
        ("config.yaml", ("depth:", "depht:"), "not understood"),
    ],
)
def test_another_version_is_told(
    name: str, change: Sequence[str], told: str, trained: Path, machine: Machine, tmp_path: Path
) -> None:
    for file in ("config.yaml", "plan.json", "splits.json", "model.safetensors"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    text = (tmp_path / name).read_text()
    assert change[0] in text
    (tmp_path / name).write_text(text.replace(*change))
    with pytest.raises(InputError, match=told):
        load_member(tmp_path, machine)


def test_weights_that_do_not_fit_are_told(trained: Path, machine: Machine, tmp_path: Path) -> None:
    for file in ("config.yaml", "plan.json"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())
    tensors = weights(trained)
    tensors["decoder.logits.weight"] = tensors["decoder.logits.weight"][:1].clone()
    from safetensors import safe_open

    with safe_open(trained / "model.safetensors", framework="pt") as file:
        save_file(tensors, tmp_path / "model.safetensors", file.metadata())
    with pytest.raises(InputError, match=r"decoder\.logits\.weight"):
        load_member(tmp_path, machine)
