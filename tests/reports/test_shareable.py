"""A page tells names, and none of the folders of the machine it was made on."""

import shutil
from pathlib import Path

import pytest
from page_reader import Page
from run_maker import make_run

from medvisionllama.reports.page import write_page
from medvisionllama.reports.shareable import shareable, shareable_command
from medvisionllama.run_folder import read_json, write_json

COMMANDS = {
    "train /home/me/data/Task04_Hippocampus --run /scratch/me/first --seed 0": (
        "train DATA/Task04_Hippocampus --run runs/first --seed 0"
    ),
    "train --run=/a/b/first ~/data/T --splits /x/s.json": "train --run=runs/first DATA/T --splits s.json",
    r"train 'C:\Users\me\Task 04' --run 'D:\runs\first'": "train 'DATA/Task 04' --run runs/first",
    "train ../patients/Task04 --run runs/first": "train DATA/Task04 --run runs/first",
    "train DATA/T --block /models/llama --init-from /old/run": "train DATA/T --block llama --init-from run",
    "train data/Task04 --run runs/first --recipe.lr 1e-3": "train data/Task04 --run runs/first --recipe.lr 1e-3",
    "train 'a quote that never closes /home/me/x": "train 'a quote that never closes x",
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_command_keeps_its_names_and_loses_its_folders(typed: str) -> None:
    shown = shareable_command(f"medvisionllama {typed}")
    assert shown == f"medvisionllama {COMMANDS[typed]}"
    assert shareable_command(shown) == shown


def test_sentences_lose_folders_and_keep_the_runs_name() -> None:
    run = Path("/home/me/My Runs/first")
    said = shareable(f"cannot read {run}/validation/pictures/a.npz: got /usr/lib/x.so", [run])
    assert said == "cannot read first/validation/pictures/a.npz: got x.so"
    for innocent in ("3/4 of 12/13, and/or", "https://arxiv.org/abs/2410.02458", "a / b", "train --resume"):
        assert shareable(innocent) == innocent


def test_a_page_of_a_private_run_names_no_folder(tmp_path: Path) -> None:
    """Whatever speaks of a path: the command, a broken file, a block from a folder, runs that look alike."""
    secret = tmp_path / "mr-john-doe"
    runs = [make_run(secret / name / "run", cases=2, model="m") for name in ("one", "two")]
    for run in runs:
        summary = read_json(run / "summary.json")
        summary["command"] = f"medvisionllama train {secret}/Task04 --run {run}"
        summary["block"]["id"] = f"{secret}/llama"
        write_json(run / "summary.json", summary)
    (runs[0] / "environment.json").write_text("{torn")
    next((runs[0] / "validation" / "pictures").iterdir()).write_bytes(b"torn")
    (runs[1] / "validation" / "summary.json").write_text("{torn")
    out = write_page(runs, tmp_path / "out")
    page = Page(out)
    assert "environment.json is not JSON" in page.text, "the gap itself is told"
    assert "medvisionllama train DATA/Task04 --run runs/run" in page.text
    assert "one/run" in page.text
    assert "two/run" in page.text
    assert "mr-john-doe" not in page.source
    assert str(tmp_path) not in page.source
    for path in out.parent.rglob("*.svg"):
        assert "mr-john-doe" not in path.read_text(encoding="utf-8")


def test_one_run_named_twice_is_told_apart_by_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=1, pictures=False)
    shutil.copytree(run, tmp_path / "else" / "run")
    assert "medvisionllama-u, 2" in Page(write_page([run, run], tmp_path / "a")).text
    assert "else/run" in Page(write_page([run, tmp_path / "else" / "run"], tmp_path / "b")).text
