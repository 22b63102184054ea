"""The papers' numbers: typed as printed, and what arithmetic says of them."""

import re

import numpy as np
import pytest

from medvisionllama.experiments.tables import (
    AVERAGE,
    MODALITIES,
    PUBLISHED,
    TASKS,
    impossible_cells,
    jaccard_of,
    published,
)
from medvisionllama.run_folder import METRICS


def numbers_of(version, table, row, metric):
    return [(cell.value, cell.sd, cell.significant) for cell in published(version, table, row, None, metric)]


def test_no_cell_is_typed_twice():
    places = [(c.version, c.table, c.row, c.task, c.metric) for c in PUBLISHED]
    assert len(set(places)) == len(places)


def test_every_cell_has_a_known_place():
    others = {"parameters_m", "trainable_m", "frozen_m", "gflops", "inference_ms", "training_hours", "cases"}
    for cell in PUBLISHED:
        assert cell.metric in {*METRICS, *others}
        assert cell.task in {*TASKS, AVERAGE, ""}
        assert cell.value > 0


def test_counts_the_papers_state_themselves():
    # v2, Table 2: better in all 60 comparisons, 41 of them marked; Table 3: better in all 14.
    ours, baseline = published("v2", "2", "MedVisionLlama"), published("v2", "2", "ViT-Baseline")
    assert len(ours) == len(baseline) == 60
    assert sum(cell.significant for cell in ours) == 41
    for a, b in zip(ours, baseline, strict=True):
        assert (a.task, a.metric) == (b.task, b.metric)
        assert (a.value < b.value) if a.metric == "hd95_mm" else (a.value > b.value)
    assert sum(cell.significant for cell in published("v2", "3")) == 7


@pytest.mark.parametrize(
    ("metric", "vit", "medvisionllama"),
    [("dice", 0.74, 0.79), ("accuracy", 0.93, 0.96), ("precision", 0.68, 0.76), ("hd95_mm", 15.4, 11.7)],
)
def test_averages_the_text_of_v1_states(metric, vit, medvisionllama):
    for row, stated in (("ViT", vit), ("MedVisionLlama", medvisionllama)):
        values = [cell.value for cell in published("v1", "2", row, metric=metric)]
        assert np.mean(values) == pytest.approx(stated, abs=0.0051 if stated < 1 else 0.051)


def test_averages_of_v2_are_those_of_its_other_tables():
    for row, other in (("ViT-Baseline", "ViT Baseline"), ("MedVisionLlama", "MedVisionLlama")):
        for metric in ("dice", "nsd"):
            mean = np.mean([cell.value for cell in published("v2", "2", row, metric=metric)])
            (stated,) = published("v2", "3", other, AVERAGE, metric)
            assert mean == pytest.approx(stated.value, abs=0.0051)


def test_impossible_cells():
    assert (len(impossible_cells("v1")), len(impossible_cells("v2"))) == (8, 4)
    assert len(published("v1", "2", metric="dice")) == len(published("v2", "2", metric="dice")) == 20
    worst = max(impossible_cells("v1"), key=lambda cell: cell.least_jaccard - cell.jaccard.value)
    assert (worst.dice.row, worst.dice.task) == ("MedVisionLlama", "Task01_BrainTumour")
    assert (worst.dice.value, worst.jaccard.value) == (0.84, 0.62)


def test_more_slack_finds_less():
    for version in ("v1", "v2"):
        counts = [len(impossible_cells(version, slack)) for slack in (0.0, 0.005, 0.02, 0.2)]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == 0


def test_no_real_scores_are_called_impossible():
    # The bound itself: whatever the cases, their mean Jaccard is at least that of their mean Dice.
    generator = np.random.default_rng(0)
    for _ in range(200):
        dice = generator.beta(*generator.uniform(0.2, 9, 2), size=generator.integers(1, 40))
        assert np.mean([jaccard_of(d) for d in dice]) >= jaccard_of(float(dice.mean())) - 1e-12


def test_disagreements_between_tables_stand():
    spreads = {published("v1", t, r, TASKS[0], "dice")[0].sd for t, r in (("2", "ViT"), ("3", "ViT (HA)"))}
    assert spreads == {0.14, 0.08}


def test_modalities_and_cases():
    assert [task for task in TASKS if MODALITIES[task] == "MRI"] == [TASKS[i] for i in (0, 1, 3, 4)]
    assert [cell.value for cell in published("v2", "1")] == [484, 20, 100, 260, 32, 53, 281, 303, 41, 126]


# --- against the papers' own text, where it lies beside the checkout


def in_text(line):
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


@pytest.fixture
def papers(real_data):
    folder = real_data.parent / "papers"
    if not folder.is_dir():
        pytest.skip("no papers beside the checkout")
    return {version: (folder / f"paper_{version}.txt").read_text(encoding="utf-8") for version in ("v1", "v2")}


@pytest.mark.real_data
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_table_2_is_as_printed(papers, version):
    names = {"dice": "Dice", "accuracy": "Accuracy", "precision": "Precision", "jaccard": "Jaccard", "nsd": "NSD"}
    names |= {"hd95_mm": "HD95", "specificity": "Specificity", "recall": "Recall" if version == "v1" else "Sensitivity"}
    baseline = "ViT" if version == "v1" else "ViT-Baseline"
    lines = papers[version].splitlines()
    metrics = list(dict.fromkeys(cell.metric for cell in published(version, "2")))
    assert len(metrics) == 6
    for metric in metrics:
        at = next(
            i for i, line in enumerate(lines) if line.startswith(f"{names[metric]}\t") and len(in_text(line)) == 20
        )
        for number, line in ((0, lines[at]), (1, lines[at + 1])):
            printed = in_text(line.replace("± ", "±"))
            rows = (numbers_of(version, "2", row, metric) for row in (baseline, "MedVisionLlama"))
            assert [cell[number] for pair in zip(*rows, strict=True) for cell in pair] == printed
        if version == "v2":
            stars = ["*" in cell for cell in lines[at].split("\t")[1:]]
            assert [cell[2] for cell in numbers_of("v2", "2", "MedVisionLlama", metric)] == stars


@pytest.mark.real_data
def test_every_other_number_stands_in_the_text(papers):
    for cell in PUBLISHED:
        text = papers[cell.version]
        digits = re.escape(f"{cell.value:g}".removeprefix("0"))
        assert re.search(rf"{digits}0?(?!\d)", text), cell


@pytest.mark.real_data
def test_table_4_of_v1_is_as_printed(papers):
    lines = [line for line in papers["v1"].splitlines() if re.match(r"Task\d\d\t\d", line)]
    for task, line in zip(TASKS, lines[-10:], strict=True):
        typed = [n for cell in published("v1", "4", task=task) for n in (cell.value, cell.sd)]
        assert typed == in_text(line)
