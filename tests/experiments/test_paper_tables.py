"""Every table and figure of the papers from one command: as data, from made-up rows, and end to end on a phantom."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from medvisionllama.cli import main
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.nifti import read_label_map, write_label_map
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.splits import make_splits
from medvisionllama.errors import InputError
from medvisionllama.evaluate import evaluate_folders
from medvisionllama.experiments import table_counts
from medvisionllama.experiments.outside import score_outside
from medvisionllama.experiments.paper_tables import RIVALS, TABLES, Budget, table_cells, with_share
from medvisionllama.experiments.reproduction import Reproduction
from medvisionllama.experiments.request import Request
from medvisionllama.experiments.rows import Row
from medvisionllama.experiments.table_counts import CLOCKED, counts_of
from medvisionllama.experiments.table_differences import differences_of
from medvisionllama.experiments.table_entries import entries_of
from medvisionllama.experiments.table_lines import lines_of
from medvisionllama.experiments.table_page import to_csv, to_markdown
from medvisionllama.experiments.tables import PUBLISHED, published
from medvisionllama.models import costs
from medvisionllama.models.zoo import PEERS
from medvisionllama.reports.paper_figures import PAPER_FIGURES, few_shot_curves
from medvisionllama.reports.run_contents import read_runs
from tests.experiments.row_maker import make_row, scores
from tests.language.tiny_models import full_model

TASK04 = "Task04_Hippocampus"
STANDING_IN = {
    "llama-3.1-8b": "llama",
    "gemma-2-9b": "gemma2",
    "mistral-7b": "mistral",
    "qwen2-7b": "qwen2",
    "yi-1.5-9b": "llama",
    "biogpt": "biogpt",
    "biobert": "bert",
    "clinicalbert": "bert",
}


# --- as data


def test_every_published_table_and_every_figure_has_its_command() -> None:
    assert {(cell.version, cell.table) for cell in PUBLISHED} <= {(t.version, t.number) for t in TABLES.values()}
    assert set(PAPER_FIGURES) == {table.figure for table in TABLES.values() if table.figure}


def test_every_printed_row_is_a_network_or_said_to_be_absent() -> None:
    for table in TABLES.values():
        printed = {cell.row for cell in published(table.version, table.number) if cell.row}
        assert printed == {*table.rows, *table.absent} or not printed, table.name
        assert not table.against or table.against in table.rows
    assert set(TABLES["v2-T3"].absent) == {printed for printed, name in RIVALS.items() if name not in PEERS}


def test_cells_of_a_table(splits: object) -> None:
    cells = table_cells(TABLES["v2-T6"], [(TASK04, "s")], Budget(grid=64, steps=2000, blocks={"": "minilm-l6"}))
    assert [(x.printed, x.cell.config.middle.rank) for x in cells] == [("2", 2), ("4", 4), ("8", 8), ("16", 16)]  # type: ignore[union-attr]
    for x in cells:
        assert (x.cell.protocol, x.cell.grid, x.cell.recipe.steps, x.cell.recipe.loss) == (
            "paper",
            64,
            2000,
            "dice_bce",
        )
        assert (x.cell.block, x.cell.config.middle.block.source) == ("minilm-l6", "minilm-l6")  # type: ignore[union-attr]
    # Tables share what they share: rank 8 of Table 6 is MedVisionLlama of Tables 2 and 5.
    others = {
        x.printed: x.cell.key
        for name in ("v2-T2", "v2-T5")
        for x in table_cells(TABLES[name], [(TASK04, "s")], Budget(grid=64, steps=2000, blocks={"": "minilm-l6"}))
    }
    assert others["MedVisionLlama"] == others["MedVisionLlama (LoRA)"] == cells[2].cell.key


def test_stand_ins() -> None:
    depth = table_cells(TABLES["v2-T4"], [(TASK04, "s")], Budget(blocks={"": "minilm-l6"}))
    assert [x.cell.model for x in depth] == ["vit-mlp", "vit-depth-minilm", "medvisionllama"]
    assert [x.cell.model for x in table_cells(TABLES["v2-T4"], [(TASK04, "s")], Budget())][1] == "vit-depth"
    with pytest.raises(InputError, match="compares 5 language models"):
        table_cells(TABLES["v1-T4"], [(TASK04, "s")], Budget(blocks={"": "minilm-l6"}))
    one = table_cells(TABLES["v1-T4"], [(TASK04, "s")], Budget(blocks={"yi-1.5-9b": "minilm-l6"}))
    assert {x.printed: x.cell.block for x in one}["ViT + Yi"] == "minilm-l6"
    assert {x.printed: x.cell.block for x in one}["ViT + Llama"] == "llama-3.1-8b"


def test_few_shot_and_input_sizes() -> None:
    few = table_cells(TABLES["v2-F4"], [(TASK04, "s")], Budget(grid=64))
    assert {x.printed for x in few} == {f"{row}, {share}" for row in TABLES["v2-T2"].rows for share in ("10%", "30%")}
    sizes = table_cells(TABLES["v1-B2"], [(TASK04, "s")], Budget(grid=64))
    assert [x.cell.grid for x in sizes] == [32, 32, 64, 64, 128, 128]


# --- from made-up rows


def measured(name: str, folder: Path, dice: Mapping[str, float]) -> tuple[list, dict[str, Row]]:
    cells = table_cells(TABLES[name], [(TASK04, "s")], Budget(grid=64, steps=3, seeds=(0, 1), blocks={"": "minilm-l6"}))
    rows = []
    for n, x in enumerate(cells):
        if x.printed in dice:
            parts = {f"{part}/{grid}" for part in ("validation", "test") for grid in ("native", "model")}
            rows.append(make_row(x.cell, folder, {part: scores(dice[x.printed], seed=n) for part in parts}))
    return list(cells), {row.key: row for row in rows}


def test_published_stands_beside_measured(tmp_path: Path) -> None:
    cells, rows = measured("v2-T2", tmp_path, {"ViT-Baseline": 0.7, "MedVisionLlama": 0.8})
    table = TABLES["v2-T2"]
    lines = lines_of(table, entries_of(cells, rows))
    found = {(x.printed, x.task, x.part, x.metric): x for x in lines}
    ours = found["MedVisionLlama", TASK04, "test/native", "dice"]
    assert ours.published is not None
    assert (ours.published.value, ours.published.sd) == (0.84, 0.03)
    assert ours.measured == pytest.approx(0.8, abs=0.02)
    assert (len(ours.by_seed), ours.cases.n) == (2, 8)
    assert ours.effect is not None
    assert ours.effect.difference == pytest.approx(0.1, abs=0.03)
    assert ours.marks == "*\N{DAGGER}"
    assert found["ViT-Baseline", TASK04, "test/native", "dice"].effect is None
    page = to_markdown(table, lines, [], differences_of(table, cells, list(rows.values()), {TASK04: 234}), [])
    assert "| Task04_Hippocampus | dice | MedVisionLlama | 0.84 ± 0.03* | 0." in page
    assert "Task04_Hippocampus 234 cases here, 260 in the paper" in page
    assert "minilm-l6 in place of llama-3.1-8b" in page
    assert "64³; the paper 128³" in page
    plain = list(csv.DictReader(",".join(row) for row in to_csv(table, lines, [])))
    assert {row["part"] for row in plain} == {"test/native", "test/model", "validation/native", "validation/model"}


def test_averages_are_of_measured_tasks_and_counts_of_the_papers_networks(tmp_path: Path) -> None:
    cells, rows = measured("v2-T5", tmp_path, {"ViT-Baseline": 0.7, "MedVisionLlama (LoRA)": 0.8})
    table = TABLES["v2-T5"]
    entries = entries_of(cells, rows)
    average = [x for x in lines_of(table, entries) if x.task == "average" and x.part == "test/native"]
    assert [(x.printed, x.published.value if x.published else None) for x in average] == [
        ("ViT-Baseline", 0.74),
        ("MedVisionLlama (LoRA)", 0.87),
        ("MedVisionLlama (Linear)", 0.81),
    ]
    assert average[0].measured == pytest.approx(0.7, abs=0.02)
    assert np.isnan(average[2].measured)  # nothing was measured, and nothing is filled in
    counts = {(c.printed, c.count): c for c in counts_of(table, entries)}
    assert counts["MedVisionLlama (LoRA)", "trainable_m"].counted == pytest.approx(1.305, abs=5e-4)  # SPEC 11
    assert counts["MedVisionLlama (LoRA)", "trainable_m"].published == 5.43
    assert counts["ViT-Baseline", "trainable_m"].counted == pytest.approx(1.128, abs=1e-6)
    assert counts["MedVisionLlama (LoRA)", "trainable_m"].measured == 0.001


def test_counts_take_nothing_that_no_table_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_kept_bytes", lambda *given: pytest.fail("counted what no table prints"))
    table_counts._cost.cache_clear()
    counted = {c.printed: c.counted for c in counts_of(TABLES["v2-T6"], []) if c.count == "trainable_m"}
    assert [round(n, 3) for n in counted.values()] == [1.175, 1.219, 1.305, 1.478]  # SPEC 11


def test_a_rival_that_is_beaten_is_marked(tmp_path: Path) -> None:
    cells, rows = measured("v2-T3", tmp_path, {"MedVisionLlama": 0.8, "ViT Baseline": 0.6, "nnU-Net": 0.8})
    lines = lines_of(TABLES["v2-T3"], entries_of(cells, rows))
    marks = {x.printed: x.marks for x in lines if (x.task, x.part, x.metric) == (TASK04, "test/native", "dice")}
    assert marks["ViT Baseline"] == "*\N{DAGGER}"
    assert marks["MedVisionLlama"] == ""


# --- outside programs


def test_another_programs_label_maps_are_scored_as_ours(phantom: Path, tmp_path: Path) -> None:
    task = read_task(phantom)
    splits = make_splits([case.name for case in task.cases])
    for case in task.named([*splits.test, *splits.validation(0)]):
        write_label_map(case.read_label(), tmp_path / "perfect" / f"{case.name}.nii.gz")
    for case in task.named(splits.test):
        label = case.read_label()
        write_label_map(label.with_array(np.zeros_like(label.array)), tmp_path / "empty" / f"{case.name}.nii.gz")
    perfect = score_outside(tmp_path / "perfect", task, splits, merged=False)
    assert set(perfect) == {"validation", "test"}
    assert all(part.mean("dice") == 1 for part in perfect.values())
    empty = score_outside(tmp_path / "empty", task, splits, merged=True)
    assert set(empty) == {"test/native"}
    assert empty["test/native"].mean("dice") == 0
    assert empty["test/native"].classes == ("foreground",)
    with pytest.raises(InputError, match="neither part of the split whole"):
        score_outside(tmp_path / "empty", task, replace(splits, test=()), merged=True)


def partly_labelled(source: Path, folder: Path, ignore: int) -> Path:
    """The same task of which nobody has labelled one half of each case."""
    shutil.copytree(source, folder)
    description = json.loads((folder / "dataset.json").read_text())
    labels = {"background": 0, **{name: int(value) for value, name in description["labels"].items() if value != "0"}}
    (folder / "dataset.json").write_text(json.dumps(description | {"labels": labels | {"ignore": ignore}}))
    for path in (folder / "labelsTr").glob("*.nii.gz"):
        label = read_label_map(path)
        half = np.arange(label.array.shape[2]) < label.array.shape[2] // 2
        write_label_map(label.with_array(np.where(half, ignore, label.array).astype(np.uint8)), path)
    return folder


def test_what_nobody_has_labelled_is_not_judged_in_other_programs_maps_either(phantom: Path, tmp_path: Path) -> None:
    whole = read_task(phantom)
    task = read_task(partly_labelled(phantom, tmp_path / "partly", 7))
    assert task.ignored == 7
    splits = make_splits([case.name for case in task.cases])
    for case in whole.cases:  # right everywhere, also where nobody looks
        write_label_map(case.read_label(), tmp_path / "true" / f"{case.name}.nii.gz")
    for merged in (True, False):
        scored = score_outside(tmp_path / "true", task, splits, merged=merged)
        assert {part.mean("dice") for part in scored.values()} == {1.0}
    as_evaluated = evaluate_folders(tmp_path / "true", task.folder / "labelsTr", tmp_path / "scores")
    assert {scores["dice"]["mean"] for scores in as_evaluated["classes"].values()} == {1.0}


def test_a_label_that_is_not_the_tasks_is_refused(phantom: Path, tmp_path: Path) -> None:
    task = read_task(phantom)
    splits = make_splits([case.name for case in task.cases])
    for case in task.named(splits.test):
        label = case.read_label()
        write_label_map(label.with_array(label.array * 4), tmp_path / f"{case.name}.nii.gz")
    for merged in (True, False):
        with pytest.raises(InputError, match=r"not the task's: got 4, 8, expected 0 \(background\), 1"):
            score_outside(tmp_path, task, splits, merged=merged)


# --- the command


def test_an_unknown_table_lists_them(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "v2-T9", "--tasks", str(phantom), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in (*TABLES, "does-pretraining-matter"))


def test_a_dry_run_says_what_it_takes_and_does_nothing(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    command = ["reproduce", "v2-T6", "--tasks", str(phantom), "--out", str(out), "--grid", "32", "--steps", "4"]
    assert main([*command, "--dry-run", "--cache", str(tmp_path / "cache")]) == 0
    told = capsys.readouterr().out
    assert "4 cells, 4 to do: about" in told
    assert "missing weights  llama-3.1-8b: medvisionllama blocks fetch llama-3.1-8b (accept its licence" in told
    assert "missing task  Task10_Colon: medvisionllama download Task10_Colon --to" in told
    assert not out.exists()
    assert "missing row" not in told
    assert main([command[0], "v2-T3", *command[2:], "--dry-run", "--block", "minilm-l6"]) == 0
    told = capsys.readouterr().out
    assert "missing row   TransUNet: no such network here; its label maps by --predictions" in told
    assert "missing row   nnU-Net" not in told


def test_a_script_for_sbatch_runs_this_very_command(phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    command = ["reproduce", "v2-T6", "--tasks", str(phantom), "--out", str(out), "--block", "minilm-l6", "--limit", "0"]
    assert main([*command, "--launcher", "slurm-script", "--processes", "2", "--device", "cpu", "--partition=p"]) == 0
    script = (out / "v2-T6.sbatch").read_text()
    line = script.rstrip().splitlines()[-1]
    assert "--launcher" not in line
    assert "--partition" not in line
    words = shlex.split(line.partition("medvisionllama.cli ")[2].replace("$SLURM_ARRAY_TASK_ID", "1"))
    assert main(words) == 0
    assert (out / "v2-T6.md").exists()


def test_a_dry_run_knows_the_pace_of_rows(phantom: Path, tmp_path: Path) -> None:
    request = Request(
        "v2-T6", (phantom,), tmp_path, tmp_path / "runs", grid=32, steps=100, blocks=(("minilm-l6",) * 2,)
    )
    reproduction = Reproduction(request)
    for x in reproduction.labelled:
        make_row(x.cell, tmp_path / "rows", {"test/native": [0.5, 0.6]})  # 36 s for 100 steps
    longer = Reproduction(replace(request, steps=1000)).forecast()
    assert longer.hours == pytest.approx(4 * 1000 * 0.36 / 3600)
    assert longer.basis == "the pace of rows already measured"
    elsewhere = Reproduction(replace(request, steps=1000, device="cuda:1")).forecast()
    assert elsewhere.basis.startswith("counted operations"), "a CPU's pace says nothing of a GPU"
    assert not longer.missing or "minilm" not in " ".join(longer.missing)


def test_rows_write_a_table_without_a_run_folder(phantom: Path, tmp_path: Path) -> None:
    request = Request("v2-F5", (phantom,), tmp_path, tmp_path / "runs", grid=32, steps=3)
    reproduction = Reproduction(request)
    for x in reproduction.labelled[:3]:
        make_row(x.cell, tmp_path / "rows", {"test/native": scores(0.7, seed=x.cell.seed), "test/model": scores(0.7)})
    names = {path.name for path in reproduction.write()}
    assert names == {"v2-F5.md", "v2-F5.csv", "v2-F5.png", "v2-F5.svg"}
    page = (tmp_path / "v2-F5.md").read_text()
    assert "1 of 4 cells are not measured" in page
    assert "- 3 trainings, 0.0 hours of training in all" in page
    assert "All 2 pairs of trainings behind these differences are each of one program" in page
    assert page.count("medvisionllama reproduce") == 2  # who made it, and how
    assert "the paired t-test against the first box" in page
    assert "medvisionllama reproduce v2-F5 --tasks DATA/" in page


def test_few_shot_curves_pair_the_models_by_share(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("v2-F4", (phantom,), tmp_path, tmp_path / "runs", grid=32, steps=3)
    reproduction = Reproduction(request)
    for x in reproduction.labelled:
        make_row(x.cell, tmp_path / "rows", {"test/native": scores(0.7), "test/model": scores(0.7)})
    drawn: list[Figure] = []

    def draw(name: str, runs: Sequence[Path], out: Path, part: str) -> list[Path]:
        contents = read_runs(runs)
        assert [run.class_names for run in contents] == [{1: "a", 2: "b"}] * 4
        drawn.append(few_shot_curves(contents))
        return []

    monkeypatch.setattr("medvisionllama.experiments.row_figures.draw_paper_figure", draw)
    reproduction.write()
    lines = drawn[0].axes[0].lines
    models, shares = ("ViT-Baseline", "MedVisionLlama"), ("10%", "30%")
    assert {line.get_label() for line in lines} == {f"{m}, {s} of the data" for m in models for s in shares}
    for told in ("get_color", "get_linestyle"):
        assert len({str(getattr(line, told)()) for line in lines}) == 2, "a share's colour and a model's pattern"


def test_another_programs_row_stands_in_the_table(phantom: Path, tmp_path: Path) -> None:
    task = read_task(phantom)
    test = task.named(make_splits([case.name for case in task.cases]).test)
    for case in test:
        write_label_map(case.read_label(), tmp_path / "nnunet" / f"{case.name}.nii.gz")
    predictions = (("nnU-Net v2", tmp_path / "nnunet"),)
    request = Request("v2-T2", (phantom,), tmp_path, tmp_path / "runs", grid=32, steps=3, predictions=predictions)
    Reproduction(request).write()
    rows = list(csv.DictReader((tmp_path / "v2-T2.csv").open()))
    found = [row for row in rows if (row["row"], row["metric"]) == ("nnU-Net v2", "dice")]
    assert [(row["part"], row["measured"], row["cases"], row["published"]) for row in found] == [
        ("test/native", "1", str(len(test)), "")
    ]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models by the names of the papers' own."""
    folder = tmp_path_factory.mktemp("models")
    for family in set(STANDING_IN.values()):
        full_model(family).save_pretrained(folder / family)
    return {name: folder / family for name, family in STANDING_IN.items()}


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small task under the name of one of the Decathlon's: it has a tolerance for NSD, and a place in Table 1."""
    folder = tmp_path_factory.mktemp("coarse") / TASK04
    write_phantom_task(folder, cases=5, settings=PhantomSettings(spacing_mm=(5.0, 6.0)))
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"name": "Hippocampus"}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TABLES))
def test_every_table_runs_from_end_to_end(
    name: str, coarse: Path, stand_ins: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.getbasetemp() / "all tables"  # shared: tables find one another's rows
    table, figure = TABLES[name], TABLES[name].figure
    command = ["reproduce", name, "--tasks", str(coarse), "--out", str(out), "--grid", "16", "--steps", "2"]
    blocks = [f"{block}={stand_ins[block]}" for block in dict.fromkeys(r.block for r in table.rows.values()) if block]
    command += ["--block", *blocks] if blocks else []
    assert main([*command, "--threads", "1", "--device", "cpu", "--offline"]) == 0
    page = (out / f"{name}.md").read_text()
    assert "cells are not measured" not in page
    assert "was not drawn" not in page
    lines = list(csv.DictReader((out / f"{name}.csv").open()))
    assert f"medvisionllama reproduce {name} --tasks DATA/" in page
    if table.of_data:
        assert f"| {TASK04} | MRI | MRI T1 | 1 | Anterior, Posterior | 260 | 5 |" in page
        assert [line["published_cases"] for line in lines] == [f"{c.value:g}" for c in published(name[:2], "1")]
        assert {line["task"]: line["cases"] for line in lines if line["cases"]} == {TASK04: "5"}
        return
    parts = ("test/native", "test/model", "validation/native", "validation/model")
    measured = {
        (line["part"], line["row"], line["metric"]): float(line["measured"] or "nan")
        for line in lines
        if line["task"] == TASK04
    }
    rows = [with_share(row, share) for row in table.rows for share in table.fractions]
    assert set(measured) == {(part, row, metric) for part in parts for row in rows for metric in table.metrics}
    assert np.isfinite(list(measured.values())).all()
    counts = {(x["part"], x["row"], x["metric"]): x["measured"] for x in lines if x["part"] in ("counted", "network")}
    for row, count in ((row, count) for row in table.rows for count in table.counts):
        some = count != "frozen_m" or table.rows[row].block is not None  # nothing else is frozen
        if count not in CLOCKED:
            assert (float(counts["counted", row, count]) > 0) == some
        if count != "gflops":  # counted on the paper's network alone
            assert (float(counts["network", row, count]) > 0) == some
    assert "- Weights: those with the best Dice on the validation part" in page
    assert re.search(r"- Machine: .+ \(\d+ rows\)\.", page)
    if figure:
        assert (out / f"{figure}.png").stat().st_size > 5000
        assert (out / f"{figure}.svg").exists()
