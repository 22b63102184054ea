"""Each broken input, listed in a temporary copy of a real task, is one message that names it (real data)."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medvisionllama.cli import main

CASES = tuple(f"hippocampus_{number}" for number in ("001", "003", "004", "006", "008"))


@pytest.fixture
def task(real_data: Path, tmp_path: Path) -> Path:
    """Five real cases of Task04 in a folder that may be spoilt."""
    source, copy = real_data / "Task04_Hippocampus", tmp_path / "Task04_Hippocampus"
    description = json.loads((source / "dataset.json").read_text())
    for part in ("imagesTr", "labelsTr"):
        (copy / part).mkdir(parents=True)
        for name in CASES:
            (copy / part / f"{name}.nii.gz").write_bytes((source / part / f"{name}.nii.gz").read_bytes())
    description["training"] = [entry(name) for name in CASES]
    description["numTraining"] = len(CASES)
    (copy / "dataset.json").write_text(json.dumps(description))
    return copy


def entry(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def listed(task: Path, name: str) -> None:
    path = task / "dataset.json"
    description = json.loads(path.read_text())
    description["training"].append(entry(name))
    path.write_text(json.dumps(description))


def changed(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(array, image.affine, dtype=array.dtype), path)


def nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[5, 5, 5] = np.nan
    return array


def foreign_label(array: np.ndarray) -> np.ndarray:
    array[5, 5, 5] = 9
    return array


def spoil(task: Path, fault: str, bad: Path) -> str:
    """Spoil the task; returns the case that must be named."""
    name = CASES[0]
    image, label = (task / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
    if fault in ("118", "010", "281"):
        name = f"hippocampus_{fault}"
        for part in ("imagesTr", "labelsTr"):
            if (bad / part / f"{name}.nii.gz").exists():
                (task / part / f"{name}.nii.gz").write_bytes((bad / part / f"{name}.nii.gz").read_bytes())
        listed(task, name)
    elif fault == "281 beside an image":
        label.write_bytes((bad / "labelsTr" / "hippocampus_281.nii.gz").read_bytes())
    elif fault == "another grid":
        changed(label, lambda a: a[:-1])
    elif fault == "NaN":
        changed(image, nan)
    elif fault == "truncated":
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    elif fault == "not gzip":
        image.write_bytes(gzip.decompress(image.read_bytes())[:200])
    elif fault == "4-D":
        changed(image, lambda a: np.stack([a, a], axis=-1))
    elif fault == "label values":
        changed(label, foreign_label)
    return name


FAULTS = (
    "118",
    "010",
    "281",
    "281 beside an image",
    "another grid",
    "NaN",
    "truncated",
    "not gzip",
    "4-D",
    "label values",
)


@pytest.mark.real_data
@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_named_and_nothing_is_lost(
    fault: str, task: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = spoil(task, fault, real_data / "bad_inputs")
    before = {path: path.read_bytes() for path in task.rglob("*") if path.is_file()}

    assert main(["check", str(task), "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert {error["case"] for error in errors} == {name}
    assert all(name in error["file"] and error["fault"] and error["mend"] for error in errors)

    arguments = ["train", str(task), "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    # With a case to spare for each fold and none for the test, the spoilt one is always looked at.
    assert main([*arguments, "--model", "vit-u", "--steps", "2", "--splits", str(splits(task, tmp_path))]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("medvisionllama: ")
    assert name in told
    assert before == {path: path.read_bytes() for path in task.rglob("*") if path.is_file()}


def splits(task: Path, folder: Path) -> Path:
    names = [
        Path(e["image"]).name.removesuffix(".nii.gz")
        for e in json.loads((task / "dataset.json").read_text())["training"]
    ]
    path = folder / "splits.json"
    path.write_text(json.dumps({"seed": 0, "test": [], "folds": [[names[1]], [n for n in names if n != names[1]]]}))
    return path


@pytest.mark.real_data
def test_the_unspoilt_copy_passes(task: Path, tmp_path: Path) -> None:
    """Negative control: the same calls on the same cases, none of them spoilt."""
    assert main(["check", str(task)]) == 0
    arguments = ["train", str(task), "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--model", "vit-u", "--steps", "2", "--splits", str(splits(task, tmp_path))]) == 0


@pytest.mark.real_data
def test_check_passes_every_real_set_and_tells_its_oddities(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What data/README.md says of each set is told as a note; nothing is called an error."""
    told = {}
    for path in sorted(real_data.glob("*/dataset.json")):
        assert main(["check", str(path.parent), "--json"]) == 0, path
        told[path.parent.name] = " | ".join(json.loads(capsys.readouterr().out)["notes"])
    assert "hippocampus_003" in told["Task04_Hippocampus"]
    assert "float32" in told["Task04_Hippocampus"]
    assert "origin" in told["Task04_Hippocampus"]
    assert "LPS" in told["BraTS2013_2ch"]
    assert "background" in told["BraTS2013_2ch"]
