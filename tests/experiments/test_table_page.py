"""What a table says of its rows: which numbers stand beside one another, which are compared, and what differed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from medvisionllama.experiments.origin import unlike_pairs
from medvisionllama.experiments.paper_tables import TABLES, Budget, Labelled, table_cells
from medvisionllama.experiments.rows import PartScores, Row
from medvisionllama.experiments.table_counts import Counted
from medvisionllama.experiments.table_differences import differences_of
from medvisionllama.experiments.table_entries import Entry, RowKey, entries_of
from medvisionllama.experiments.table_lines import Line, lines_of, pairs_of
from medvisionllama.experiments.table_page import to_csv, to_markdown
from medvisionllama.experiments.tables import published
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import build_network
from medvisionllama.run_folder import METRICS
from tests.experiments.row_maker import make_row, scores

HEART, HIPPOCAMPUS = "Task02_Heart", "Task04_Hippocampus"
MINILM = {"": "minilm-l6"}
Dice = Callable[[Labelled], float | None]


def labelled(name: str, tasks: Sequence[str] = (HIPPOCAMPUS,), **budget: object) -> tuple[Labelled, ...]:
    settings = Budget(**{"grid": 64, "steps": 3, "blocks": MINILM, **budget})  # type: ignore[arg-type]
    return table_cells(TABLES[name], [(task, "s") for task in tasks], settings)


def rows_of(cells: Sequence[Labelled], folder: Path, dice: Dice) -> dict[str, Row]:
    """Rows of those cells that ``dice`` gives a mean."""
    rows = []
    for n, x in enumerate(cells):
        mean = dice(x)
        if mean is not None:
            rows.append(make_row(x.cell, folder, {"test/native": scores(mean, seed=n)}))
    return {row.key: row for row in rows}


def outside(name: str, mean: float, task: str = HIPPOCAMPUS) -> Entry:
    cases = tuple(f"case_{n}" for n in range(8))
    values = {metric: np.array([scores(mean, seed=99)]) for metric in METRICS}
    return Entry(name, task, outside={"test/native": PartScores(cases, ("foreground",), values, 1.0)})


def dice_lines(lines: Sequence[Line], task: str) -> dict[RowKey, Line]:
    return {x.key: x for x in lines if (x.task, x.metric) == (task, "dice")}


def test_another_programs_row_is_never_averaged_into_one_of_ours(tmp_path: Path) -> None:
    cells = labelled("v2-T3")
    rows = rows_of(cells, tmp_path, lambda _: 0.6)
    entries = [*entries_of(cells, rows), outside("ViT Baseline", 0.9)]
    for task in (HIPPOCAMPUS, "average"):
        found = dice_lines(lines_of(TABLES["v2-T3"], entries), task)
        ours, theirs = (found[RowKey("ViT Baseline", 1.0, of_others)] for of_others in (False, True))
        assert (ours.measured, theirs.measured) == pytest.approx((0.6, 0.9), abs=0.02)
        assert ours.published is not None or task != "average"
        assert theirs.published is None


def test_one_share_of_the_data_is_no_paper_row(tmp_path: Path) -> None:
    cells = labelled("v2-T2", fractions=(0.1,))
    table, rows = TABLES["v2-T2"], rows_of(cells, tmp_path, lambda _: 0.7)
    lines = lines_of(table, entries_of(cells, rows))
    assert {x.printed for x in lines} == {"ViT-Baseline, 10%", "MedVisionLlama, 10%"}
    assert {x.published for x in lines} == {None}
    assert any(x.effect for x in lines)
    said = "\n".join(differences_of(table, cells, [], {HIPPOCAMPUS: 9}))
    assert "**Share of the data**: 10% of the training patients; the paper 100%" in said
    few = TABLES["v2-F4"]
    assert "Share of the data" not in "\n".join(differences_of(few, labelled("v2-F4"), [], {}))
    assert "Share of the data" not in "\n".join(differences_of(table, labelled("v2-T2"), [], {}))


def test_what_differed_tells_recipe_grid_and_other_programs() -> None:
    def said(name: str, outside: Sequence[str] = (), **budget: object) -> str:
        return "\n".join(differences_of(TABLES[name], labelled(name, **budget), [], {HIPPOCAMPUS: 9}, outside))

    own = said("v1-A1")
    assert "**Recipe**: paper-v1" in own
    assert "the paper names none" in own
    assert "128³" not in own
    swapped = said("v1-A1", recipe="paper-v2")
    assert "loss dice_bce, not bce" in swapped
    assert "learning_rate 0.002, not 1e-05" in swapped
    assert "optimizer adamw, not adam" in said("v2-T2", recipe="native")
    assert "the paper 64x64x40, 128x128x80, 240x240x156" in said("v1-B2")
    assert "**Printed Jaccard indices**: 4 of 20 are below" in said("v2-T2")
    assert "**Printed Jaccard indices**: 8 of 20 are below" in said("v1-T2")
    assert "Jaccard indices" not in said("v2-T5")
    assert "**nnU-Net v2**: label maps of another program" in said("v2-T2", ["nnU-Net v2"])
    assert "UNETR**: no such network here yet" in said("v2-T3")
    assert "UNETR**: no such network" not in said("v2-T3", outside=["UNETR"])  # theirs stands in the row
    assert "TransUNet**: no such network" in said("v2-T3", outside=["UNETR"])


def test_clocked_numbers_tell_whose_clock(tmp_path: Path) -> None:
    for name in ("v2-T5", "v2-T6", "v1-B2"):
        cells = labelled(name)
        rows = rows_of(cells, tmp_path, lambda _: 0.5)
        said = "\n".join(differences_of(TABLES[name], cells, list(rows.values()), {HIPPOCAMPUS: 9}))
        assert ("**Times** are a clock's, here on a processor (1 thread)" in said) is (name != "v2-T6")
        assert ("the faster of two passes" in said) is (name == "v2-T5")


def test_both_data_tables_tell_whose_counts_differ() -> None:
    for name in ("v1-T1", "v2-T1"):
        (said,) = differences_of(TABLES[name], (), [], {})
        assert "Liver 100 and Lung 53 are not the release's" in said


def test_averages_are_of_the_same_tasks_in_every_row(tmp_path: Path) -> None:
    cells = labelled("v2-T5", (HIPPOCAMPUS, HEART))

    def dice(x: Labelled) -> float | None:
        if x.row == "ViT-Baseline":
            return 0.9 if x.cell.task == HIPPOCAMPUS else 0.5
        return 0.9 if x.cell.task == HIPPOCAMPUS and "LoRA" in x.row else None

    found = dice_lines(lines_of(TABLES["v2-T5"], entries_of(cells, rows_of(cells, tmp_path, dice))), "average")
    lines = {key.row: line for key, line in found.items()}
    assert lines["ViT-Baseline"].tasks == lines["MedVisionLlama (LoRA)"].tasks == (HIPPOCAMPUS,)
    assert lines["ViT-Baseline"].measured == pytest.approx(0.9, abs=0.02)  # not 0.7 beside 0.9
    assert lines["MedVisionLlama (Linear)"].by_seed == {}


def test_averages_match_seeds_by_number(tmp_path: Path) -> None:
    cells = labelled("v2-T5", (HIPPOCAMPUS, HEART), seeds=(0, 1))

    def dice(x: Labelled) -> float | None:  # the second task has the second seed alone
        if (x.cell.task, x.cell.seed) == (HEART, 0):
            return None
        return 0.9 if x.cell.seed else 0.5

    found = dice_lines(lines_of(TABLES["v2-T5"], entries_of(cells, rows_of(cells, tmp_path, dice))), "average")
    for line in found.values():
        assert {*line.by_seed} == {1}
        assert line.measured == pytest.approx(0.9, abs=0.02)  # not (0.5 + 0.9) / 2


def test_only_trainings_of_the_same_fold_are_compared(tmp_path: Path) -> None:
    cells = labelled("v2-T2", folds=(0, 1))

    def dice(x: Labelled) -> float | None:  # equal where both have the fold; the other fold is an easier one
        if (x.row, x.cell.fold) == ("MedVisionLlama", 1):
            return None
        return 0.9 if x.cell.fold else 0.5

    rows = [make_row(x.cell, tmp_path, {"test/native": scores(mean)}) for x in cells if (mean := dice(x)) is not None]
    lines = lines_of(TABLES["v2-T2"], entries_of(cells, {row.key: row for row in rows}))
    vit, ours = (dice_lines(lines, HIPPOCAMPUS)[RowKey(row, 1.0, False)] for row in ("ViT-Baseline", "MedVisionLlama"))
    assert (vit.trainings, ours.trainings, ours.compared) == (((0, 0), (0, 1)), ((0, 0),), ((0, 0),))
    assert ours.effect is not None
    assert (ours.effect.difference, ours.marks) == (0, "")  # not 0.5 - (0.5 + 0.9) / 2
    page = to_markdown(TABLES["v2-T2"], lines, [], [], [])
    assert "| 1, folds 0, 1 |" in page
    assert "| 1, fold 0 |" in page
    told = [(line["folds"], line["shared_folds"]) for line in in_csv("v2-T2", lines) if line["metric"] == "dice"]
    assert told == [("0 1", ""), ("0", "0")]


def test_a_row_with_more_folds_than_its_measure_tells_those_compared(tmp_path: Path) -> None:
    cells = labelled("v2-T2", folds=(0, 1), seeds=(0, 1))

    def dice(x: Labelled) -> float | None:
        return None if x.row == "ViT-Baseline" and x.cell.fold == 0 else 0.5 + 0.2 * x.cell.fold

    lines = lines_of(TABLES["v2-T2"], entries_of(cells, rows_of(cells, tmp_path, dice)))
    ours = dice_lines(lines, HIPPOCAMPUS)[RowKey("MedVisionLlama", 1.0, False)]
    assert ours.effect is not None
    assert ours.effect.difference == pytest.approx(0, abs=0.02)
    assert ours.measured == pytest.approx(0.6, abs=0.02)
    assert "(fold 1)" in to_markdown(TABLES["v2-T2"], lines, [], [], [])


def test_a_stopped_matrix_compares_every_case_that_a_shared_training_scored(tmp_path: Path) -> None:
    """Seeds run outermost, then folds: the usual state after a stop. On the validation part a case is of one fold."""
    cells = labelled("v2-T2", folds=(0, 1), seeds=(0, 1))
    rows = []
    for x in cells:
        if (x.cell.seed, x.cell.fold) != (1, 1):
            better = 0.2 if x.cell.fold and x.row == "MedVisionLlama" else 0.0
            row = make_row(x.cell, tmp_path, {"validation/native": [v + better for v in scores(0.5, n=6)]})
            cases = tuple(f"fold{x.cell.fold}_{n}" for n in range(6))
            rows.append(replace(row, parts={p: replace(s, cases=cases) for p, s in row.parts.items()}))
    entries = entries_of(cells, {row.key: row for row in rows})
    vit, ours = dice_lines(lines_of(TABLES["v2-T2"], entries), HIPPOCAMPUS).values()
    assert ours.effect is not None
    assert (ours.effect.cases.n, ours.compared) == (12, ((0, 0), (0, 1), (1, 0)))
    assert ours.effect.difference == pytest.approx(0.1)  # half of the cases gain .2, however many trainings scored them
    assert ours.measured - vit.measured == pytest.approx(0.1)
    assert ours.cases.low < ours.measured < ours.cases.high
    assert math.isnan(ours.seed_sd), "the seeds differ in their folds"
    page = to_markdown(TABLES["v2-T2"], lines_of(TABLES["v2-T2"], entries), [], [], [])
    assert "| 2 (seed 0 fold 0; seed 0 fold 1; seed 1 fold 0) | +0.100 |" in page
    fold_0 = {m: np.array([scores(0.9, n=6)]) for m in METRICS}
    theirs = Entry(
        "x",
        HIPPOCAMPUS,
        outside={"validation/native": PartScores(rows[0].parts["validation/native"].cases, ("f",), fold_0, 1.0)},
    )
    found = dice_lines(lines_of(TABLES["v2-T2"], [*entries, theirs]), HIPPOCAMPUS)[RowKey("x", 1.0, True)]
    assert found.effect is not None
    assert (found.effect.cases.n, found.compared) == (6, ((0, 0), (1, 0))), "their fold's cases alone"


def test_trainings_of_other_seeds_and_folds_are_no_pair(tmp_path: Path) -> None:
    cells = labelled("v2-T2", folds=(0, 1), seeds=(0, 1))
    kept = {"ViT-Baseline": {(0, 0), (1, 1)}, "MedVisionLlama": {(0, 1), (1, 0)}}
    rows = rows_of(cells, tmp_path, lambda x: 0.5 if (x.cell.seed, x.cell.fold) in kept[x.row] else None)
    entries = entries_of(cells, rows)
    line = dice_lines(lines_of(TABLES["v2-T2"], entries), HIPPOCAMPUS)[RowKey("MedVisionLlama", 1.0, False)]
    assert (line.effect, line.compared, pairs_of(TABLES["v2-T2"], entries)) == (None, (), [])
    every = rows_of(
        cells, tmp_path, lambda x: 0.5 if x.row != "ViT-Baseline" or (x.cell.seed, x.cell.fold) in kept[x.row] else None
    )
    told = to_markdown(TABLES["v2-T2"], lines_of(TABLES["v2-T2"], entries_of(cells, every)), [], [], [])
    assert "(seed 0 fold 0; seed 1 fold 1)" in told


def test_averages_are_of_the_trainings_that_all_tasks_have(tmp_path: Path) -> None:
    cells = labelled("v2-T5", (HIPPOCAMPUS, HEART), folds=(0, 1))

    def dice(x: Labelled) -> float | None:
        return None if (x.cell.task, x.cell.fold) == (HEART, 1) else 0.9 if x.cell.fold else 0.5

    for line in dice_lines(
        lines_of(TABLES["v2-T5"], entries_of(cells, rows_of(cells, tmp_path, dice))), "average"
    ).values():
        assert line.trainings == ((0, 0),)
        assert line.measured == pytest.approx(0.5, abs=0.02)  # not with the first task's other fold


def test_one_training_under_two_names_is_not_compared_with_itself(tmp_path: Path) -> None:
    cells = labelled("v2-F5", blocks=dict.fromkeys(("llama-3.1-8b", "biogpt", "biobert", "clinicalbert"), "minilm-l6"))
    shared = [replace(x, cell=cells[0].cell) for x in cells]
    entries = entries_of(shared, rows_of(cells[:1], tmp_path, lambda _: 0.5))
    lines = lines_of(TABLES["v2-F5"], entries)
    assert len(lines) == 4
    assert {line.effect for line in lines} == {None}
    assert pairs_of(TABLES["v2-F5"], entries) == []


def test_pairs_of_trainings_are_those_compared(tmp_path: Path) -> None:
    cells = labelled("v2-T5", (HIPPOCAMPUS, HEART), seeds=(0, 1))
    rows = rows_of(cells, tmp_path, lambda x: None if (x.row, x.cell.seed) == ("ViT-Baseline", 1) else 0.5)
    found = pairs_of(TABLES["v2-T5"], entries_of(cells, rows))
    assert len(found) == 4  # two rows against ViT on two tasks, of one seed
    assert {(a.model, a.seed, a.task == b.task, b.seed) for a, b in found} == {("vit-baseline", 0, True, 0)}
    assert "All 4 pairs of trainings" in unlike_pairs(found, "what is compared")
    found[0][1].content["environment"]["packages"]["torch"] = "3"
    told = unlike_pairs(found, "what is compared")
    assert "Of the 4 pairs of trainings behind these differences some differ in more than what is compared" in told
    assert "version of torch (1)" in told


def test_the_budget_tells_the_epochs_of_every_share(tmp_path: Path) -> None:
    cells = labelled("v2-F4", steps=400)
    rows = [*rows_of(cells, tmp_path, lambda _: 0.5).values()]
    for row in rows:
        row.content["cases"]["training"] = 17 if row.fraction < 0.2 else 51
    said = "\n".join(differences_of(TABLES["v2-F4"], cells, rows, {HIPPOCAMPUS: 9}))
    assert "400 steps (80 epochs of 10% of the data, 31 epochs of 30% of the data), batch 4; the paper 200" in said


def test_a_number_of_an_unnamed_task_is_said_to_be_so() -> None:
    for name in ("v1-B2", "v1-A1", "v2-T2"):
        said = "\n".join(differences_of(TABLES[name], labelled(name), [], {HIPPOCAMPUS: 9}))
        assert ("the paper does not name the task of its scores" in said) is (name == "v1-B2")


def test_a_paper_is_cited_by_its_own_numbers() -> None:
    printed = {name: TABLES[name].printed for name in ("v1-T2", "v1-A1", "v1-F3", "v1-A-F1", "v1-C2", "v2-F4")}
    assert [*printed.values()] == [
        "Table 2",
        "Table A1",
        "Figure 3",
        "Figure 1 of appendix A",
        "Figure C2",
        "Figure 4",
    ]


def test_a_mark_tells_no_direction_but_of_beaten_rivals(tmp_path: Path) -> None:
    for name, told in (("v2-T2", "for better or worse as its sign under *less ViT-Baseline*"), ("v2-T3", "is worse")):
        cells = labelled(name)
        lines = lines_of(TABLES[name], entries_of(cells, rows_of(cells, tmp_path, lambda _: 0.5)))
        page = to_markdown(TABLES[name], lines, [], [], [])
        assert told in page
        assert "for a significant improvement by MedVisionLlama" in page


def test_averages_are_tested(tmp_path: Path) -> None:
    cells = labelled("v2-T3", (HIPPOCAMPUS, HEART))
    rows = rows_of(cells, tmp_path, lambda x: 0.8 if x.row == "MedVisionLlama" else 0.6)
    lines = lines_of(TABLES["v2-T3"], entries_of(cells, rows))
    line = dice_lines(lines, "average")[RowKey("ViT Baseline", 1.0, False)]
    assert line.effect is not None
    assert (line.effect.cases.n, line.effect.difference) == (16, pytest.approx(-0.2, abs=0.02))
    assert line.marks == "*\N{DAGGER}"
    assert "| average (Task04, Task02) | dice | ViT Baseline | 0.74 ± 0.04* |" in to_markdown(
        TABLES["v2-T3"], lines, [], [], []
    )


def test_an_average_of_one_task_is_no_second_test(tmp_path: Path) -> None:
    cells = labelled("v2-T3", (HIPPOCAMPUS,))
    lines = lines_of(
        TABLES["v2-T3"],
        entries_of(cells, rows_of(cells, tmp_path, lambda x: 0.6 if x.row == "MedVisionLlama" else 0.5)),
    )
    tested = [line for line in lines if line.effect is not None]
    raw = [line.effect.cases.t_p for line in tested if line.effect is not None]
    assert {x.task for x in tested} == {HIPPOCAMPUS, "average"}
    once = len(tested) // 2
    smallest = [x for x, p in zip(tested, raw, strict=True) if p == min(raw)]
    assert {x.task for x in smallest} == {HIPPOCAMPUS, "average"}
    assert [x.holm_p for x in smallest] == pytest.approx([min(1, once * min(raw))] * len(smallest))
    assert 0 < once * min(raw) < 1, "or nothing could be told apart"


def in_csv(table: str, lines: Sequence[Line]) -> list[dict[str, str]]:
    head, *rows = to_csv(TABLES[table], lines, [])
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_every_test_is_told_with_its_pairs_seeds_and_effect_size(tmp_path: Path) -> None:
    cells = labelled("v2-T3", (HIPPOCAMPUS, HEART), seeds=(0, 1))

    def dice(x: Labelled) -> float | None:  # the measure has one seed, its rival two
        if x.row == "MedVisionLlama":
            return None if x.cell.seed else 0.8
        return 0.78 if x.row == "ViT Baseline" else None

    lines = lines_of(TABLES["v2-T3"], entries_of(cells, rows_of(cells, tmp_path, dice)))
    rows = [row for row in in_csv("v2-T3", lines) if (row["row"], row["metric"]) == ("ViT Baseline", "dice")]
    of_task, average = ({row["task"]: row for row in rows}[task] for task in (HIPPOCAMPUS, "average"))
    of_cells = {(x.row, x.cell.task, x.cell.seed): n for n, x in enumerate(cells)}
    ours, theirs = (
        np.array(scores(m, seed=of_cells[row, HIPPOCAMPUS, 0]))
        for row, m in (("ViT Baseline", 0.78), ("MedVisionLlama", 0.8))
    )
    less = ours - theirs
    assert float(of_task["difference"]) == pytest.approx(less.mean(), abs=1e-4)
    assert float(of_task["wilcoxon_p"]) == pytest.approx(wilcoxon(less).pvalue, abs=1e-4)
    assert float(of_task["cohens_dz"]) == pytest.approx(less.mean() / less.std(ddof=1), abs=1e-3)
    told = ("seeds", "shared_seeds", "cases", "pairs", "difference_interval")
    assert [of_task[name] for name in told] == ["2", "1", "8", "8", "bootstrap"]
    assert [average[name] for name in told] == ["2", "1", "0", "16", "t"]
    assert float(average["t_p"]) < 1
    assert (average["wilcoxon_p"], average["cohens_dz"]) == ("", "")
    unpaired = [row for row in in_csv("v2-T3", lines) if row["row"] == "MedVisionLlama"]
    assert {row["pairs"] + row["difference_interval"] + row["wilcoxon_p"] for row in unpaired} == {""}
    page = [line.split(" | ") for line in to_markdown(TABLES["v2-T3"], lines, [], [], []).splitlines()]
    cell_of = {(line[0], line[2]): line for line in page if len(line) == 11 and line[1] == "dice"}
    assert cell_of[f"| {HIPPOCAMPUS}", "ViT Baseline"][7].endswith(" (seed 0)")
    assert cell_of["| average (Task04, Task02)", "ViT Baseline"][7].endswith(" (n 16; seed 0)")
    assert cell_of["| average (Task04, Task02)", "ViT Baseline"][9:] == ["\N{EN DASH}", "\N{EN DASH} |"]


def test_pairs_are_told_once_where_they_are_those_of_the_row(tmp_path: Path) -> None:
    cells = labelled("v2-T2")
    lines = lines_of(TABLES["v2-T2"], entries_of(cells, rows_of(cells, tmp_path, lambda _: 0.8)))
    page = to_markdown(TABLES["v2-T2"], lines, [], [], [])
    assert " | 1 | " in page
    assert "(n " not in page.partition("Measured:")[0]
    assert "(seeds " not in page.partition("Measured:")[0]


def test_a_case_without_a_value_in_one_seed_counts_by_its_others(tmp_path: Path) -> None:
    cells = labelled("v2-T2", seeds=(0, 1))
    lacking = [math.nan, *[0.5] * 7]
    rows = [make_row(x.cell, tmp_path, {"test/native": [0.9] * 8 if x.cell.seed else lacking}) for x in cells]
    line = dice_lines(lines_of(TABLES["v2-T2"], entries_of(cells, {r.key: r for r in rows})), HIPPOCAMPUS)
    ours = line[RowKey("MedVisionLlama", 1.0, False)]
    assert ours.measured == pytest.approx(0.7)
    assert ours.cases.n == 8  # the first case by its second seed alone
    assert ours.cases.mean == pytest.approx((7 * 0.7 + 0.9) / 8)
    assert ours.effect is not None
    assert ours.effect.cases.n == 8


def test_another_program_is_compared_with_the_row_that_is_the_measure(tmp_path: Path) -> None:
    cells = labelled("v2-T3", fractions=(0.1, 0.3))
    means = {"MedVisionLlama": 0.8, "ViT Baseline": 0.5}
    rows = rows_of(cells, tmp_path, lambda x: means.get(x.row, 0.4) + (0.05 if x.cell.fraction == 0.3 else 0))
    lines = lines_of(TABLES["v2-T3"], [*entries_of(cells, rows), outside("other", 0.9)])
    line = dice_lines(lines, HIPPOCAMPUS)[RowKey("other", 1.0, True)]
    assert line.measure == "MedVisionLlama, 30%"
    assert line.effect is not None
    assert line.effect.difference == pytest.approx(0.05, abs=0.02)
    assert "(less MedVisionLlama, 30%)" in to_markdown(TABLES["v2-T3"], lines, [], [], [])


def test_only_a_beaten_rival_is_marked_where_the_paper_marks_those(tmp_path: Path) -> None:
    for name, rival, ours in (("v2-T3", "ViT Baseline", "MedVisionLlama"), ("v2-T4", "ViT-MLP", "MedVisionLlama")):
        cells = labelled(name)
        for of_rival, beaten in ((0.6, True), (0.95, False)):
            means = {ours: 0.8, rival: of_rival}
            rows = rows_of(cells, tmp_path / f"{name}{beaten}", means_of(means))
            line = dice_lines(lines_of(TABLES[name], entries_of(cells, rows)), HIPPOCAMPUS)[RowKey(rival, 1.0, False)]
            assert bool(line.marks) == (beaten or name != "v2-T3")
    key, effect = line.key, line.effect
    assert effect is not None
    far = Line(key, HIPPOCAMPUS, "test/native", "hd95_mm", None, effect=effect, holm_p=0.0, beaten=True)
    assert far.marks  # 0.15 more is worse where lower is better


def means_of(means: dict[str, float]) -> Dice:
    return lambda x: means.get(x.row)


def test_published_counts_keep_their_digits() -> None:
    for name in ("v2-T4", "v2-T5", "v2-T6", "v1-T4"):
        table = TABLES[name]
        printed = [c for c in published(table.version, table.number) if c.metric in table.counts]
        page = to_markdown(table, [], [Counted(c.row, c.metric, c.value, 2142.97, math.nan) for c in printed], [], [])
        for cell in printed:
            assert f"| {cell.row} | {cell.metric} | {cell.value!r} | 2,142.97 | \N{EN DASH} |" in page
    page = to_markdown(table, [], [Counted("ViT", "inference_ms", math.nan, math.nan, 5.751234)], [], [])
    assert "| ViT | inference_ms | \N{EN DASH} | \N{EN DASH} | 5.751 |" in page  # no clock tells more


@pytest.mark.parametrize("block", ["minilm-l6", "biobert", "smollm2-135m"])
def test_networks_of_equal_size_are_so_around_any_block(block: str) -> None:
    cells = {x.row: x.cell for x in labelled("v2-T4", blocks={"": block})}

    def parameters(row: str) -> int:
        return sum(p.numel() for p in build_network(cells[row].config, meta=True).parameters())

    ours = parameters("MedVisionLlama")
    assert (parameters("ViT-Depth"), parameters("ViT-MLP")) == pytest.approx((ours, ours), rel=0.02)
    (said,) = [s for s in differences_of(TABLES["v2-T4"], labelled("v2-T4", blocks={"": block}), [], {}) if "wide" in s]
    config = cells["ViT-Depth"].config
    assert isinstance(config, ModelConfig)
    assert f"{config.width} wide, {config.depth} blocks" in said
