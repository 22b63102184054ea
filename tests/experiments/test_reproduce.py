"""What ``reproduce`` is asked: refused where it cannot be meant, forecast, cut, and told again as a command."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medvisionllama.cli import main
from medvisionllama.commands import reproduce as command
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import write_label_map
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.experiments import reproduction
from medvisionllama.experiments.paper_tables import TABLES
from medvisionllama.experiments.pretraining import Scope, planned_places
from medvisionllama.experiments.reproduction import Reproduction
from medvisionllama.experiments.request import Request, sound
from medvisionllama.experiments.retold import command_of, study_commands
from medvisionllama.experiments.rows import read_row
from medvisionllama.experiments.suite import Walked
from medvisionllama.language.catalog import CATALOG
from medvisionllama.language.store import ModelStore
from medvisionllama.run_folder import write_json
from tests.experiments.row_maker import content_of, make_row, write_row
from tests.language.tiny_models import full_model

Ask = Callable[..., Request]


@pytest.fixture
def ask(phantom: Path, tmp_path: Path) -> Ask:
    def request(table: str = "v2-T2", **given: Any) -> Request:
        own = {"tasks": (phantom,), "out": tmp_path, "work": tmp_path / "runs"}
        return Request(table, **(own | {"steps": 3, "blocks": (("minilm-l6",) * 2,)} | given))

    return request


STUDY = "does-pretraining-matter"
REFUSED = [
    ("v2-T2", {"folds": (9,)}, "no such fold: got 9, expected 0 to"),
    ("v2-T2", {"fractions": (1.5, 0.0)}, "share of the training part: got 1.5, 0"),
    ("v2-T2", {"limit": -1}, "--limit -1: expected whole numbers from 0"),
    ("v2-T2", {"grid": 17}, "on a grid of 17: got .*multiple"),
    ("v2-T2", {"blocks": (("llama-3.1-8", "minilm-l6"),)}, "no language model 'llama-3.1-8'.*expected llama-3.1-8b"),
    ("v2-T6", {"blocks": (("biogpt", "minilm-l6"),)}, "v2-T6 has no language model 'biogpt' .*expected llama-3.1-8b"),
    ("v2-F5", {"blocks": (("bio-gpt", "minilm-l6"),)}, "expected .*biobert, biogpt, clinicalbert"),
    ("v2-T2", {"blocks": (("minilm-l7", "minilm-l7"),)}, "there is no language model 'minilm-l7'"),
    ("v2-T2", {"blocks": (("a", "minilm-l6"), ("a", "minilm-l6"))}, "named twice|no language model"),
    ("v2-T2", {"middles": ("none",), "loras": ("both",)}, "--middles, --lora is of does-pretraining-matter, not of v2"),
    ("v2-T2", {"recipe": "nosuch"}, "nosuch"),
    (STUDY, {"grid": 64, "folds": (0,), "recipe": "x"}, "--grid, --folds, --recipe is of the papers' tables"),
    (STUDY, {"predictions": (("x", Path("x")),)}, "--predictions is of the papers' tables"),
    ("v2-T1", {"predictions": (("x", Path("x")),), "blocks": ()}, "no program.s predictions have a place in it"),
    (STUDY, {"middles": ("nosuch",)}, "no such cell in the study"),
    (STUDY, {"networks": ("unet",)}, "no such cell in the study: got unet"),
    ("v2-T2", {"device": "cuda:7x"}, "no device is called 'cuda:7x'"),
    ("v2-T2", {"device": "cuda:200"}, "no device is called 'cuda:200'"),
    (STUDY, {"blocks": (("a/b", "minilm-l6"),)}, "part of its files' names: got --block a/b=minilm-l6"),
    (STUDY, {"blocks": (("", "minilm-l6"),)}, "expected LABEL=SOURCE, a LABEL without slashes"),
]


@pytest.mark.parametrize(("table", "given", "told"), REFUSED)
def test_what_cannot_be_meant_is_refused_at_once(ask: Ask, table: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Reproduction(ask(table, **given), may_lack_tasks=True).forecast()


@pytest.mark.parametrize(("worker", "workers"), [(-1, 3), (5, 3), (1, 1)])
def test_a_worker_is_one_of_the_workers(
    worker: int, workers: int, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "v2-T2", "--tasks", str(phantom), "--out", str(tmp_path), "--limit", "0"]
    assert main([*command, f"--worker={worker}", "--workers", str(workers)]) == 2
    assert f"--worker {worker} of --workers {workers}" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["x", "=x", "x="])
def test_predictions_need_name_and_folder(typed: str, phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "v2-T2", "--tasks", str(phantom), "--predictions", typed]) == 2
    assert f"--predictions {typed}: expected NAME=FOLDER" in capsys.readouterr().err


def test_two_tasks_of_one_name_are_refused(ask: Ask, phantom: Path, tmp_path: Path) -> None:
    twin = write_phantom_task(tmp_path / "twin", cases=5, settings=PhantomSettings(spacing_mm=(5.0, 6.0)))
    with pytest.raises(InputError, match="two tasks are called Phantom"):
        Reproduction(ask(tasks=(phantom, twin)))


def test_a_grid_that_fits_no_network_ends_a_dry_run_with_2(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["reproduce", "v2-T2", "--tasks", str(phantom), "--out", str(tmp_path), "--grid", "17", "--dry-run"]
    assert main(typed) == 2
    assert "grid of 17" in capsys.readouterr().err


def test_predictions_are_looked_at_before_anything_is_trained(
    ask: Ask, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "launch", lambda *given: pytest.fail("trained first"))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with pytest.raises(InputError, match="holds no label map"):
        Reproduction(ask(predictions=(("theirs", theirs),)))
    for case in read_task(phantom).cases:
        label = case.read_label()
        write_label_map(label.with_array(label.array * 4), theirs / f"{case.name}.nii.gz")
    with pytest.raises(InputError, match="not the task's"):
        Reproduction(ask(predictions=(("theirs", theirs),))).measure("local", 1)
    with pytest.raises(InputError, match="has a row 'MedVisionLlama' of its own"):
        Reproduction(ask(predictions=(("MedVisionLlama", theirs),)))
    with pytest.raises(InputError, match="named twice: got theirs"):
        sound(ask(predictions=(("theirs", theirs), ("theirs", phantom))))


def test_one_folder_under_several_labels_is_one_cell(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    full_model("llama").save_pretrained(folder)
    labels = ("gemma-2-9b", "llama-3.1-8b", "mistral-7b")
    asked = Reproduction(ask("v1-T4", blocks=tuple((label, str(folder)) for label in labels)))
    assert len(asked.labelled) == 6
    assert len(asked.work().cells) == 4
    shared = {x.printed: x.cell.key for x in asked.labelled}
    assert shared["ViT + Gemma"] == shared["ViT + Llama"] == shared["ViT + Mistral"]


def test_a_study_calls_a_language_model_without_label_by_its_folder_or_hub_id(ask: Ask, tmp_path: Path) -> None:
    folder, other = tmp_path / "tiny" / "hf", tmp_path / "other" / "hf"
    for each in (folder, other):
        full_model("llama").save_pretrained(each)
    hub = "someorg/some-bert"
    asked = sound(ask(STUDY, blocks=((str(folder),) * 2, (hub, hub), ("new", str(other)))))
    assert asked.blocks == (("hf", str(folder)), ("someorg~some-bert", hub), ("new", str(other)))
    told = shlex.split(command_of(asked))
    assert "someorg~some-bert=someorg/some-bert" in told
    assert [word for word in told if word.startswith("hf=DATA/") and word.endswith("/tiny/hf")]
    with pytest.raises(InputError, match="named twice: got hf"):
        sound(ask(STUDY, blocks=((str(folder),) * 2, (str(other),) * 2)))


def test_the_study_runs_from_end_to_end_on_a_folder_without_a_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, folder, out = tmp_path / "ph", tmp_path / "tiny" / "hf", tmp_path / "out"
    write_phantom_task(task, cases=5, settings=PhantomSettings(spacing_mm=(5.0, 6.0)))
    full_model("llama").save_pretrained(folder)
    typed = ["reproduce", STUDY, "--tasks", str(task), "--block", str(folder), "--out", str(out), "--steps", "2"]
    typed += ["--networks", "medvisionllama-u", "--middles", "none", "pretrained", "--fractions", "1", "--seeds", "0"]
    assert main([*typed, "--threads", "1", "--device", "cpu", "--offline"]) == 0
    rows = sorted((out / "rows").rglob("*.json"))
    assert [path.parent for path in rows] == [out / "rows"] * 2
    measured = [read_row(path) for path in rows]
    assert {row.block for row in measured} == {"", "hf"}
    assert all(math.isfinite(row.parts["test"].mean("dice")) for row in measured)
    assert not [path.name for path in rows if str(tmp_path) in path.read_text()]
    page = (out / f"{STUDY}.md").read_text()
    assert "hf" in page
    assert str(tmp_path) not in page
    differences = list(csv.DictReader((out / f"{STUDY}.csv").open()))
    assert [row for row in differences if "hf" in row.values()]
    capsys.readouterr()
    assert main([*typed, "--dry-run"]) == 0
    assert "2 cells, 0 to do" in capsys.readouterr().out


def test_a_hub_id_of_the_catalog_is_its_name(ask: Ask) -> None:
    keys = [
        [x.cell.key for x in Reproduction(ask("v2-T2", blocks=((name, name),))).labelled]
        for name in ("minilm-l6", "sentence-transformers/all-MiniLM-L6-v2")
    ]
    assert keys[0] == keys[1]


def test_a_limit_moves_on(ask: Ask, tmp_path: Path) -> None:
    cells = Reproduction(ask("v2-T6")).work().cells
    assert len(cells) == 4
    for cell in cells[:2]:
        make_row(cell, tmp_path / "rows", {"test/native": [0.5]})
    assert Reproduction(ask("v2-T6", limit=1)).work().cells == cells[:3]
    assert Reproduction(ask("v2-T6", limit=0)).work().cells == cells[:2]


def test_a_task_that_is_not_here_is_listed_with_its_download(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "data" / "Task02_Heart"
    typed = ["reproduce", "v2-T2", "--tasks", str(phantom), str(lost), "--out", str(tmp_path), "--grid", "32"]
    typed += ["--block", "minilm-l6"]
    assert main([*typed, "--steps", "3", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"missing task  Task02_Heart: medvisionllama download Task02_Heart --to {lost.parent} (its 2 cells" in told
    assert told.count("missing task  Task02_Heart") == 1
    assert "2 cells, 2 to do" in told
    assert main([*typed, "--limit", "0"]) == 2


@pytest.mark.parametrize("table", ["v2-T6", STUDY])
def test_a_language_model_of_unknown_shape_is_listed_with_its_fetch(
    table: str, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["reproduce", table, "--tasks", str(phantom), "--out", str(tmp_path), "--steps", "3", "--dry-run"]
    typed += ["--block", "someorg/some-bert", "--cache", str(tmp_path / "cache")]
    of_the_study = ["--seeds", "0", "--fractions", "1", "--middles", "none", "identity"]
    typed += of_the_study if table == STUDY else ["--grid", "32"]
    assert main(typed) == 0
    told = capsys.readouterr().out
    unknown = 2 if table == STUDY else 4  # around `none` there is nothing to know
    assert "4 cells, 4 to do: about " in told
    assert f"of these {unknown} around a language model whose shape is not known here" in told
    assert ("(nothing to count)" in told) == (table != STUDY)
    assert "prepared cases 0 GB" not in told  # which no language model decides
    assert "missing weights  someorg/some-bert: medvisionllama blocks fetch someorg/some-bert" in told
    assert ".." not in told
    store = ModelStore(tmp_path / "cache", "someorg/some-bert")  # one layer fetched, though not the one wanted
    store.remember("main", "0" * 40)
    write_json(store.at("0" * 40) / "config.json", dict(CATALOG["minilm-l6"].numbers))
    assert main(typed) == 0
    told = capsys.readouterr().out
    assert "counted operations" in told
    assert "shape is not known" not in told
    assert ("missing weights  someorg/some-bert" in told) == (table != STUDY)  # mappers alone need a width only


def test_disk_follows_the_task(ask: Ask, tmp_path: Path) -> None:
    small = Reproduction(ask("v2-T2", grid=32)).forecast()
    fine = write_phantom_task(tmp_path / "fine", cases=8, settings=PhantomSettings(spacing_mm=(1.3, 1.5)))
    large = Reproduction(ask("v2-T2", grid=32, tasks=(fine,))).forecast()
    assert large.gigabytes > small.gigabytes
    assert large.prepared_gigabytes == small.prepared_gigabytes == pytest.approx(8 * 32**3 * 5 / 1e9)
    assert small.fetched_gigabytes == 0
    theirs = Reproduction(replace(ask(blocks=(("biobert",) * 2,), grid=32), cache=tmp_path / "empty")).forecast()
    assert theirs.fetched_gigabytes == pytest.approx(CATALOG["biobert"].layer_bytes / 1e9)


def test_the_pace_is_the_median_of_rows(ask: Ask, tmp_path: Path) -> None:
    request = ask("v2-T6", seeds=(0, 1, 2))
    for x in Reproduction(request).labelled:
        path = make_row(x.cell, tmp_path / "rows", {"test/native": [0.5]})
        content = content_of(x.cell, {"test/native": [0.5]}) | {"training_seconds": (3.0, 3.6, 90.0)[x.cell.seed]}
        write_row(content, tmp_path / "rows" / f"{path.name}.json")
        assert read_row(tmp_path / "rows" / f"{path.name}.json").seconds == content["training_seconds"]
    longer = Reproduction(replace(request, seeds=(0,), steps=1000)).forecast()
    assert longer.hours == pytest.approx(4 * 1000 * 3.6 / 3 / 3600)


def test_a_command_is_told_as_it_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Request(
        "v2-T2", (Path("ph"),), Path("some/where"), Path("runs"), threads=1, predictions=(("x y", Path("their maps")),)
    )
    told = command_of(asked)
    assert shlex.split(told)[1:] == [
        *("reproduce", "v2-T2", "--tasks", "ph", "--predictions", "x y=their maps", "--threads", "1"),
        *("--out", "some/where", "--work", "runs"),
    ]
    here = tmp_path / "checkout"
    (here / ".git").mkdir(parents=True)
    absolute = replace(asked, tasks=(tmp_path / "ph",), out=here / "docs" / "results", work=tmp_path / "elsewhere")
    assert "--tasks DATA/ph" in command_of(absolute)
    assert command_of(absolute).endswith("--out docs/results")
    assert str(tmp_path) not in command_of(absolute)


def test_a_study_of_ones_own_names_its_own_command(ask: Ask) -> None:
    own = replace(ask(STUDY, seeds=(7,)), tasks=(Path("ph"),), out=Path("mine"), work=Path("mine/runs"))
    told = study_commands(own, Scope())
    assert told[0] == f"medvisionllama reproduce {STUDY} --tasks ph --seeds 7 --steps 3 --block minilm-l6 --out mine"
    assert told[-1].endswith("--seeds 7 --steps 3 --block llama-3.1-8b --device cuda --out mine")
    assert "Task04" not in "".join(told)
    at_docs = replace(own, out=Path("docs/x"), work=Path("docs/x/runs"))
    planned = study_commands(at_docs, Scope(is_planned=True))
    assert len(planned) == len(told) + 1
    # Where more is asked for than is planned, that has its own command.
    (place, *_) = planned_places("a split")
    wider = study_commands(at_docs, Scope({place: {0, 7}}, {place: {0}}, is_planned=True))
    assert wider[:2] == planned[:2]
    assert wider[2] == f"medvisionllama reproduce {STUDY} --tasks ph --seeds 7 --steps 3 --block minilm-l6 --out docs/x"
    assert planned[0] == f"medvisionllama reproduce {STUDY} --tasks ph --out docs/x"
    of_plan = replace(at_docs, seeds=(), blocks=(), steps=None)  # more is measured than planned, the plan is asked for
    assert study_commands(of_plan, Scope({place: {0, 7}}, {place: {0}}, is_planned=True)) == planned
    assert "--middles shuffled pretrained --block stories260K=DATA/weights/stories260K/hf --out docs/x" in planned[1]


def test_cells_held_by_another_are_counted(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_held(reproduction: Reproduction, *given: object, **named: object) -> Walked:
        return Walked({cell.name: "held by another" for cell in reproduction.work().cells})

    monkeypatch.setattr(Reproduction, "measure", all_held)
    typed = ["reproduce", "v2-T6", "--tasks", str(phantom), "--out", str(tmp_path), "--block", "minilm-l6"]
    assert main([*typed, "--limit", "3"]) == 0
    assert "3 cells held by another: the matrix is not finished\n" in capsys.readouterr().out
    request = Request("v2-T6", (phantom,), tmp_path, tmp_path / "runs", blocks=(("minilm-l6",) * 2,))
    for cell in Reproduction(request).work().cells[:3]:  # the other is done with three meanwhile
        make_row(cell, tmp_path / "rows", {"test/native": [0.5]})
    assert main(typed) == 0
    assert "1 cell held by another: the matrix is not finished\n" in capsys.readouterr().out


def test_an_interruption_says_how_to_go_on(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reproduction, "measure", interrupted)
    assert main(["reproduce", "v2-T2", "--tasks", str(phantom), "--out", str(tmp_path)]) == command.INTERRUPTED == 130
    assert capsys.readouterr().err == "medvisionllama: interrupted; the same command goes on where it stopped\n"


def test_every_table_is_sound(ask: Ask) -> None:
    for name in (*TABLES, STUDY):
        assert sound(ask(name)).table == name
