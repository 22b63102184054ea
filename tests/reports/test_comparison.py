"""Comparing evaluated folders: pairing, marks, tables, refusals."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from medvisionllama.errors import InputError
from medvisionllama.reports.comparison import OVERALL, compare_folders, marks
from medvisionllama.run_folder import METRICS, ScoreRow, write_json, write_scores

CLASSES = ("ante|rior_1", "posterior")


def folder(path, values, classes=CLASSES, cases=None, **summary):
    """An evaluated folder whose every metric is ``values[class, case]``."""
    values = np.asarray(values, dtype=float)
    cases = cases or [f"case_{n:02d}" for n in range(values.shape[1])]
    rows = [
        ScoreRow(case, name, metric, values[i, j])
        for j, case in enumerate(cases)
        for i, name in enumerate(classes)
        for metric in METRICS
    ]
    write_scores(path / "scores.csv", rows)
    write_json(path / "summary.json", {"tolerance_mm": 1.0, "grid": "native", "regions": []} | summary)
    return path


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    first = generator.uniform(0.6, 0.9, (2, 16))
    return first, np.clip(first + generator.normal(0.03, 0.02, (2, 16)), 0, 1), first + 1e-9


def cell(result, class_name, metric, second):
    return next(
        c for c in result["comparisons"] if (c["class"], c["metric"], c["second"]) == (class_name, metric, second)
    )


def test_cells_are_scipys_tests_on_the_same_cases(tmp_path, values):
    first, second, _ = values
    result = compare_folders([folder(tmp_path / "a", first), folder(tmp_path / "b", second)])
    found = cell(result, "posterior", "dice", "b")
    assert found["t_p"] == pytest.approx(stats.ttest_rel(second[1], first[1]).pvalue, rel=1e-4)
    assert found["wilcoxon_p"] == pytest.approx(stats.wilcoxon(second[1], first[1]).pvalue)
    assert found["n"] == 16
    assert found["difference"] == pytest.approx((second[1] - first[1]).mean(), rel=1e-6)
    assert (found["better"], cell(result, "posterior", "hd95_mm", "b")["better"]) == ("b", "a")
    overall = cell(result, OVERALL, "dice", "b")
    assert overall["t_p"] == pytest.approx(stats.ttest_rel(second.mean(0), first.mean(0)).pvalue, rel=1e-4)
    assert result["pairing_unit"] == "case"


def test_the_order_of_cases_and_classes_does_not_matter(tmp_path, values):
    first, second, _ = values
    a, b = folder(tmp_path / "a", first), folder(tmp_path / "b", second)
    expected = compare_folders([a, b])["comparisons"]
    cases = [f"case_{n:02d}" for n in range(16)][::-1]
    folder(tmp_path / "b", second[::-1, ::-1], CLASSES[::-1], cases)
    assert compare_folders([a, b])["comparisons"] == expected


def test_holm_runs_over_the_whole_table(tmp_path, values):
    a, b, c = (folder(tmp_path / name, v) for name, v in zip("abc", values, strict=True))
    result = compare_folders([a, b, c])
    assert len(result["comparisons"]) == 2 * 3 * 8
    smallest = min(result["comparisons"], key=lambda found: found["t_p"])
    assert smallest["holm_p"] == pytest.approx(min(1, smallest["t_p"] * 48))
    for found in result["comparisons"]:
        assert found["marks"] == marks(found["t_p"], found["holm_p"])


def test_marks():
    assert [marks(0.05, 1), marks(0.049, 0.05), marks(0.001, 0.049)] == ["", "*", "*†"]
    assert marks(float("nan"), float("nan")) == ""


def test_overall_pairs_only_classes_both_know(tmp_path):
    nan = float("nan")
    a = folder(tmp_path / "a", [[0.8, 0.6, 0.5], [0.4, nan, 0.5]])
    b = folder(tmp_path / "b", [[0.9, 0.7, 0.5], [0.5, 0.0, 0.5]])
    result = compare_folders([a, b])
    overall = cell(result, OVERALL, "dice", "b")
    assert overall["difference"] == pytest.approx(0.2 / 3)
    assert (cell(result, "posterior", "dice", "b")["n"], cell(result, "posterior", "dice", "b")["left_out"]) == (2, 1)


def test_regions_are_compared_but_are_no_part_of_overall(tmp_path, values):
    first, second, _ = values
    a, b = (folder(tmp_path / n, v, regions=["posterior"]) for n, v in (("a", first), ("b", second)))
    classes = {c["class"] for c in compare_folders([a, b])["comparisons"]}
    assert classes == set(CLASSES)  # one class and one region: no overall


def test_unpaired_cases_are_refused_by_name(tmp_path, values):
    first, second, _ = values
    a = folder(tmp_path / "a", first)
    b = folder(tmp_path / "b", second[:, :15])
    with pytest.raises(InputError, match="case_15 only in a"):
        compare_folders([a, b])
    folder(tmp_path / "b", second, classes=("ante|rior_1", "head"))
    with pytest.raises(InputError, match="posterior only in a, head only in b"):
        compare_folders([a, b])


@pytest.mark.parametrize("difference", [{"tolerance_mm": 2.0}, {"grid": "model"}])
def test_scores_of_another_kind_are_refused(tmp_path, values, difference):
    a, b = folder(tmp_path / "a", values[0]), folder(tmp_path / "b", values[1], **difference)
    with pytest.raises(InputError, match="scored differently"):
        compare_folders([a, b])


def test_folders_that_cannot_be_compared(tmp_path, values):
    a = folder(tmp_path / "a", values[0])
    with pytest.raises(InputError, match="nothing to compare"):
        compare_folders([a])
    with pytest.raises(InputError, match="given twice"):
        compare_folders([a, a])
    with pytest.raises(InputError, match="evaluate"):
        compare_folders([a, tmp_path / "b"])
    rows = (a / "scores.csv").read_text().splitlines()
    (a / "scores.csv").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(InputError, match="not one value per case"):
        compare_folders([a, folder(tmp_path / "b", values[1])])


def test_names_are_as_short_as_tells_them_apart(tmp_path, values):
    a, b = folder(tmp_path / "vit" / "test", values[0]), folder(tmp_path / "mvl" / "test", values[1])
    assert list(compare_folders([a, b])["folders"]) == ["vit/test", "mvl/test"]


def test_tables_say_the_same_in_three_forms(tmp_path, values):
    first, second, _ = values
    a, b = folder(tmp_path / "a", first), folder(tmp_path / "b_1", second)
    result = compare_folders([a, b], tmp_path / "out")
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(written["comparisons"]) == 24
    assert "markdown" not in written
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    for line, found in zip(table, written["comparisons"], strict=True):
        assert (line["class"], line["metric"], line["marks"]) == (found["class"], found["metric"], found["marks"])
        assert float(line["t_p"]) == pytest.approx(found["t_p"])
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert markdown == result["markdown"]
    lines = markdown.splitlines()
    assert lines[0] == "| class | metric | n | a | b_1 |"
    mean = f"{second[1].mean():.3f} ± {second[1].std(ddof=1):.3f}\\*†"
    assert next(line for line in lines if line.startswith("| posterior | dice")).endswith(f"| {mean} |")
    assert r"ante\|rior_1" in markdown
    assert "Pairing unit: case" in markdown
    latex = (tmp_path / "out" / "comparison.tex").read_text()
    assert latex.count(r" \\") == 25
    assert r"b\_1" in latex
    assert r"$\pm$" in latex
    assert r"$^{*}$$^{\dagger}$" in latex
