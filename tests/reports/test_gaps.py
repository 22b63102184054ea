"""What runs lack is said, and numbers stay under their own names: no sentence of a page is truer than its runs."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from page_reader import Page
from run_maker import CLASSES, make_run, score_part, write_picture

from medvisionllama.errors import InputError
from medvisionllama.reports.page import write_page
from medvisionllama.reports.part_view import cases_in_words
from medvisionllama.reports.run_contents import read_run, read_runs
from medvisionllama.reports.volumes import structure_volumes
from medvisionllama.reports.wording import UNKNOWN, marked_code
from medvisionllama.run_folder import ScoreRow, read_scores, write_json, write_scores

CONFIG = """format: 1
model_name: vit-u
recipe_name: native
protocol: native
fold: 1
fraction: 0.5
seed: 7
model:
  middle:
    kind: language
    block: {source: minilm-l6, layers: [-1], init: pretrained, final_norm: true, revision: null}
recipe:
  steps: 1000
"""


def table(page: Page, label: str) -> list[list[str]]:
    """The cells of the table in the region of that name, row by row, as words."""
    source = page.source[page.source.index(f'aria-label="{label}"') :]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", source[: source.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in row] for row in cells]


def without_nsd(run: Path) -> None:
    path = run / "validation" / "scores.csv"
    rows = read_scores(path)
    write_scores(
        path, [ScoreRow(r.case, r.class_name, r.metric, float("nan") if r.metric == "nsd" else r.value) for r in rows]
    )


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_metric_that_one_run_lacks_stays_under_its_own_name(lacking: int, tmp_path: Path) -> None:
    models = ("one", "two", "three")
    runs = [make_run(tmp_path / m, model=m, seed=s, cases=4, pictures=False) for s, m in enumerate(models)]
    without_nsd(runs[lacking])
    page = Page(write_page(runs, tmp_path / "out", images=False))
    header, *rows = table(page, "Score table, validation")
    assert header[1:4] == ["Dice", "NSD", "HD95 in mm"]
    contents = read_runs(runs)
    for row in (row for row in rows if len(row) == len(header)):
        place = models.index(row[0])
        assert (row[2] == UNKNOWN) == (place == lacking)
        assert UNKNOWN not in (row[1], row[3])
    first_class = [row for row in rows if len(row) > 1][:3]
    for row, run in zip(first_class, contents, strict=True):
        values = run.parts[0].values("hd95_mm", CLASSES[1]).values()
        assert row[3].startswith(f"{sum(values) / 4:.2f} ")
    header, *rows = table(page, "Differences between runs, validation")
    assert header == (
        ["Class", "Dice", "HD95 in mm", "Cases"] if lacking == 0 else ["Class", "Dice", "NSD", "HD95 in mm", "Cases"]
    )
    by_run: dict[str, list[list[str]]] = {}
    for row in rows:
        if len(row) == 1:
            name = row[0]
        else:
            by_run.setdefault(name, []).append(row)
    assert all(len(row) == len(header) for of_run in by_run.values() for row in of_run)
    if lacking == 1:
        assert {row[2] for row in by_run["two"]} == {UNKNOWN}
        assert UNKNOWN not in {row[2] for row in by_run["three"]}
    assert f"NSD was not measured in {models[lacking]}" in page.text
    assert "none is known for this task" not in page.text


def test_which_cases_are_shown_and_which_are_not_is_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / m, model=m, seed=s, cases=9) for s, m in enumerate(("one", "two"))]
    scores = [run.parts[0].values("dice") for run in read_runs(runs)]
    ranked = sorted(scores[0], key=lambda case: -(scores[0][case] + scores[1][case]))
    (runs[0] / "validation" / "pictures" / f"{ranked[0]}.npz").unlink()
    (runs[1] / "validation" / "pictures" / f"{ranked[-1]}.npz").unlink()
    page = Page(write_page(runs, tmp_path / "out"))
    assert (
        "6 of the 9 cases: from the 7 of which every run kept pictures, ranks 2 to 8 by mean Dice over one, two; "
        f"the worst of all is {ranked[-1]} (not pictured)"
    ) in page.text
    assert "From the best to the worst" not in page.text


def test_the_words_for_cases_shown() -> None:
    ranked = [f"c{rank}" for rank in range(1, 10)]

    def words(chosen: list[str], kept: list[str]) -> str:
        return cases_in_words(chosen, kept, ranked, whose="every run", names="a, b")

    assert words(["c1", "c9"], ranked) == "2 of the 9 cases: ranks 1 to 9 by mean Dice over a, b"
    assert words(["c3", "c9"], ["c3", "c9"]) == (
        "2 of the 9 cases: those of which every run kept pictures, ranks 3 to 9 by mean Dice over a, b"
    )
    assert words(["c4"], ["c4"]).endswith("rank 4 by mean Dice over a, b; the worst of all is c9 (not pictured)")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was broken off at step 40 of 1,000, with the files that lie there from the start."""
    folder = tmp_path_factory.mktemp("broken") / "off"
    run = make_run(folder, cases=1, pictures=False)
    (run / "summary.json").unlink()
    for file in (run / "validation").iterdir():
        file.unlink()
    (run / "validation").rmdir()
    (run / "checkpoint.safetensors").touch()
    (run / "config.yaml").write_text(CONFIG)
    write_json(
        run / "plan.json",
        {"format": 1, "task": "Hippocampus", "classes": {"1": "Anterior", "2": "Posterior"}, "training_cases": 84},
    )
    write_json(run / "splits.json", {"test": ["t1", "t2"], "folds": [["a"], ["b", "c", "d"]]})
    environment = json.loads((run / "environment.json").read_text())
    write_json(run / "environment.json", environment | {"command": "medvisionllama train DATA/Task04 --seed 7"})
    return run


