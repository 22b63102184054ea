"""The page says what was measured, says what is missing, and asks nothing of the network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from page_reader import Page
from run_maker import CLASSES, evaluated, make_run, score_part
from scipy.stats import ttest_rel

from medvisionllama.errors import InputError
from medvisionllama.reports.page import write_page
from medvisionllama.reports.paper_figures import qualitative_grid
from medvisionllama.reports.part_view import choose_cases
from medvisionllama.reports.run_contents import distinct_labels, read_picture, read_run, read_runs
from medvisionllama.reports.score_table import differences, seed_spread
from medvisionllama.reports.wording import duration, number, p_value, signed
from medvisionllama.run_folder import ScoreRow, read_scores, write_json, write_scores


@pytest.fixture(scope="module")
def page(one_page: Path) -> Page:
    return Page(one_page)


def test_prints_the_means_an_independent_reading_gives(run: Path, page: Page) -> None:
    lines = (run / "validation" / "scores.csv").read_text().splitlines()[1:]
    dice = {
        name: [float(v) for _, c, m, v in (line.split(",") for line in lines) if (c, m) == (name, "dice")]
        for name in CLASSES.values()
    }
    for values in dice.values():
        assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in page.text
    by_case = np.mean(list(dice.values()), axis=0)
    assert f"reached a mean Dice of {by_case.mean():.3f} on 12 validation cases" in page.text
    best = int(np.argmax(by_case))
    assert f"Best case_{best:03d}, Dice {by_case[best]:.3f}" in page.text


def test_tells_what_was_trained_on_what(page: Page) -> None:
    for fact in (
        "48 training, 12 validation, 12 test",
        "minilm-l6 at main, bert, layer -1, pretrained",
        "53aa5117",
        "1,330,000 trained, 1,774,464 frozen",
        "medvisionllama train DATA/Task04_Hippocampus --model medvisionllama-u",
        "torch 2.13.0",
        "a processor, 2 threads, 24 GB, on cpu",
        "Research software, not a medical device.",
    ):
        assert fact in page.text


def test_asks_nothing_of_the_network(page: Page) -> None:
    assert page.asked_from_outside == []
    fetched_by_style = re.findall(r"url\((?!#)[^)]*\)|@import", page.source)
    assert fetched_by_style == []


def test_every_picture_has_words_and_every_id_is_unique(page: Page) -> None:
    assert len(page.all("img")) == 3
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    assert all("aria-labelledby" in svg for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {name for svg in page.all("svg") for name in svg["aria-labelledby"].split()}
    used = set(re.findall(r"url\(#([^)]+)\)", page.source))
    links = {a["href"].removeprefix("#") for a in page.all("a") + page.all("use")}
    assert (named | used | links) <= set(ids)


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model="</script><script>alert(1)</script>", cases=1)
    page = Page(write_page([run], tmp_path / "out"))
    assert "</script><script>alert(1)</script>" in page.text
    assert "<script>alert" not in page.source


def test_writes_every_figure_as_png_and_svg_beside_the_page(page: Page) -> None:
    names = {path.stem for path in (page.path.parent / "figures").iterdir()}
    assert {"curve-loss", "curve-validation-dice", "boxes-validation-dice", "case-validation-1-worst"} <= names
    for name in names:
        assert (page.path.parent / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (page.path.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=1)
    first, second = (write_page([run], tmp_path / name).parent for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_without_images_nothing_of_a_patient_is_written(run: Path, tmp_path: Path) -> None:
    page = Page(write_page([run], tmp_path, images=False))
    assert page.all("img") == []
    assert "image/webp" not in page.source
    assert "made without images" in page.text
    assert not list((tmp_path / "figures").glob("case-*"))
    assert (tmp_path / "figures" / "curve-loss.png").exists()


def test_a_run_without_scores_shows_its_training(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("validation"))
    page = Page(write_page([tmp_path / "run"], tmp_path / "out"))
    assert "medvisionllama predict RUN --part validation" in page.text
    assert "It has not been scored yet." in page.text
    assert "Training loss" in page.text


def test_an_interrupted_run_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("validation", "summary.json"))
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"")
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 41, "lo')
    page = Page(write_page([tmp_path / "run"], tmp_path / "out"))
    assert "Training was interrupted at step 40" in page.text
    assert "No training summary" in page.text
    assert "Training loss" in page.text


def test_a_run_that_just_began_is_a_page_of_gaps(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("format: 1\n")
    page = Page(write_page([tmp_path / "run"], tmp_path / "out"))
    for gap in ("No training summary", "No record of the machine", "No training log", "No scores"):
        assert gap in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").touch()
    with pytest.raises(InputError, match="not a run folder"):
        write_page([tmp_path / "scans"], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [("summary.json", '{"format": 99}'), ("plan.json", '{"format": 99}'), ("config.yaml", "format: 99\n")],
)
def test_a_run_of_another_version_is_refused(name: str, content: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("pictures"))
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(InputError, match=r"another version.*format 99"):
        write_page([tmp_path / "run"], tmp_path / "out")


def test_cases_without_reference_are_still_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=1, reference=False)
    page = Page(write_page([run], tmp_path / "out"))
    assert len(page.all("img")) == 1
    assert "the prediction's outlines" in page.all("img")[0]["alt"]
    assert "outlines of reference" not in page.all("img")[0]["alt"]


def test_a_broken_picture_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3)
    for path in (run / "validation" / "pictures").iterdir():
        path.write_bytes(b"torn")
    page = Page(write_page([run], tmp_path / "out"))
    assert "cannot read the picture" in page.text
    assert "Anterior" in page.text


def test_a_case_without_any_value_is_left_out_of_the_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=4, pictures=False)
    rows = [ScoreRow(f"case_{i:03d}", "Anterior", "dice", v) for i, v in enumerate((0.5, 0.7, float("nan"), 0.6))]
    write_scores(run / "validation" / "scores.csv", rows)
    write_json(run / "validation" / "summary.json", evaluated(rows))
    page = Page(write_page([run], tmp_path / "out"))
    assert "0.600 ± 0.100" in page.text
    assert "on 3 validation cases" in page.text


def test_missed_and_false_alarms_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3, pictures=False)
    rows = read_scores(run / "validation" / "scores.csv")
    write_json(run / "validation" / "summary.json", evaluated(rows, missed=2))
    page = Page(write_page([run], tmp_path / "out"))
    assert "Missed structures 4" in page.text


def test_several_runs_stand_side_by_side(comparison: Path) -> None:
    page = Page(comparison)
    assert "2 runs on the same 6 validation cases. Mean Dice: medvisionllama-u" in page.text
    assert len(page.all("img")) == 1 + 2 * 3, "one of all runs, and three of each"
    assert "different seeds: 1, 2" in page.text
    assert "do not hold the same cases" not in page.text


def test_differences_are_tested_case_by_case(tmp_path: Path) -> None:
    """Against SciPy, on numbers read independently, corrected by Holm by hand."""
    rivals = [
        make_run(tmp_path / model, model=model, seed=seed, lift=lift, pictures=False)
        for seed, (model, lift) in enumerate((("one", 0.0), ("two", -0.3)))
    ]
    tables = []
    for run in rivals:
        lines = [line.split(",") for line in (run / "validation" / "scores.csv").read_text().splitlines()[1:]]
        tables.append({(case, name, metric): float(value) for case, name, metric, value in lines})
    cases = sorted({case for case, _, _ in tables[0]})

    def p(metric: str, *names: str) -> float:
        one, two = ([np.mean([table[case, name, metric] for name in names]) for case in cases] for table in tables)
        return float(ttest_rel(two, one).pvalue)

    classes = list(CLASSES.values())
    raw = [
        p(metric, *names) for names in ([classes[0]], [classes[1]], classes) for metric in ("dice", "nsd", "hd95_mm")
    ]
    order = np.argsort(raw)
    holm = np.maximum.accumulate(np.minimum(1, np.sort(raw) * np.arange(9, 0, -1)))[np.argsort(order)]
    found = differences(read_runs(rivals), "validation")
    assert [cell.paired.t_p for cell in found] == pytest.approx(raw)
    assert [cell.holm_p for cell in found] == pytest.approx(holm)
    assert min(raw) < 0.05 < max(raw), "the made runs differ in Dice, not in HD95"
    page = Page(write_page(rivals, tmp_path / "out", images=False))
    assert "Is the difference more than chance?" in page.text
    assert f"p {p_value(raw[0])}" in page.text


def test_cases_pictured_by_one_run_only_leave_a_gap(tmp_path: Path) -> None:
    made = [make_run(tmp_path / model, model=model, cases=3) for model in ("one", "two", "three")]
    pictures = [run / "validation" / "pictures" for run in made]
    for path in (pictures[0] / "case_001.npz", *pictures[2].iterdir()):
        path.unlink()
    contents = read_runs(made)

    def gaps(*cases: str) -> int:
        figure = qualitative_grid(contents, "validation", cases)
        return [text.get_text() for axes in figure.axes for text in axes.texts].count("no picture\nwas kept")

    assert gaps("case_000", "case_001", "case_002") == 1 + 3
    assert gaps() == 2, "without the case that fewer runs have; the third run has none at all"
    for path in pictures[1].iterdir():
        path.unlink()
    page = Page(write_page(made, tmp_path / "out"))
    assert "No case has pictures in two runs" in page.text


def test_a_metric_that_no_case_has_is_left_out_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3, pictures=False)
    rows = read_scores(run / "validation" / "scores.csv")
    unknown = [ScoreRow(r.case, r.class_name, r.metric, float("nan") if r.metric == "nsd" else r.value) for r in rows]
    write_scores(run / "validation" / "scores.csv", unknown)
    page = Page(write_page([run], tmp_path / "out"))
    assert "NSD was not measured" in page.text
    assert not (tmp_path / "out" / "figures" / "boxes-validation-nsd.svg").exists()


def test_runs_on_other_cases_are_not_silently_compared(run: Path, rivals: list[Path], tmp_path: Path) -> None:
    page = Page(write_page([run, rivals[1]], tmp_path, images=False))
    assert "The validation parts do not hold the same cases" in page.text


def test_folds_are_taken_together(tmp_path: Path) -> None:
    for fold in range(2):
        part = make_run(tmp_path / "run" / f"fold_{fold}", cases=3, pictures=False, seed=fold) / "validation"
        rows = [
            ScoreRow(f"f{fold}_{r.case}", r.class_name, r.metric, r.value) for r in read_scores(part / "scores.csv")
        ]
        write_scores(part / "scores.csv", rows)
    contents = read_run(tmp_path / "run")
    assert list(contents.logs) == ["fold_0", "fold_1"]
    assert len(contents.parts[0].cases) == 6
    assert contents.parts[0].count("missed", "Anterior") == 0
    assert contents.missing == ()


def test_both_grids_of_the_paper_protocol_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3, pictures=False)
    shutil.rmtree(run / "validation")
    for grid in ("native", "model"):
        score_part(run / "validation" / grid, np.random.default_rng(0), 3)
    assert [part.title for part in read_run(run).parts] == ["validation, native grid", "validation, model grid"]
    page = Page(write_page([run], tmp_path / "out"))
    assert "Validation, model grid (3 cases)" in page.text


def test_labels_use_the_shortest_name_that_tells_runs_apart(run: Path, rivals: list[Path]) -> None:
    assert [r.label for r in read_runs(rivals)] == ["medvisionllama-u", "vit-u"]
    assert [r.label for r in read_runs([run, *rivals])] == [
        "medvisionllama-u, seed 0",
        "medvisionllama-u, seed 1",
        "vit-u, seed 2",
    ]
    same = [read_run(run), read_run(run)]
    assert distinct_labels(same) == ["medvisionllama-u, 1", "medvisionllama-u, 2"]


def test_seeds_are_a_spread_and_never_pooled_with_cases(tmp_path: Path) -> None:
    made = [make_run(tmp_path / str(seed), seed=seed, cases=3, pictures=False) for seed in range(3)]
    other = make_run(tmp_path / "other", seed=0, cases=3, pictures=False, steps=30)
    means = [np.mean(list(run.parts[0].values("dice").values())) for run in read_runs(made)]
    (spread,) = seed_spread(read_runs([*made, other]), "validation")
    assert spread.seeds == ("0", "1", "2")
    assert (spread.mean, spread.lowest, spread.highest) == pytest.approx((np.mean(means), min(means), max(means)))
    page = Page(write_page(made, tmp_path / "out", images=False))
    assert f"mean Dice {np.mean(means):.3f} over seeds 0, 1, 2" in page.text


def test_a_later_page_without_images_takes_the_earlier_images_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=1)
    out = write_page([run], tmp_path / "out").parent
    (out / "figures" / "mine.png").write_text("not ours")
    assert list(out.rglob("case-*"))
    write_page([run], out, images=False)
    assert not list(out.rglob("case-*"))
    assert (out / "figures" / "mine.png").exists()


@pytest.mark.parametrize("foreign", ["index.html", "figures/case-overview.svg"])
def test_files_of_somebody_else_are_left_alone(foreign: str, run: Path, tmp_path: Path) -> None:
    theirs = tmp_path / foreign
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("<title>My thesis</title>")
    with pytest.raises(InputError, match=r"holds .*--out"):
        write_page([run], tmp_path)
    assert theirs.read_text() == "<title>My thesis</title>"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs]


def test_an_interrupted_page_is_taken_up_and_leaves_no_image(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("medvisionllama.reports.page._curves", cut)
        with pytest.raises(KeyboardInterrupt):
            write_page([run], tmp_path)
    assert list(tmp_path.glob("figures/case-*"))
    assert "not finished" in (tmp_path / "index.html").read_text()
    write_page([run], tmp_path, images=False)
    assert not list(tmp_path.glob("figures/case-*"))


def test_no_run_and_no_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        write_page([], tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        write_page([tmp_path / "nothing"], tmp_path)


def test_an_output_that_cannot_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_page([run], tmp_path / "file")


@pytest.mark.parametrize("keep", [0, 10, 200, 2_000])
def test_a_torn_picture_is_said(tmp_path: Path, keep: int) -> None:
    whole = make_run(tmp_path / "run", cases=1) / "validation" / "pictures" / "case_000.npz"
    (tmp_path / "a.npz").write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot read the picture"):
        read_picture(tmp_path / "a.npz")


def test_a_picture_of_unequal_arrays_is_refused(tmp_path: Path) -> None:
    arrays = {"image": np.zeros((2, 2, 2), np.uint8), "prediction": np.zeros((2, 2, 3), np.uint8), "affine": np.eye(4)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match="do not fit"):
        read_picture(tmp_path / "a.npz")


def test_a_case_without_picture_is_stood_in_for_by_the_nearest_in_rank() -> None:
    dice = {f"c{rank}": 1 - rank / 10 for rank in range(7)}
    assert choose_cases(dice, set(dice)) == {"best": "c0", "median": "c3", "worst": "c6"}
    assert choose_cases(dice, {"c0", "c2", "c6"}) == {"best": "c0", "near median": "c2", "worst": "c6"}
    assert choose_cases(dice, {"c5"}) == {"near best": "c5"}
    assert choose_cases(dice, set()) == {}
    assert choose_cases({"a": 0.5}, {"a"}) == {"best": "a"}


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "\N{EN DASH}"), (41.6, "42 s"), (250, "4 min 10 s"), (11_100, "3 h 05 min")]
)
def test_durations_are_said_in_two_units(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_numbers_are_printed_as_people_write_them() -> None:
    minus, dash = "\N{MINUS SIGN}", "\N{EN DASH}"
    assert [number(0.12345), number(1.2345, "hd95_mm"), number(float("nan"))] == ["0.123", "1.23", dash]
    assert [signed(v, "dice") for v in (0.0123, -0.0123, -0.0001)] == ["+0.012", f"{minus}0.012", "0.000"]
    assert [p_value(v) for v in (0.04321, 1e-9, float("nan"))] == ["0.043", "< 0.001", dash]


def test_reports_need_neither_torch_nor_nibabel() -> None:
    code = "import medvisionllama.reports.page, sys; print([m for m in ('torch', 'nibabel') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
