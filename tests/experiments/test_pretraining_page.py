"""What the study's page says is what its rows hold, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from row_maker import make_row, scores
from test_pretraining import PLAN, TASK, study_rows

from medvisionllama.experiments.pretraining import scope_of, study_cells
from medvisionllama.experiments.pretraining_page import write_page
from medvisionllama.experiments.rows import Row
from medvisionllama.reports.wording import MINUS


def page_of(rows: list[Row], folder: Path) -> str:
    write_page(rows, PLAN, folder, ["the command"])
    return (folder / "README.md").read_text()


def with_middle_at(folder: Path, means: dict[str, float]) -> list[Row]:
    """Five seeds of one network at one share; each middle's mean Dice as given."""
    rows = []
    for middle, mean in means.items():
        cells = study_cells(
            TASK, networks=["medvisionllama-u"], middles=[middle], seeds=(0, 1, 2, 3, 4), fractions=(1.0,)
        )
        rows += [make_row(cell, folder, {"validation": scores(mean, seed=cell.seed)}) for cell in cells]
    return rows


def test_mappers_alone_are_not_counted_as_the_pretrained_block(tmp_path: Path) -> None:
    rows = with_middle_at(tmp_path / "rows", {"none": 0.7, "identity": 0.8, "shuffled": 0.7, "pretrained": 0.7})
    page = page_of(rows, tmp_path)
    assert "of 1 comparison of the pre-trained block 0 detected a gain, 0 a loss, 1 neither. This is what" in page
    assert "Of 1 comparison of mappers alone 1 detected a gain, 0 a loss, 0 neither." in page


def test_what_was_detected_is_named_and_bounds_are_of_the_rest(tmp_path: Path) -> None:
    rows = with_middle_at(tmp_path / "rows", {"shuffled": 0.6, "random-matched": 0.7, "pretrained": 0.7})
    page = page_of(rows, tmp_path)
    assert "Of 2 comparisons of the pre-trained block with its shuffled or random copy 1 detected a gain" in page
    assert f"Detected: medvisionllama-u, minilm-l6, Task04 100%, pretrained {MINUS} shuffled: +10.00 (" in page
    assert "The 95 % interval of what was not detected leaves room for effects up to ±0.00." in page


def test_one_seed_is_said_to_say_nothing_of_others(tmp_path: Path) -> None:
    rows = study_rows(tmp_path / "rows", 0.0, seeds=(0,))
    assert "1 seed: nothing is known of what another training would give." in page_of(rows, tmp_path)
    rows = study_rows(tmp_path / "rows", 0.0, seeds=(0, 1))
    assert "2 seeds: an interval over so few is wide" in page_of(rows, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "another commit"}, "program (3)"),
        ({"environment": {"device": "cuda"}}, "machine (3)"),
        ({"environment": {"packages": {"torch": "9"}}}, "version of torch (3)"),
    ],
)
def test_pairs_that_differ_in_more_than_their_middle_are_told(tmp_path: Path, change: dict, told: str) -> None:
    middles = {"shuffled": 0.7, "random-matched": 0.7, "pretrained": 0.7}
    rows = with_middle_at(tmp_path / "rows", middles)
    page = page_of(rows, tmp_path)
    assert "All 10 pairs of trainings behind these differences are each of one program" in page  # negative control
    assert "The rows here are of commit `0123abc`" in page
    odd = []
    for row in rows:
        if row.content["settings"]["config"]["middle"]["block"]["init"] == "shuffled" and row.seed < 3:
            environment = row.content["environment"] | change.get("environment", {})
            row = replace(row, content=row.content | change | {"environment": environment})
        odd.append(row)
    page = page_of(odd, tmp_path)
    assert "**Of the 10 pairs of trainings behind these differences some differ in more than their middle**" in page
    assert told in page


def test_the_page_tells_of_what_was_measured_and_names_the_rest(tmp_path: Path) -> None:
    page = page_of(study_rows(tmp_path / "rows", 0.0), tmp_path)
    assert f"pretrained {MINUS} identity: the frozen block and its adapters, beyond mappers and residual" in page
    for absent in (f"pretrained {MINUS} trained", f"pretrained {MINUS} random:", "LoRA off"):
        assert absent not in page
    assert "neither planned here nor measured: `--middles random trained`, `--lora none`." in page
    assert "The frozen block of minilm-l6 (0 numbers) holds adapters that train" in page


