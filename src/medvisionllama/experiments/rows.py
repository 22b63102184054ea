"""What a finished cell leaves: one small file with its settings, where it came from, and every case's scores.

Rows are what is committed and what tables are made of; checkpoints and predictions may be lost. A row found from an
earlier sitting, or another machine, is enough to skip its cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell, completed, key_of
from medvisionllama.run_folder import METRICS, RunFolder, ScoreRow, read_json, read_scores, to_json, write_text

ROW_FORMAT = 1
LOGGED_AT_MOST = 60  # points of the loss curve that a row keeps, validations aside
DIGITS = 5


@dataclass(frozen=True)
class PartScores:
    """The scores of one part on one grid.

    Attributes:
        cases: In order.
        classes: Their names, in order.
        values: By metric ``(classes,cases)``; NaN where the metric has no meaning.
        tolerance_mm: Of NSD.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    tolerance_mm: float | None = None

    def by_case(self, metric: str) -> dict[str, float]:
        """Each case's mean over the classes that have a value; NaN where none has."""
        table = self.values[metric]
        known = ~np.isnan(table)
        counts = known.sum(axis=0)
        sums = np.where(known, table, 0.0).sum(axis=0)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        return {case: float(mean) for case, mean in zip(self.cases, means, strict=True)}

    def mean(self, metric: str) -> float:
        """The mean over cases of :meth:`by_case`; NaN where no case has a value."""
        known = [value for value in self.by_case(metric).values() if not math.isnan(value)]
        return float(np.mean(known)) if known else math.nan


@dataclass(frozen=True)
class Row:
    """A measured cell.

    Attributes:
        key: The cell's, as of today's settings (:func:`~medvisionllama.experiments.cells.completed`).
        name: The cell's, for people.
        model: The cell's.
        block: The cell's.
        settings: All of the cell's settings, completed.
        parts: By ``validation`` and ``test``; in the paper protocol ``validation/native``, ``validation/model`` ...
        seconds: Of training alone.
        content: The whole file.
    """

    key: str
    name: str
    model: str
    block: str
    settings: dict[str, Any]
    parts: dict[str, PartScores]
    seconds: float
    content: dict[str, Any]

    @property
    def steps(self) -> int:
        """How many were trained."""
        return int(self.content["steps"])

    @property
    def seed(self) -> int:
        """The cell's."""
        return int(self.settings["seed"])

    @property
    def fold(self) -> int:
        """The cell's."""
        return int(self.settings["fold"])

    @property
    def fraction(self) -> float:
        """The cell's."""
        return float(self.settings["fraction"])

    @property
    def task(self) -> str:
        """The cell's."""
        return str(self.settings["task"])


def row_path(folder: Path, cell: Cell) -> Path:
    """Where a cell's row lies."""
    return folder / f"{cell.name}.json"


def collect(cell: Cell, run: RunFolder, seconds: float, source: str, forward_ms: float | None = None) -> dict[str, Any]:
    """What the row of a finished cell holds.

    Args:
        cell: The cell.
        run: Its run folder, with all parts scored.
        seconds: Of this sitting, from reading to scoring.
        source: Which state of the program computed.
        forward_ms: Of one volume of the model's grid through the trained network, where that was timed.
    """
    summary, environment = read_json(run.summary), read_json(run.environment)
    # What names folders of one machine stays there: the command, and where a block of no hub lies.
    environment.pop("command", None)
    identity = summary.get("block")
    if identity and Path(identity["id"]).is_absolute():
        identity |= {"id": cell.block}
    parts = {}
    for scores in sorted(run.path.glob("*/**/scores.csv")):
        where = scores.parent.relative_to(run.path).as_posix()
        tolerance_mm = read_json(scores.parent / "summary.json").get("tolerance_mm")
        parts[where] = _plain(part_scores(read_scores(scores), tolerance_mm))
    return {
        "format": ROW_FORMAT,
        "key": cell.key,
        "name": cell.name,
        "model": cell.model,
        "block": cell.block,
        "settings": cell.settings(),
        "source": source,
        "environment": environment,
        "identity": identity,
        "parameters": summary.get("parameters"),
        "cases": summary.get("cases"),
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "training_seconds": summary["seconds"],
        "sitting_seconds": round(seconds, 1),
        "forward_ms": forward_ms,
        "log": _thinned(run.read_log()),
        "parts": parts,
    }


