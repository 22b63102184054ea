import csv
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvisionllama.errors import InputError
from medvisionllama.run_folder import (
    METRICS,
    RunFolder,
    ScoreRow,
    read_json,
    read_scores,
    to_json,
    write_json,
    write_scores,
    write_text,
)
from medvisionllama.whole_file import whole_file

NAN, INF = float("nan"), float("inf")
AWKWARD = ["plain", "a,b", 'say "so"', " spaced ", "two\nlines", "two\r\nlines", "Größe 大", "'", "=1+1", ""]
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def entry(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "seconds": step / 2, **more}


def test_the_contract_names_these_files(run: RunFolder) -> None:
    paths = [run.config, run.plan, run.splits, run.log, run.model, run.checkpoint, run.environment, run.summary]
    assert [str(path.relative_to(run.path)) for path in paths] == [
        "config.yaml",
        "plan.json",
        "splits.json",
        "log.jsonl",
        "model.safetensors",
        "checkpoint.safetensors",
        "environment.json",
        "summary.json",
    ]
    assert run.part("test") == run.path / "test"
    assert run.part("test", "native") == run.path / "test" / "native"
    assert METRICS == ("dice", "jaccard", "accuracy", "precision", "recall", "specificity", "hd95_mm", "nsd")


@pytest.mark.parametrize(
    ("summary", "finished"),
    [
        ({"steps": 9, "cases": {"validation": 2}, "validation": {"dice_mean": 0.5}}, True),
        ({"steps": 9, "cases": {"validation": 2}}, False),
        ({"steps": 9, "cases": {"validation": 0}}, True),
        ({"validation": {"dice_mean": 0.5}}, False),
        ({"test": {"dice_mean": 0.5}}, False),
    ],
    ids=["scored", "not scored", "nothing to score", "scored before it ended", "tested before it ended"],
)
def test_a_run_is_finished_once_it_ended_and_was_scored(
    summary: dict[str, object], finished: bool, run: RunFolder
) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    assert not run.finished
    write_json(run.summary, summary)
    assert not run.finished, "no weights"
    run.model.touch()
    assert run.finished == finished
    run.checkpoint.touch()
    assert not run.finished, "its checkpoint is still there"


def test_folds_are_found_in_order_and_nothing_else_is(run: RunFolder) -> None:
    assert [fold.path for fold in run.folds()] == [run.path]
    for name in ("fold_10", "fold_0", "fold_2", "fold_0_backup", "fold_", "fold_one", "other"):
        (run.path / name).mkdir()
    (run.path / "fold_3.zip").touch()
    (run.path / "fold_4").touch()
    assert [fold.path.name for fold in run.folds()] == ["fold_0", "fold_2", "fold_10"]


def test_the_log_comes_back(run: RunFolder) -> None:
    assert run.read_log() == []
    entries = [entry(1), entry(2, loss=0.1 + 0.2), entry(3, validation_dice_by_class={"Größe\u2028大\x85": 0.5})]
    for one in entries:
        run.append_log(one)
    assert run.read_log() == entries
    assert run.log.read_bytes().count(b"\n") == 3  # one object a line, whatever a name holds


def test_a_line_torn_by_a_crash_is_left_out(run: RunFolder) -> None:
    run.append_log(entry(1))
    whole = run.log.read_bytes()
    torn = to_json(entry(2, name="Größe"), indent=None).encode()
    for length in range(len(torn)):  # also in the midst of a letter
        run.log.write_bytes(whole + torn[:length])
        assert run.read_log() == [entry(1)]
    run.log.write_bytes(whole + torn)
    assert run.read_log() == [entry(1), entry(2, name="Größe")]


def test_what_a_resumed_run_will_write_again_is_cut(run: RunFolder) -> None:
    for step in range(1, 6):
        run.append_log(entry(step))
    with run.log.open("ab") as file:
        file.write(b'{"step": 6, "seco')
    run.cut_log(3)
    run.append_log(entry(4, again=True))
    assert run.read_log() == [entry(1), entry(2), entry(3), entry(4, again=True)]
    run.cut_log(0)
    assert run.read_log() == []


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*log\.jsonl"):
        RunFolder(tmp_path / "absent").append_log(entry(1))


def test_json_holds_no_number_that_is_none() -> None:
    text = to_json({"nan": NAN, "deep": [{"inf": (INF, -INF, 1.5)}], "umlaut": "ä"})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "deep": [{"inf": [None, None, 1.5]}],
        "umlaut": "ä",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(json_values)