def test_with_adapters_off_measured_the_page_says_what_that_means(tmp_path: Path) -> None:
    cells = study_cells(
        TASK, networks=["medvisionllama-u"], middles=["shuffled", "pretrained"], loras=["none"], fractions=(1.0,)
    )
    page = page_of([make_row(cell, tmp_path, {"validation": scores(0.7, seed=cell.seed)}) for cell in cells], tmp_path)
    assert "`LoRA off`: trainable linear mappers" in page
    assert "adapters that train, as the papers' do" not in page
    assert "a block of 2,000 parameters" in page, "without adapters nothing but the block is frozen"
    assert "- **LoRA**: `LoRA off`" in page, "and no other"
    assert "`--lora none`" not in page


def test_more_than_the_plan_is_told(tmp_path: Path) -> None:
    rows = study_rows(tmp_path / "rows", 0.0, seeds=(0, 1))
    asked = study_cells(TASK, networks=["medvisionllama-u"], seeds=(7,), fractions=(0.1,))
    write_page(rows, scope_of(asked, rows, "a split"), tmp_path, ["the command"])
    page = (tmp_path / "README.md").read_text()
    assert "**Provisional**: 100 of 120 planned cells are not measured yet." in page
    assert "**Beyond the plan** 5 cells more asked for or measured." in page
    assert "Seeds beyond the plan enter the comparisons of planned places" in page
    assert "set before the first" not in page
    assert "20 of 120 planned cells are measured. Beyond the plan 0 of 5 are." in page


def test_other_places_than_planned_are_exploratory_and_told(tmp_path: Path) -> None:
    rows = study_rows(tmp_path / "rows", 0.0, seeds=(0, 1))
    more = study_cells(TASK, networks=["medvisionllama-u"], middles=["shuffled", "pretrained"], fractions=(0.3,))
    rows += [make_row(cell, tmp_path / "more", {"validation": scores(0.7, seed=cell.seed)}) for cell in more]
    write_page(rows, scope_of(more, rows, "a split"), tmp_path, ["the command"])
    page = (tmp_path / "README.md").read_text()
    assert "**minilm-l6 on Task04_Hippocampus, 1,000 steps** (exploratory). Of 1 comparison" in page
    assert "Seeds beyond the plan enter" not in page
    assert "Beyond the plan 10 of 10 are." in page


def test_a_study_of_ones_own_has_no_history_of_ours(tmp_path: Path) -> None:
    cells = study_cells([("Task09_Spleen", "s")], networks=["medvisionllama-u"], middles=["shuffled", "pretrained"])
    rows = [make_row(cell, tmp_path / "rows", {"validation": scores(0.7, seed=cell.seed)}) for cell in cells[:4]]
    write_page(rows, scope_of(cells, rows), tmp_path, ["the command"])
    page = (tmp_path / "README.md").read_text()
    assert "16 of 20 planned cells are not measured yet. What is said here" in page
    for ours in ("When these rules were set", "set before the first", "with mappers alone", "with random weights"):
        assert ours not in page
    assert "One network is trained around the frozen block (with its pre-trained weights; with the same entries" in page


def test_what_passes_the_block_is_a_table(tmp_path: Path) -> None:
    rows = with_middle_at(tmp_path / "rows", {"identity": 0.7, "pretrained": 0.7})
    assert "What passes through the block" not in page_of(rows, tmp_path), "nothing was logged"
    logged = []
    for row in rows:
        if row.content["identity"] is not None:
            norms = [{"step": n, "block_norms": {"entering": 8.0 + row.seed, "leaving": 4.0 * n}} for n in (0, 1)]
            row = replace(row, content=row.content | {"log": [*norms, {"step": 2, "loss": 1.0}]})
        logged.append(row)
    assert "| medvisionllama-u, minilm-l6 | Task04 100% | pretrained | 10.0 | 4.0 | 0.40 | 5 |" in page_of(
        logged, tmp_path
    )