def write_row(content: dict[str, Any], path: Path) -> None:
    """Write a row: one line per entry, one per table of scores, so that changes are read easily."""
    parts = content["parts"]
    lines = [f"  {json.dumps(name)}: {to_json(value, None)}" for name, value in content.items() if name != "parts"]
    tables = [
        f"    {json.dumps(part)}: {{\n"
        + ",\n".join(f"      {json.dumps(name)}: {to_json(value, None)}" for name, value in scores.items())
        + "\n    }"
        for part, scores in parts.items()
    ]
    lines.append('  "parts": {\n' + ",\n".join(tables) + "\n  }")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_row(path: Path) -> Row:
    """Read a row.

    Raises:
        InputError: It is no row, of another version, or its settings do not give its key.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != ROW_FORMAT:
        raise InputError(f"{path} is no row of this version", mend="Take the file out of the folder.")
    try:
        parts = {name: _scores(part) for name, part in content["parts"].items()}
        row = Row(
            key_of(settings := completed(content["settings"])),
            content["name"],
            content["model"],
            content["block"],
            settings,
            parts,
            float(content["training_seconds"]),
            content,
        )
        holds = key_of(content["settings"]) == content["key"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be understood", got=f"{type(error).__name__}: {error}") from error
    if not holds:
        raise InputError(
            f"{path} was measured with other settings than its key says",
            got=f"key {content['key']}, settings that give {key_of(content['settings'])}",
            mend="The file was edited: restore it, or take it out of the folder.",
        )
    return row


def read_rows(folder: Path) -> dict[str, Row]:
    """All rows of a folder by key.

    Raises:
        InputError: One of them cannot be used.
    """
    rows = [read_row(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return {row.key: row for row in rows}


def part_scores(scores: Sequence[ScoreRow], tolerance_mm: float | None) -> PartScores:
    """The scores of one part as tables by metric.

    Args:
        scores: All metrics of every case and class.
        tolerance_mm: Of NSD.
    """
    cases, classes = tuple(dict.fromkeys(r.case for r in scores)), tuple(dict.fromkeys(r.class_name for r in scores))
    cells = {(row.metric, row.class_name, row.case): row.value for row in scores}
    values = {m: np.array([[cells[m, name, case] for case in cases] for name in classes]) for m in METRICS}
    return PartScores(cases, classes, values, tolerance_mm)


def _plain(part: PartScores) -> dict[str, Any]:
    """As a row holds it; the inverse of :func:`_scores`, rounded."""
    tables = {
        metric: [[_short(value) for value in of_class] for of_class in part.values[metric].tolist()]
        for metric in METRICS
    }
    return {"cases": list(part.cases), "classes": list(part.classes), "tolerance_mm": part.tolerance_mm} | tables


def _scores(part: dict[str, Any]) -> PartScores:
    values = {
        metric: np.array([[math.nan if v is None else v for v in of_class] for of_class in part[metric]], np.float64)
        for metric in METRICS
    }
    return PartScores(tuple(part["cases"]), tuple(part["classes"]), values, part["tolerance_mm"])


def _short(value: float) -> float:
    return value if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def _thinned(log: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Validations, and some of the other entries, evenly spread."""
    entries = [entry for entry in log if "loss" in entry]
    every = -(-len(entries) // LOGGED_AT_MOST) if entries else 1
    kept = [e for i, e in enumerate(entries) if "validation_dice" in e or (i + 1) % every == 0 or e is entries[-1]]
    names = ("step", "seconds", "loss", "validation_dice", "block_norms")
    return [{name: _rounded(entry[name]) for name in names if name in entry} for entry in kept]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return _short(value) if isinstance(value, float) else value