def test_an_interrupted_run_tells_what_was_to_be_trained_on_what(interrupted: Path, tmp_path: Path) -> None:
    page = Page(write_page([interrupted], tmp_path))
    for told in (
        "vit-u learned from 84 cases; training stopped at step 40 of 1,000. It has not been scored yet.",
        "medvisionllama train DATA/Task04 --seed 7",
        "interrupted at step 40 of 1000",
    ):
        assert told in page.text
    facts = dict(row for row in table(page, "Facts about the training") if len(row) == 2)
    assert facts.items() >= {
        ("Task", "Hippocampus"),
        ("Classes", "Anterior, Posterior"),
        ("Cases", "84 training, 3 validation, 2 test (50% of the training part)"),
        ("Model", "vit-u"),
        ("Language block", "minilm-l6, family unknown, layer -1, pretrained, final norm on"),
        ("Steps", "40 of 1,000"),
        ("Seed", "7"),
    }
    assert "medvisionllama predict" not in page.text, "there is nothing to predict with before the training has ended"


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "splits.json", "environment.json"])
def test_what_is_left_of_an_interrupted_run_is_still_told(name: str, interrupted: Path, tmp_path: Path) -> None:
    for file in interrupted.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text("format: 1\n- {" if name == "config.yaml" else '{"format": 1, "ta')
    contents = read_run(tmp_path)
    assert contents.summary.get("seed") == (None if name == "config.yaml" else 7)
    assert contents.summary.get("task") == (None if name == "plan.json" else "Hippocampus")


def test_the_page_of_a_torn_summary_says_so_and_shows_the_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3, pictures=False)
    (run / "summary.json").write_text('{"format": 1, "task": "Hip')
    page = Page(write_page([run], tmp_path / "out"))
    assert re.search(r"No training summary \(summary.json\): .*summary.json is not JSON", page.text)
    assert "Score" in page.text
    assert "Anterior" in page.text


