"""Comparing evaluated folders: pairing, marks, tables, refusals."""

import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from medvisionllama.errors import InputError
from medvisionllama.reports.compare_folders import compare_folders
from medvisionllama.reports.comparison import marks
from medvisionllama.reports.evaluated import OVERALL
from medvisionllama.run_folder import METRICS, ScoreRow, read_json, write_json, write_scores

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
    assert lines[0] == "| class | metric | n | a | b_1 | difference [95 %] | d_z |"
    mean = f"{second[1].mean():.3f} ± {second[1].std(ddof=1):.3f}\\*†"
    found = cell(result, "posterior", "dice", "b_1")
    difference = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    row = next(line for line in lines if line.startswith("| posterior | dice"))
    assert row.endswith(f"| {mean} | {difference} | {found['cohens_dz']:+.2f} |")
    assert r"ante\|rior_1" in markdown
    assert "Pairing unit: case" in markdown
    latex = (tmp_path / "out" / "comparison.tex").read_text()
    assert latex.count(r" \\") == 25 + 7
    assert "%" not in latex.replace(r"\%", "")  # what is to be read is no comment
    for told in ("Pairing unit: case", "paired t-test", "NSD at 1 mm", r"d\_z", "n: cases in which both"):
        assert told in latex
        assert told.replace("\\", "") in markdown
    assert r"b\_1" in latex
    assert r"$\pm$" in latex
    assert r"$^{*}$$^{\dagger}$" in latex


# --- what has no pair

NAN = float("nan")
STRUCTURE = np.linspace(0.7, 0.81, 10)  # the ten cases that have the structure


@pytest.fixture
def cautious_and_rash(tmp_path):
    """Twenty cases, ten without the structure: one system leaves those empty, the other invents something in each."""
    a = folder(tmp_path / "a", [[*STRUCTURE, *[NAN] * 10]], ["tumour"])
    b = folder(tmp_path / "b", [[*(STRUCTURE + np.tile([0.02, 0.04], 5)), *[0.0] * 10]], ["tumour"])
    return a, b, tmp_path / "out"


def test_means_are_over_the_pairs_that_are_tested(cautious_and_rash):
    a, b, out = cautious_and_rash
    found = cell(compare_folders([a, b], out), "tumour", "dice", "b")
    means = found["first_summary"]["mean"], found["second_summary"]["mean"]
    assert means == pytest.approx((0.755, 0.785))
    assert means[1] - means[0] == pytest.approx(found["difference"])
    assert found["first_summary"]["n"] == found["second_summary"]["n"] == found["n"] == 10
    row = next(r for r in (out / "comparison.md").read_text().splitlines() if r.startswith("| tumour | dice"))
    assert "| 10 of 20 | 0.755 ±" in row
    assert "| 0.785 ±" in row


def test_false_alarms_against_a_rightly_absent_rival_are_told_in_every_form(cautious_and_rash):
    a, b, out = cautious_and_rash
    result = compare_folders([a, b], out)
    found = cell(result, "tumour", "dice", "b")
    assert found["first_counts"] == {"missed": 0, "false_alarms": 0, "absent": 10}
    assert found["second_counts"] == {"missed": 0, "false_alarms": 10, "absent": 0}
    note = "tumour, b against a: 10 of 20 cases are in no mean and no test: in 10 a is rightly empty where b raises a"
    assert result["notes"][0].startswith(note)
    assert result["unpaired"][0]["only_first_absent"] == [f"case_{n}" for n in range(10, 20)]
    (line, *_) = csv.DictReader(io.StringIO((out / "comparison.csv").read_text()))
    assert (line["first_absent"], line["second_false_alarms"], line["left_out"]) == ("10", "10", "10")
    for name, row in (("md", "| tumour | b | 0 | 10 | 0 |"), ("tex", r"tumour & b & 0 & 10 & 0 \\")):
        text = (out / f"comparison.{name}").read_text()
        assert row in text
        assert note in text


