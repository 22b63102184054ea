"""The command line: exit codes, one message without a traceback, and what is printed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medvisionllama as mvl
from medvisionllama.cli import main
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import read_label_map, read_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.splits import make_splits, write_splits

pytestmark = pytest.mark.usefixtures("own_cache")
QUICK = ["--model", "vit-u", "--steps", "4", "--model.depth", "1", "--recipe.precision", "float32"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    return write_phantom_task(folder / "task", cases=8, settings=PhantomSettings(spacing_mm=(2.2, 2.8)))


@pytest.fixture(scope="module")
def run(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "vit-u"
    assert main(["train", str(phantom), "--run", str(folder), *QUICK]) == 0
    return folder


def test_the_whole_way(phantom: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(phantom)]) == 0
    assert main(["plan", str(phantom), "--out", str(tmp_path / "plan.json")]) == 0
    assert capsys.readouterr().out.count("mirrored along I, J, K; no pairs change sides\n") == 2
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads((run / "plan.json").read_text())
    assert main(["predict", str(run), "--part", "test"]) == 0
    assert main(["predict", str(run), str(phantom / "imagesTr"), "--out", str(tmp_path / "masks")]) == 0
    evaluated = ["evaluate", str(tmp_path / "masks"), str(phantom / "labelsTr"), "--out", str(tmp_path / "scores")]
    capsys.readouterr()
    assert main([*evaluated, "--tolerance-mm", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["classes"].keys() == {"Anterior", "Posterior"}
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["classes"] == printed["classes"]
    assert main(["report", str(run), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "index.html").exists()


@pytest.mark.parametrize("depth", [["--model.depth", "1"], ["--model.depth=1"]])
def test_a_dotted_setting_takes_its_own_value_wherever_it_stands(
    depth: list[str], phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", "vit-u", "--steps", "1", "--recipe.precision", "float32", "--recipe.validations", "0"]
    assert main(["train", *depth, str(phantom), "--run", str(tmp_path / "run"), *asked]) == 0
    assert "depth: 1\n" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        main(["check", *depth, str(phantom)])
    assert f"unrecognized arguments: {' '.join(depth)}" in capsys.readouterr().err


def test_what_evaluate_says_of_a_run_is_what_the_run_says(phantom: Path, run: Path, tmp_path: Path) -> None:
    """Two ways to the same scores: in memory after segmenting, and from the files afterwards."""
    part = run / "validation"
    references = tmp_path / "references"
    references.mkdir()
    for path in (part / "predictions").iterdir():
        (references / path.name).write_bytes((phantom / "labelsTr" / path.name).read_bytes())
    arguments = ["evaluate", str(part / "predictions"), str(references), "--out", str(tmp_path / "scores")]
    assert main([*arguments, "--dataset", str(phantom)]) == 0
    assert (tmp_path / "scores" / "scores.csv").read_text() == (part / "scores.csv").read_text()


def test_python_does_what_the_command_does(phantom: Path, run: Path, tmp_path: Path) -> None:
    image = sorted((phantom / "imagesTr").glob("*.nii.gz"))[0]
    assert main(["predict", str(run), str(image), "--out", str(tmp_path)]) == 0
    written = read_label_map(tmp_path / image.name)
    loaded = mvl.load(run)
    assert loaded.classes == {1: "Anterior", 2: "Posterior"}
    for given in (image, str(image), read_volume(image)):
        mask = loaded.segment(given)
        assert np.array_equal(mask.array, written.array)
    rows = mvl.score(written, phantom / "labelsTr" / image.name, tolerance_mm=1.0)
    assert {row.metric for row in rows} >= {"dice", "hd95_mm", "nsd"}


def test_json_is_one_object(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(phantom), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"cases", "errors", "notes"}
    assert main(["train", str(phantom), "--run", str(tmp_path / "r"), "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "vit-u"


def test_all_folds_are_trained_and_become_one_ensemble(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(phantom), "--run", str(tmp_path / "run"), "--fold", "all", *QUICK]) == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [f"fold_{n}" for n in range(5)]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--part", "test", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["test"]["cases"] >= 1, "folds are one ensemble, scored once"
    assert (tmp_path / "run" / "test" / "scores.csv").exists()
    assert len(mvl.load(tmp_path / "run").segmenter.members) == 5


def test_folds_not_begun_are_as_those_that_are(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [case.name for case in read_task(phantom).cases]
    write_splits(make_splits(names, seed=5, folds=2), tmp_path / "splits.json")
    begin = ["train", str(phantom), "--run", str(tmp_path / "run" / "fold_0"), "--seed", "3", *QUICK]
    assert main([*begin, "--splits", str(tmp_path / "splits.json")]) == 0
    go_on = ["train", str(phantom), "--run", str(tmp_path / "run"), "--fold", "all", "--resume"]
    fresh = tmp_path / "run" / "fold_1"
    (tmp_path / "other.json").write_text((tmp_path / "splits.json").read_text().replace('"seed": 5', '"seed": 6'))
    for other in (["--seed", "4"], ["--splits", str(tmp_path / "other.json")], ["--memory-gb", "2"]):
        assert main([*go_on, *other]) == 2
        assert not (fresh / "config.yaml").exists()
    assert main([*go_on, "--seed", "3"]) == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["fold_0", "fold_1"]
    first, second = ((tmp_path / "run" / f"fold_{n}" / "config.yaml").read_text() for n in range(2))
    assert first.replace("fold: 0", "fold: 1") == second
    assert (fresh / "splits.json").read_bytes() == (tmp_path / "run" / "fold_0" / "splits.json").read_bytes()
    # Begun by itself, a fold must be of its siblings' splits as well.
    lone = ["train", str(phantom), "--run", str(tmp_path / "run" / "fold_2"), *QUICK]
    capsys.readouterr()
    assert main(lone) == 2
    assert "other splits" in capsys.readouterr().err


BAD = {
    "a data set that is not there": ["check", "{tmp}/nothing"],
    "an empty folder": ["train", "{tmp}", "--run", "{tmp}/run"],
    "an unknown model": ["train", "{task}", "--run", "{tmp}/run", "--model", "vit-w"],
    "an unknown recipe": ["train", "{task}", "--run", "{tmp}/run", "--recipe", "nonsense"],
    "an unknown setting": ["train", "{task}", "--run", "{tmp}/run", "--model.depht", "3"],
    "a setting of another type": ["train", "{task}", "--run", "{tmp}/run", "--model.depth", "deep"],
    "a fold that is not there": ["train", "{task}", "--run", "{tmp}/run", "--fold", "9"],
    "a fraction of nothing": ["train", "{task}", "--run", "{tmp}/run", "--fraction", "0"],
    "a block for a network without one": ["train", "{task}", "--run", "{tmp}/run", "--model", "vit-u", "--block", "x"],
    "an occupied run folder": ["train", "{task}", "--run", "{run}"],
    "a device that is not there": ["predict", "{run}", "{task}", "--out", "{tmp}/o", "--device", "cuda:77"],
    "a device that computes nothing": ["predict", "{run}", "{task}", "--out", "{tmp}/o", "--device", "meta"],
    "going on with another data set": ["train", "{tmp}", "--run", "{unfinished}", "--resume"],
    "going on with another fold": ["train", "{task}", "--run", "{unfinished}", "--resume", "--fold", "2"],
    "a patch the window does not hold": [
        "train",
        "{task}",
        "--run",
        "{tmp}/run",
        "--model",
        "vit-baseline",
        "--model.patch_size",
        "[32,32,32]",
    ],
    "a start that is no run": ["train", "{task}", "--run", "{tmp}/run", "--init-from", "{task}"],
    "a page of a run's part": ["report", "{run}/validation", "--out", "{tmp}/o"],
    "a plan in another file's place": ["plan", "{task}", "--out", "{task}/dataset.json"],
    "a finished run with another fold": ["train", "{task}", "--run", "{run}", "--resume", "--fold", "1"],
    "a page of a folder that is no run": ["report", "{task}", "--out", "{tmp}/o"],
    "a run that is none": ["predict", "{task}", "{task}", "--out", "{tmp}/o"],
    "an input that is not there": ["predict", "{run}", "{tmp}/no.nii.gz", "--out", "{tmp}/o"],
    "predictions without --out": ["predict", "{run}", "{task}"],
    "missing predictions": ["evaluate", "{tmp}", "{task}/labelsTr", "--out", "{tmp}/o"],
    "a page of nothing": ["report", "{tmp}/nothing", "--out", "{tmp}/o"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_message_and_exit_2(
    arguments: list[str], phantom: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "summary.json").unlink()
    filled = [a.format(tmp=tmp_path, task=phantom, run=run, unfinished=unfinished) for a in arguments]
    assert main(filled) == 2
    told = capsys.readouterr()
    lines = told.err.strip().splitlines()
    assert lines[-1].startswith("medvisionllama: ")
    assert "Traceback" not in told.err
    assert len([line for line in lines if line.startswith("medvisionllama: ")]) == 1
    assert not (tmp_path / "run" / "config.yaml").exists(), "a run that cannot start leaves its folder free"


def test_an_unwritable_output_is_told(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["train", str(phantom), "--run", str(tmp_path / "file" / "run"), *QUICK]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "nothing"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "x", "--no-such-option"],
        ["train", "x", "--run", "y", "--max-minutes", "nan"],
        ["train", "x", "--run", "y", "--max-minutes", "-3"],
        ["demo", "--minutes", "nan"],
    ],
)
def test_bad_usage_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_help_and_import_take_nothing_heavy() -> None:
    """What makes them quick; the seconds themselves are in the benchmarks."""
    code = (
        "import sys, medvisionllama, medvisionllama.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch','numpy','scipy','rich','nibabel','transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "not a medical device" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_interrupting_exits_with_130(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import medvisionllama.run

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(medvisionllama.run, "train", interrupted)
    assert main(["train", str(phantom), "--run", str(tmp_path / "run"), *QUICK]) == 130


def test_a_networks_shape_and_its_blocks_are_faults_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "vit-u", "--input", "64,64"]) == 2
    assert "expected three sizes such as 64,64,40." in capsys.readouterr().err
    assert main(["models", "show", "medvisionllama", "--block", "someorg/some-bert"]) == 2
    told = capsys.readouterr().err
    assert "medvisionllama blocks fetch someorg/some-bert" in told
    assert "--input" not in told
    assert ".." not in told


def test_what_is_unknown_is_a_dash_and_a_list_no_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    from medvisionllama.commands.printing import print_object

    print_object({"hub_id": None, "gated": False, "width": 4096, "at_hand": ["a", "b"], "files": []}, False)
    values = [line[len("at hand  ") :] for line in capsys.readouterr().out.splitlines()]
    assert values == ["-", "no", "4,096", "a, b", "none"]


def test_splits_are_read_or_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_phantom_task(tmp_path / "task", cases=6)
    names = [f["image"] for f in json.loads((folder / "dataset.json").read_text())["training"]]
    names = [Path(name).name.removesuffix(".nii.gz") for name in names]
    write_splits(make_splits(names, seed=5), tmp_path / "splits.json")
    read = ["splits", str(folder), "--splits", str(tmp_path / "splits.json")]
    for drawn in (["--seed", "0"], ["--patient", "(.*)"]):
        assert main([*read, *drawn]) == 2
        assert "either read or drawn" in capsys.readouterr().err
    train = ["train", str(folder), "--run", str(tmp_path / "run"), "--splits", str(tmp_path / "splits.json")]
    assert main([*train, "--patient", "(.*)"]) == 2
    assert "either read or drawn" in capsys.readouterr().err
    assert main([*read, "--nnunet", str(tmp_path / "nn")]) == 0
    (final,) = tmp_path.glob("nn/nnUNet_preprocessed/*/splits_final.json")
    (raw,) = tmp_path.glob("nn/nnUNet_raw/*")
    # nnU-Net's own splits are read as they are: without its test part, the folder holds the folds' cases alone.
    capsys.readouterr()
    assert main(["splits", str(raw), "--splits", str(final)]) == 0
    assert "0 cases test" in capsys.readouterr().out
