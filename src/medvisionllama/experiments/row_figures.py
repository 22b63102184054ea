"""The papers' figures from rows: what a figure reads of a run folder is written out of the row, the rest is looked up.

Curves, boxes and charts need nothing but rows. Pictures of cases and activation maps lie in the run folders alone, so
those figures need them to be still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from medvisionllama.experiments.paper_tables import with_share
from medvisionllama.experiments.rows import Row
from medvisionllama.explain import explain_run
from medvisionllama.machine import Machine
from medvisionllama.reports.paper_figures import draw_paper_figure
from medvisionllama.run_folder import METRICS, RunFolder, ScoreRow, to_json, write_json, write_scores, write_text

_CASES = (
    "Cases with pictures, the best first, of each row's first seed and fold that still has its run folder; the axial "
    "slice with most reference, Dice over the whole volume in the corner. Of the first part and grid below."
)
_MAPS = (
    "The first case of each row's first seed and fold that still has its run folder; each map is scaled to its own "
    "2nd and 98th percentile, so that shapes compare and strengths do not. The axial slice with most reference, or "
    "with most prediction where there is none; the outline is the prediction's."
)
_CURVES = (
    "Dice of the validation part on the model's grid, looked at while training, and the loss on training patches; "
    "several seeds and folds are averaged where they logged the same steps. The paper prints no numbers for these "
    "curves."
)
CAPTIONS: Mapping[str, str] = {
    "v1-F3": _CURVES,
    "v1-F4": _MAPS,
    "v1-F5": _CASES,
    "v1-A-F1": "Mean Dice with its 95 % bootstrap interval over cases, after averaging each case over trainings. Of "
    "the first part and grid below.",
    "v1-C2": _CASES,
    "v1-D-F3": "Means over cases, after averaging each case over trainings; the rim is better. Of the first part and "
    "grid below.",
    "v2-F2": _CASES,
    "v2-F3": _MAPS,
    "v2-F4": _CURVES,
    "v2-F5": "Every case's Dice, averaged over trainings; box: quartiles, line: median, diamond: mean. Above: the "
    "paired t-test against the first box over the trainings and cases that both have; an asterisk below .05, a dagger "
    "where that survives Holm's correction over this figure. The tests are over cases alone. Of the first part and "
    "grid below.",
}  # fmt: skip


def draw_from_rows(figure: str, rows: Sequence[tuple[str, Row]], runs: Path, out: Path, part: str) -> list[Path]:
    """Draw a figure of the papers into ``OUT/FIGURE.png`` and ``.svg``.

    Args:
        figure: A name of ``reports.paper_figures``.
        rows: What each is called, and what was measured.
        runs: Where the run folders are, as far as they are still there.
        out: Where to write.
        part: The part's title, such as ``test, native grid``.

    Raises:
        InputError: The rows, and the run folders that are left, lack what it shows.
    """
    with TemporaryDirectory() as folder:
        places = []
        for index, (printed, row) in enumerate(rows):
            kept = runs / str(row.content["name"])
            place = Path(folder) / f"{index:03d}"
            write_as_run(row, printed, place)
            _borrow(kept, place)
            places.append(place)
        return draw_paper_figure(figure, places, out, part)


def collect_maps(rows: Sequence[Row], runs: Path, machine: Machine) -> None:
    """Collect the activation maps of each row's first case, where its run folder is still there and has none.

    Args:
        rows: What was measured.
        runs: Where the run folders are.
        machine: Where to compute.
    """
    for row in rows:
        run = RunFolder(runs / str(row.content["name"]))
        case = row.parts[next(iter(row.parts))].cases[0]
        if run.config.exists() and not (run.path / "maps" / f"{case}.npz").exists():
            explain_run(run.path, [case], machine)


def write_as_run(row: Row, printed: str, folder: Path) -> None:
    """What of a run folder a row still knows: summary, log, scores."""
    run = RunFolder(folder)
    content = row.content
    classes = next(iter(row.parts.values())).classes if row.parts else ()  # of the paper protocol: all merged to 1
    summary = {
        "format": 1,
        "model": printed,
        "setting": with_share(printed, row.fraction),
        "task": row.task,
        "block": content["identity"],
        "seed": row.seed,
        "fraction": row.fraction,
        "fold": row.fold,
        "steps": row.steps,
        "seconds": row.seconds,
        "parameters": content["parameters"],
        "cases": content["cases"],
        "classes": {str(value): name for value, name in enumerate(classes, start=1)},
    }
    write_json(run.summary, summary)
    write_json(run.environment, content["environment"])
    write_text(run.log, "".join(to_json(entry, None) + "\n" for entry in content["log"]))
    for where, scores in row.parts.items():
        table = [
            ScoreRow(case, name, metric, float(scores.values[metric][i, j]))
            for metric in METRICS
            for i, name in enumerate(scores.classes)
            for j, case in enumerate(scores.cases)
        ]
        write_scores(folder / where / "scores.csv", table)
        write_json(folder / where / "summary.json", {"tolerance_mm": scores.tolerance_mm, "classes": {}})


def _borrow(kept: Path, place: Path) -> None:
    """Point to the pictures and maps that the run folder still holds."""
    for found in [*kept.glob("*/**/pictures"), *kept.glob("maps")]:
        target = place / found.relative_to(kept)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(found.resolve(), target_is_directory=True)