def test_overall_adds_up_what_its_classes_missed(tmp_path):
    both = [0.8, 0.6, 0.5]
    a = folder(tmp_path / "a", [both, [0.4, NAN, NAN]])
    b = folder(tmp_path / "b", [both, [0.5, 0.0, NAN]])
    result = compare_folders([a, b])
    overall = cell(result, OVERALL, "dice", "b")
    assert overall["first_counts"] == {"missed": 0, "false_alarms": 0, "absent": 2}
    assert overall["second_counts"] == {"missed": 0, "false_alarms": 1, "absent": 1}
    # Case 0: both classes; cases 1 and 2: the first class alone, in both systems.
    assert overall["first_summary"]["mean"] == pytest.approx((0.6 + 0.6 + 0.5) / 3)
    assert overall["second_summary"]["mean"] == pytest.approx((0.65 + 0.6 + 0.5) / 3)
    assert result["notes"][0].endswith("(case_01); in 1 both are rightly empty.")
    assert result["notes"][1].endswith("are in no mean: 1 of b, 0 of a.")


def test_nothing_left_out_needs_no_note(tmp_path, values):
    result = compare_folders([folder(tmp_path / "a", values[0]), folder(tmp_path / "b", values[1])])
    assert (result["notes"], result["unpaired"]) == ([], [])


def test_what_was_counted_goes_before_what_the_table_leaves_open(tmp_path):
    a, b = (folder(tmp_path / name, [[0.0, 0.5]], ["x"]) for name in "ab")  # accuracy = specificity = 0
    assert cell(compare_folders([a, b]), "x", "dice", "b")["first_counts"]["false_alarms"] == 1
    for path in (a, b):
        summary = read_json(path / "summary.json")
        write_json(path / "summary.json", summary | {"outcomes": {"x": {"missed": [], "false_alarms": []}}})
    assert cell(compare_folders([a, b]), "x", "dice", "b")["first_counts"]["false_alarms"] == 0


def test_other_references_are_noticed(tmp_path):
    a = folder(tmp_path / "a", [[0.8, NAN, 0.5]], ["x"])
    b = folder(tmp_path / "b", [[0.8, 0.7, 0.5]], ["x"])
    with pytest.raises(InputError, match=r"not scored against the same references.*x in case_01"):
        compare_folders([a, b])


def test_a_stray_label_of_one_system_does_not_end_the_comparison(tmp_path):
    a = folder(tmp_path / "a", [[0.8, 0.7, 0.5], [0.5, 0.5, 0.5]], ["10", "2"])
    b = folder(tmp_path / "b", [[0.9, 0.7, 0.5], [0.0, NAN, NAN], [0.5, 0.5, 0.6]], ["2", "7", "10"])
    result = compare_folders([a, b])
    assert list(dict.fromkeys(c["class"] for c in result["comparisons"])) == ["2", "7", "10", OVERALL]
    assert result["notes"][0] == "Labels that no label map of a holds, absent there: 7."
    stray = cell(result, "7", "dice", "b")
    assert (stray["n"], stray["second_counts"]["false_alarms"], stray["first_counts"]["absent"]) == (0, 1, 3)
    assert cell(result, "2", "dice", "b")["difference"] == pytest.approx((0.4 + 0.2 + 0) / 3)
    # With class names a class that is lacking is another data set's.
    folder(tmp_path / "b", [[0.9, 0.7, 0.5], [0.5, 0.5, 0.6]], ["2", "tumour"])
    with pytest.raises(InputError, match=r"tumour only in b.*--dataset"):
        compare_folders([a, tmp_path / "b"])


def test_several_systems_have_a_line_each(tmp_path, values):
    folders = [folder(tmp_path / name, v) for name, v in zip("abc", values, strict=True)]
    lines = compare_folders(folders)["markdown"].splitlines()
    assert lines[0] == "| class | metric | system | n | a | the system | difference [95 %] | d_z |"
    assert [line.split(" | ")[2] for line in lines[2:6]] == ["b", "c", "b", "c"]


def test_what_is_infinite_is_empty_in_files_and_told_in_the_table(tmp_path):
    a = folder(tmp_path / "a", [[0.25, 0.5, 0.75]], ["x"])
    b = folder(tmp_path / "b", [[0.5, 0.75, 1.0]], ["x"])
    result = compare_folders([a, b], tmp_path / "out")
    assert math.isinf(cell(result, "x", "dice", "b")["cohens_dz"])
    (line, *_) = csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text()))
    assert line["cohens_dz"] == ""
    assert read_json(tmp_path / "out" / "comparison.json")["comparisons"][0]["cohens_dz"] is None
    assert "| +∞ |" in result["markdown"]
    assert r"+$\infty$" in (tmp_path / "out" / "comparison.tex").read_text()