def test_json_comes_back_exactly(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"NaN,"])
def test_what_is_no_json_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="is not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read"):
        read_json(tmp_path / "absent.json")


def test_scores_come_back(tmp_path: Path) -> None:
    values = [0.0, 1.0, 1 / 3, 1e-7, 123456.789, NAN, INF]
    rows = [ScoreRow(c, n, m, v) for c in AWKWARD for n in AWKWARD for m in METRICS[:2] for v in values]
    write_scores(tmp_path / "scores.csv", rows)
    back = read_scores(tmp_path / "scores.csv")
    assert [(r.case, r.class_name, r.metric) for r in back] == [(r.case, r.class_name, r.metric) for r in rows]
    assert [r.value for r in back] == pytest.approx([r.value for r in rows], rel=1e-8, nan_ok=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(names, names, st.floats(0, 1e6))
def test_any_name_comes_back(tmp_path: Path, case: str, class_name: str, value: float) -> None:
    write_scores(tmp_path / "scores.csv", [ScoreRow(case, class_name, "dice", value)])
    (row,) = read_scores(tmp_path / "scores.csv")
    assert (row.case, row.class_name) == (case, class_name)
    assert row.value == pytest.approx(value, rel=1e-8)


def test_the_table_is_the_contracts(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", [ScoreRow("a,b", "liver", "dice", 0.5), ScoreRow("c", "liver", "nsd", NAN)])
    assert (tmp_path / "scores.csv").read_bytes() == b'case,class,metric,value\n"a,b",liver,dice,0.5\nc,liver,nsd,\n'
    write_scores(tmp_path / "scores.csv", [])
    assert read_scores(tmp_path / "scores.csv") == []


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    text = "\ufeffcase,class,metric,value\r\na,liver,dice,0.5\r\n\r\nb,liver,dice,\r\n"
    (tmp_path / "scores.csv").write_bytes(text.encode())
    first, second = read_scores(tmp_path / "scores.csv")
    assert first == ScoreRow("a", "liver", "dice", 0.5)
    assert math.isnan(second.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no score table"),
        (b"case,class,metric\na,b,dice\n", "no score table"),
        (b"\x89PNG\r\n\x1a\n\xff\xff", "no score table"),
        (b"case,class,metric,value\na,liver,dice,high\n", "row 2"),
        (b"case,class,metric,value\na,liver,dice,0.5\na,liver,di", "row 3"),
        (b"case,class,metric,value\na,liver,dice,0,5\n", "row 2"),
    ],
)
def test_what_is_no_score_table_is_refused_in_words(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_scores(tmp_path / "scores.csv")


def test_a_missing_score_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="medvisionllama evaluate"):
        read_scores(tmp_path / "scores.csv")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")

    def fail_midway() -> None:
        with whole_file(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        fail_midway()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupt() -> None:
        with whole_file(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lasting_file_is_on_the_disk_before_the_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []
    path.write_text("old")
    fsync = os.fsync

    def noted(opened: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(opened).st_mode), path.read_text()))
        fsync(opened)

    monkeypatch.setattr("os.fsync", noted)
    with whole_file(path, lasting=True) as part:
        part.write_text("new")
    assert seen == [(False, "old"), (True, "new")]
    with whole_file(path) as part:
        part.write_text("newer")
    assert len(seen) == 2, "whatever else is written need not wait"


def test_nobody_sees_a_file_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as part, whole_file(path) as other:
        part.write_text("half")
        assert not path.exists()
        assert part != other  # two writers, even of one process, never share a half-written file
        other.write_text("whole")
    assert path.read_text() == "half"


def test_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with pytest.raises(InputError, match="cannot write"):
            write_text(path, "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_lines_end_alike_on_every_system(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one\ntwo\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\r\n"


def test_other_readers_of_csv_agree(tmp_path: Path) -> None:
    rows = [ScoreRow(name, name, "dice", 0.25) for name in AWKWARD]
    write_scores(tmp_path / "scores.csv", rows)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        assert [(r["case"], r["class"], r["value"]) for r in csv.DictReader(file)] == [(n, n, "0.25") for n in AWKWARD]


def test_it_needs_the_standard_library_alone() -> None:
    code = "import sys, medvisionllama.run_folder as r; print({'numpy', 'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
