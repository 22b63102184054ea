"""Walking a matrix: skipping, going on, failing, and several workers at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvisionllama.errors import InputError
from medvisionllama.experiments import launchers, suite
from medvisionllama.experiments.cells import Cell
from medvisionllama.experiments.launchers import Job, gathered, launch, launch_slurm, together, write_slurm_script
from medvisionllama.experiments.rows import read_row, read_rows, row_path, write_row
from medvisionllama.experiments.source import state_of_source
from medvisionllama.experiments.suite import Walked, Work, walk
from medvisionllama.listener import Listener, Silent
from medvisionllama.loading import Inference
from medvisionllama.machine import Machine
from medvisionllama.models.zoo import named, with_block
from medvisionllama.run import train_run
from medvisionllama.run_folder import METRICS, RunFolder, read_scores
from medvisionllama.score_part import predict_part

WorkOf = Callable[..., Work]


def two(cell: Cell) -> tuple[Cell, Cell]:
    return cell, replace(cell, seed=1)


def scores(work: Work) -> dict[str, Any]:
    """What was measured, by cell, times and machines aside."""
    return {path.name: json.loads(path.read_text())["parts"] for path in sorted(work.rows.glob("*.json"))}


def test_a_walk_measures_what_is_missing_and_skips_what_is_there(cell: Cell, work_of: WorkOf) -> None:
    work, told = work_of(*two(cell)), []
    assert walk(work, tell=told.append).named("measured") == [c.name for c in work.cells]
    assert [line.partition(" after")[0] for line in told] == [f"{c.name}: measured" for c in work.cells]
    before = {path: path.read_bytes() for path in work.rows.iterdir()}
    again = walk(work, tell=told.append)
    assert again.named("there already") == [c.name for c in work.cells]
    assert len(told) == 2
    assert {path: path.read_bytes() for path in work.rows.iterdir()} == before


def test_label_maps_of_cells_are_not_cleaned_up(
    cell: Cell, work_of: WorkOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Validation would choose what to clean up, in one cell and not in its pair."""
    asked: dict[str, bool] = {}

    def noted(run: RunFolder, part: str, machine: Machine, *, inference: Inference, listener: Listener) -> object:
        asked[part] = inference.cleanup
        return predict_part(run, part, machine, inference=inference, listener=listener)

    for module in ("medvisionllama.run", "medvisionllama.experiments.suite"):
        monkeypatch.setattr(f"{module}.predict_part", noted)
    work = work_of(cell)
    walk(work, tell=lambda line: None)
    assert asked == {"validation": False, "test": False}
    assert not (work.runs / cell.name / "postprocessing.json").exists()
    (row,) = work.rows.glob("*.json")
    parts = json.loads(row.read_text())["parts"]
    row.unlink()
    machine = suite.machine_of(work, 0)
    predict_part(RunFolder(work.runs / cell.name), "validation", machine)  # as an older version left it
    assert (work.runs / cell.name / "postprocessing.json").exists()
    asked.clear()
    walk(work, tell=lambda line: None)
    assert asked == {"validation": False, "test": False}, "both are scored anew"
    assert json.loads(row.read_text())["parts"] == parts
    assert not (work.runs / cell.name / "postprocessing.json").exists()
    train_run(cell.experiment(work.datasets[cell.task]), tmp_path / "own", machine, splits=work.splits[cell.splits])
    assert asked["validation"], "a user's own training finds out what to clean up"
    assert (tmp_path / "own" / "postprocessing.json").exists()


def test_a_row_holds_the_scores_the_run_folder_holds(cell: Cell, work_of: WorkOf) -> None:
    work = work_of(cell)
    walk(work, tell=lambda line: None)
    row = read_rows(work.rows)[cell.key]
    assert set(row.parts) == {"validation", "test"}
    for part, stored in row.parts.items():
        for score in read_scores(work.runs / cell.name / part / "scores.csv"):
            i, j = stored.classes.index(score.class_name), stored.cases.index(score.case)
            np.testing.assert_allclose(stored.values[score.metric][i, j], score.value, rtol=1e-4)
        assert set(stored.values) == set(METRICS)
    assert (row.steps, row.seed, row.fraction, row.task) == (2, 0, 1.0, "Phantom")
    text = row_path(work.rows, cell).read_text()
    assert str(work.runs) not in text
    assert str(work.datasets["Phantom"]) not in text