def test_weights_kept_and_the_test_part_lead(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3, pictures=False)
    summary = json.loads((run / "summary.json").read_text())
    write_json(run / "summary.json", summary | {"best_step": 30})
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    dice = next(entry["validation_dice"] for entry in log if entry["step"] == 30)

    score_part(run / "test", np.random.default_rng(5), 2)
    page = Page(write_page([run], tmp_path / "out"))
    assert f"Weights keptstep 30, best validation Dice ({dice:.3f})" in page.text
    assert "on 2 test cases it did not learn from" in page.text
    assert "The validation cases thus helped to choose them" in page.text
    (run / "log.jsonl").write_text('{"step": 40, "loss": 1.0}\n')
    write_json(run / "summary.json", summary | {"best_step": 40})
    assert "Weights keptstep 40, the last" in Page(write_page([run], tmp_path / "out")).text


def test_of_several_runs_the_part_that_all_have_leads(tmp_path: Path) -> None:

    runs = [make_run(tmp_path / m, model=m, cases=3, pictures=False) for m in ("one", "two")]
    score_part(runs[0] / "test", np.random.default_rng(5), 2)
    assert "on the same 3 validation cases" in Page(write_page(runs, tmp_path / "out", images=False)).text
    score_part(runs[1] / "test", np.random.default_rng(6), 2)
    assert "on the same 2 test cases" in Page(write_page(runs, tmp_path / "out", images=False)).text


@pytest.mark.parametrize("line", ["a,Anterior,one,2", "a,Anterior,1", "a,Anterior,1,2,3"])
def test_a_volume_that_is_no_number_is_named_and_the_rest_shown(line: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3, pictures=False)
    table_path = run / "validation" / "volumes.csv"
    table_path.write_text(f"case,class,reference_ml,prediction_ml\nb,Anterior,1,2\n{line}\n")
    contents = read_run(run)
    with pytest.raises(InputError, match=re.escape(f"at row 3: got {line}")):
        structure_volumes(contents, contents.parts[0])
    page = Page(write_page([run], tmp_path / "out"))
    assert "volumes.csv cannot be understood at row 3" in page.text
    assert "Mean ± standard deviation" in page.text


def test_pictures_without_reference_promise_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=1, reference=False)
    page = Page(write_page([run], tmp_path / "out"))
    assert "The pictures hold no reference: each slice is the one with most of the prediction in it." in page.text
    assert "the pictures of case_000 hold no reference" in page.text
    assert "dotted in white" not in page.text
    whole = make_run(tmp_path / "whole", model="vit-u", cases=1)
    both = Page(write_page([run, whole], tmp_path / "out"))
    assert "dotted in white" in both.text
    assert "Where the pictures hold no reference" in both.text
    assert "dotted in white" in Page(write_page([whole], tmp_path / "out")).text, "the control"


def test_an_unscored_run_says_so_with_and_without_images(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=1, pictures=False)
    (run / "validation" / "scores.csv").unlink()
    for images in (True, False):
        text = Page(write_page([run], tmp_path / "out", images=images)).text
        assert "No case has been segmented and scored yet." in text
        assert "made without images" not in text


def test_regions_have_names_of_their_own_and_commands_are_code(tmp_path: Path) -> None:

    runs = [make_run(tmp_path / m, model=m, cases=1) for m in ("one", "two")]
    for run in runs:
        score_part(run / "test", np.random.default_rng(5), 1)
        write_picture(run / "test" / "pictures" / "case_000.npz", np.random.default_rng(5))
    page = Page(write_page(runs, tmp_path / "out"))
    regions = [a["aria-label"] for _, a in page.elements if a.get("role") == "region"]
    assert len(regions) == len(set(regions))
    (runs[0] / "checkpoint.safetensors").touch()
    page = Page(write_page(runs[:1], tmp_path / "out", images=False))
    assert "<code>train --resume</code>" in page.source
    assert "`" not in page.text


def test_only_pairs_of_backticks_mark_code() -> None:
    assert marked_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"
    assert marked_code("it`s <b>") == "it`s &lt;b&gt;"