def test_rows_of_an_earlier_sitting_are_enough(cell: Cell, work_of: WorkOf, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(cell)
    walk(work, tell=lambda line: None)
    (work.rows / "another name.json").write_text(row_path(work.rows, cell).read_text())
    row_path(work.rows, cell).unlink()  # as if it had been named by an older version
    monkeypatch.setattr(suite, "train_run", lambda *given, **named: pytest.fail("trained again"))
    lost = replace(work, runs=work.runs.parent / "elsewhere")
    assert walk(lost, tell=lambda line: None).named("there already") == [cell.name]


def test_an_edited_row_is_refused(cell: Cell, work_of: WorkOf) -> None:
    work = work_of(cell)
    walk(work, tell=lambda line: None)
    path = row_path(work.rows, cell)
    content = json.loads(path.read_text())
    write_row(content, path)
    assert read_row(path).key == cell.key
    content["settings"]["seed"] = 5
    write_row(content, path)
    with pytest.raises(InputError, match="other settings than its key says"):
        read_row(path)


class Impatient(Silent):
    """Interrupts at the first log entry."""

    def training(self, entry: dict[str, Any], steps: int) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_walk_goes_on_and_ends_the_same(
    cell: Cell, work_of: WorkOf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = work_of(*two(cell))
    with pytest.raises(KeyboardInterrupt):
        walk(work, tell=lambda line: None, listener=Impatient())
    assert (work.runs / cell.name / "config.yaml").exists()
    assert not read_rows(work.rows)
    walk(work, tell=lambda line: None)
    straight = replace(work, rows=tmp_path_factory.mktemp("rows"), runs=tmp_path_factory.mktemp("runs"))
    walk(straight, tell=lambda line: None)
    assert scores(work) == scores(straight)


def test_a_failed_cell_is_told_spares_the_others_and_is_tried_again(cell: Cell, work_of: WorkOf) -> None:
    lost = str(Path("no") / "such" / "folder")
    broken = replace(cell, config=with_block(named("medvisionllama-u"), lost), model="broken")
    work = work_of(broken, cell)
    walked = walk(work, tell=lambda line: None)
    assert (walked.named("failed"), walked.named("measured")) == ([broken.name], [cell.name])
    assert lost in walked.faults[broken.name]
    mended = replace(broken, config=cell.config, seed=3)
    assert walk(work_of(mended), tell=lambda line: None).named("measured") == [mended.name]


def test_a_fault_of_the_program_is_tried_twice_and_leaves_its_traceback(
    cell: Cell, work_of: WorkOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fault(*given: object, **named: object) -> None:
        tries.append(1)
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(suite, "train_run", fault)
    work = work_of(cell)
    assert walk(work, tell=lambda line: None).faults == {cell.name: "ZeroDivisionError: on purpose"}
    assert len(tries) == 1 + suite.RETRIES
    assert "on purpose" in (work.runs / f"{cell.name}.fault.txt").read_text()


def test_a_fault_that_is_gone_at_the_second_attempt_is_no_fault(
    cell: Cell, work_of: WorkOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def hiccup(*given: object) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("the disk was busy")
        return "measured"

    monkeypatch.setattr(suite, "measure", hiccup)
    walked = walk(work_of(cell), tell=lambda line: None)
    assert (walked.ended, walked.faults) == ({cell.name: "measured"}, {})


def test_one_setting_under_two_labels_is_measured_once(cell: Cell, work_of: WorkOf) -> None:
    walked = walk(work_of(cell, replace(cell, model="the-same")), tell=lambda line: None)
    assert list(walked.ended.values()) == ["measured", "there already"]


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1]); lock.acquire(); print("held", flush=True); time.sleep(60)
"""


def test_a_cell_that_another_holds_is_left_and_a_dead_ones_taken(cell: Cell, work_of: WorkOf) -> None:
    work = work_of(*two(cell))
    work.runs.mkdir(parents=True)
    lock = work.runs / f"{cell.name}.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        walked = walk(work, tell=lambda line: None)
        assert walked.named("held by another") == [cell.name]
        assert walked.named("measured") == [work.cells[1].name]
        other.kill()  # without a chance to tidy up
        other.wait()
    assert walk(work, tell=lambda line: None).named("measured") == [cell.name]


def test_workers_begin_with_shares_of_their_own() -> None:
    orders = [list(suite._in_turn(range(7), worker, 3)) for worker in range(3)]  # type: ignore[arg-type]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert [order[:2] for order in orders] == [[0, 3], [1, 4], [2, 5]]


def test_two_processes_share_the_work_and_measure_the_same(cell: Cell, work_of: WorkOf, tmp_path: Path) -> None:
    work = work_of(*two(cell))
    walked = launch("local", work, 2)
    assert sorted(walked.ended.values()) == ["measured", "measured"]
    assert len(read_rows(work.rows)) == 2
    alone = replace(work, rows=tmp_path / "alone", runs=tmp_path / "alone_runs")
    walk(alone, tell=lambda line: None)
    assert scores(work) == scores(alone)


def dying_walk(work: Work, worker: int = 0, workers: int = 1) -> Walked:
    """The second worker is killed before it has done anything."""
    if worker == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return walk(work, worker, workers)


def test_a_killed_worker_takes_nobody_with_it(cell: Cell, work_of: WorkOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "walk", dying_walk)
    work, told = work_of(*two(cell)), []
    walked = launch("local", work, 2, told.append)
    assert sorted(walked.ended.values()) == ["measured", "measured"]
    assert walked.lost == told
    assert told[0].startswith("worker 2 of 2 was lost: BrokenProcessPool")


def test_what_nobody_can_do_is_told_as_it_is() -> None:
    def refused() -> Walked:
        raise InputError("a row was edited")

    with pytest.raises(InputError, match="a row was edited"):
        gathered([refused], print)


def test_submitit_runs_workers_without_a_cluster(cell: Cell, work_of: WorkOf) -> None:
    pytest.importorskip("submitit")
    work = work_of(*two(cell))
    walked = launch_slurm(work, 2, Job(minutes=5, memory_gb=2), cluster="local")
    assert sorted(walked.ended) == sorted(c.name for c in work.cells)
    assert set(walked.ended.values()) == {"measured"}
    assert len(read_rows(work.rows)) == 2


def test_a_missing_cluster_is_told(cell: Cell, work_of: WorkOf) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="no Slurm here"):
        launch("slurm", work_of(cell), 1)


def test_what_became_of_a_cell_over_several_walks() -> None:
    walks = [
        Walked({"a": "held by another", "b": "failed", "c": "failed"}, {"b": "why", "c": "why"}),
        Walked({"a": "measured", "b": "held by another", "c": "measured"}),
    ]
    merged = together(walks)
    assert merged.ended == {"a": "measured", "b": "failed", "c": "measured"}
    assert merged.faults == {"b": "why"}


def test_the_script_for_sbatch_is_a_script(tmp_path: Path) -> None:
    command = ["reproduce", "v2-T5", "--tasks", "a folder", "--out", "results"]
    path = write_slurm_script(command, tmp_path / "x.sbatch", 3, Job(90, 8, "gpu"), threads=2, gpu=True)
    text = path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    assert "#SBATCH --array=0-2" in text
    assert "#SBATCH --gpus=1" in text
    assert "#SBATCH --partition=gpu" in text
    assert text.rstrip().endswith("--tasks 'a folder' --out results --worker $SLURM_ARRAY_TASK_ID --workers 3")


def test_the_script_for_sbatch_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, elsewhere = tmp_path / "a folder", tmp_path / "elsewhere"
    (written / "ph").mkdir(parents=True)
    elsewhere.mkdir()
    interpreter = tmp_path / "python"  # tells what it was given, and whether it finds it
    interpreter.write_text('#!/bin/bash\n[ -d "$5" ] && echo "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.chdir(written)
    write_slurm_script(["reproduce", "--tasks", "ph"], Path("x.sbatch"), 3, Job(), threads=1, gpu=False)
    done = subprocess.run(
        ["bash", str(written / "x.sbatch")],
        cwd=elsewhere,
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-m medvisionllama.cli reproduce --tasks ph --worker 1 --workers 3\n"


@pytest.mark.slow
def test_two_ray_workers_share_the_work(cell: Cell, work_of: WorkOf) -> None:
    pytest.importorskip("ray")
    work = work_of(*two(cell))
    assert set(launch("ray", work, 2).ended.values()) == {"measured"}
    assert len(read_rows(work.rows)) == 2


@pytest.mark.slow
def test_ray_workers_join_the_cluster_that_is_there(
    cell: Cell, work_of: WorkOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        told: list[str] = []
        assert set(launch("ray", work_of(*two(cell)), 2, told.append).ended.values()) == {"measured"}
        assert told == []  # that it has to do with this machine alone
    finally:
        cluster.shutdown()


def test_the_source_is_named_by_commit_archive_or_version(tmp_path: Path) -> None:
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    assert state_of_source(package).startswith("medvisionllama ")
    (tmp_path / ".git_archival.txt").write_text("$Format:%H$\n")
    state_of_source.cache_clear()
    assert state_of_source(package).startswith("medvisionllama ")
    (tmp_path / ".git_archival.txt").write_text("0123abc\n")
    state_of_source.cache_clear()
    assert state_of_source(package) == "0123abc"


def test_a_cell_of_the_paper_protocol_is_scored_on_both_grids_and_timed(cell: Cell, work_of: WorkOf) -> None:
    config = replace(named("vit-baseline"), width=16, depth=1, heads=2)
    recipe = replace(cell.recipe, loss="dice_bce")
    paper = replace(cell, model="vit-baseline", config=config, recipe=recipe, protocol="paper", grid=16)
    work = work_of(paper)
    assert walk(work, tell=lambda line: None).faults == {}
    row = read_rows(work.rows)[paper.key]
    assert set(row.parts) == {f"{part}/{grid}" for part in ("validation", "test") for grid in ("native", "model")}
    assert row.parts["test/model"].classes == ("foreground",)
    assert row.content["forward_ms"] > 0
