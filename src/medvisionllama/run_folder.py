"""Every file and row a run leaves, and how they are written and read. Standard library only: pages need no torch.

A run folder holds ``config.yaml, plan.json, splits.json, log.jsonl, model.safetensors, environment.json,
summary.json, postprocessing.json``, while it trains also ``checkpoint.safetensors`` and ``checkpoint.json``, and one
folder per scored part (``validation/``, ``test/``) with ``predictions/``, ``scores.csv``, ``volumes.csv``,
``summary.json``, ``pictures/`` and, where asked for, ``probabilities/``. In the paper protocol a part's files lie one
level lower, in ``native/`` and ``model/``. ``explain`` adds ``maps/``, ``train --log`` ``tensorboard/`` or ``wandb/``.

Each line of ``log.jsonl`` is an entry of a training, every tenth step and after each validation:

- ``step``: how many steps are done; ``seconds``: spent until then, earlier sittings and validations included.
- ``loss``: of patches, the mean over the steps since the entry before; ``learning_rate``: of this step.
- ``validation_dice``: of whole validation volumes on the model's grid, mean over classes, by which the model is chosen;
  ``validation_dice_by_class``: the same class by class, with their ``mean``.
- ``validation_loss``: of whole validation volumes, mean over volumes, with the loss that training has of patches.
- ``block_norms``: mean length of the tokens ``entering`` and ``leaving`` the language block in this step.
- ``stopped_early``: true in the last entry of a training whose patience ran out.

Numbers that do not exist (a Dice where no class is anywhere) are null; keys without a measurement are left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvisionllama.errors import InputError
from medvisionllama.whole_file import FREE_OR_ELSEWHERE, whole_file

METRICS = ("dice", "jaccard", "accuracy", "precision", "recall", "specificity", "hd95_mm", "nsd")
FORMAT_VERSION = 1
PARTS = ("validation", "test")
GRIDS = ("native", "model")
SCORE_COLUMNS = ("case", "class", "metric", "value")
VOLUME_COLUMNS = ("case", "class", "reference_ml", "prediction_ml")
_EVALUATE_AGAIN = "Write it anew with `medvisionllama evaluate`."


@dataclass(frozen=True)
class ScoreRow:
    """One measured number: ``value`` is NaN where the metric has no meaning (both masks empty).

    ``outcome`` is what the voxels were counted to say: ``both``, ``missed``, ``false_alarms`` or ``absent``; None where
    nobody counted, as in rows read back. The table has no column for it: ``summary.json`` keeps it.
    """

    case: str
    class_name: str
    metric: str
    value: float
    outcome: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class VolumeRow:
    """How much of a structure there is in reference and prediction, in millilitres (1,000 cubic millimetres)."""

    case: str
    class_name: str
    reference_ml: float
    prediction_ml: float


class RunFolder:
    """The paths of one run, and safe ways to read and write what lies there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.plan = self.path / "plan.json"
        self.splits = self.path / "splits.json"
        self.log = self.path / "log.jsonl"
        self.model = self.path / "model.safetensors"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.checkpoint_state = self.path / "checkpoint.json"
        self.environment = self.path / "environment.json"
        self.summary = self.path / "summary.json"
        self.postprocessing = self.path / "postprocessing.json"

    def refuse_other_version(self, *, torn: bool = True) -> None:
        """Make sure that this version of the program understands what lies here.

        Args:
            torn: Whether a file that is no JSON at all is refused as well: one torn by a crash has no version.

        Raises:
            InputError: ``config.yaml``, ``plan.json`` or ``summary.json`` is of another format.
        """
        for path in (self.config, self.plan, self.summary):
            try:
                found = _format_of(path) if path.exists() else FORMAT_VERSION
            except InputError:
                if torn:
                    raise
                continue
            if found != FORMAT_VERSION:
                raise InputError(
                    f"{path} is of another version",
                    got=f"format {found}",
                    expected=f"format {FORMAT_VERSION}",
                    mend="Train again, or use the version of medvisionllama that wrote it.",
                )

    @property
    def left_anything(self) -> bool:
        """Whether any file lies here that only a run leaves: evaluated folders have a ``summary.json`` too."""
        files = (self.config, self.plan, self.log, self.model, self.environment)
        return any(path.exists() for path in files)

    @property
    def finished(self) -> bool:
        """Whether the training ended and its validation part, where the split has one, was scored."""
        if not (self.summary.exists() and self.model.exists()) or self.checkpoint.exists():
            return False
        summary = read_json(self.summary)
        # Scoring the weights of a training that was cut short writes a summary too, but without its steps.
        nothing_to_score = summary.get("cases", {}).get("validation") == 0
        return "steps" in summary and ("validation" in summary or nothing_to_score)

    def folds(self) -> list[RunFolder]:
        """The runs below ``RUN/fold_0..4`` in order, or this run alone where it has no folds."""
        number = {p: p.name.removeprefix("fold_") for p in self.path.glob("fold_*") if p.is_dir()}
        folders = sorted((p for p in number if number[p].isdecimal()), key=lambda p: int(number[p]))
        return [RunFolder(p) for p in folders] or [self]

    def part(self, part: str, grid: str | None = None) -> Path:
        """Where the predictions and scores of ``validation`` or ``test`` lie."""
        return self.path / part / grid if grid else self.path / part

    def append_log(self, entry: dict[str, Any]) -> None:
        """Add one line to ``log.jsonl``.

        Raises:
            InputError: The folder cannot be written, or has no room.
        """
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(to_json(entry, indent=None) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self.log}", got=error.strerror or str(error), mend=FREE_OR_ELSEWHERE
            ) from error

    def read_log(self) -> list[dict[str, Any]]:
        """All log entries; a line torn by a crash is left out."""
        if not self.log.exists():
            return []
        return list(_whole_lines(self.log))

    def cut_log(self, step: int) -> None:
        """Drop entries after ``step``: what a resumed run will write again."""
        kept = [entry for entry in self.read_log() if entry.get("step", 0) <= step]
        write_text(self.log, "".join(to_json(entry, indent=None) + "\n" for entry in kept))


def _format_of(path: Path) -> object:
    if path.suffix == ".json":
        content = read_json(path)
        return content.get("format", FORMAT_VERSION) if isinstance(content, dict) else None
    # The first line of config.yaml, read without a YAML library: floor 1 has none.
    first = path.read_text(encoding="utf-8").partition("\n")[0].partition(":")
    return int(first[2]) if first[0] == "format" and first[2].strip().isdigit() else None


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    # A crash may tear a letter of several bytes. Not splitlines: it also breaks at letters JSON leaves in a string.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def to_json(value: object, indent: int | None = 2) -> str:
    """JSON in which NaN and infinities are null, so that every reader takes it."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a reader never sees half of it.

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_text(path, to_json(value) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON", got=str(error), mend="Restore the file or write it anew.") from error


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write ``scores.csv`` (``case,class,metric,value``); NaN is an empty value.

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    table = [(r.case, r.class_name, r.metric, "" if math.isnan(r.value) else f"{r.value:.9g}") for r in rows]
    write_table(path, [SCORE_COLUMNS, *table])


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows of texts as CSV.

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    write_text(path, "".join(",".join(_quote(cell) for cell in row) + "\n" for row in rows))


def _quote(text: str) -> str:
    # csv.writer leaves a lone carriage return unquoted before Python 3.13, and csv.reader then ends the row there.
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def write_volumes(path: Path, rows: Iterable[VolumeRow]) -> None:
    """Write ``volumes.csv`` (``case,class,reference_ml,prediction_ml``).

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    table = [(r.case, r.class_name, f"{r.reference_ml:.6g}", f"{r.prediction_ml:.6g}") for r in rows]
    write_table(path, [VOLUME_COLUMNS, *table])


def read_volumes(path: Path) -> list[VolumeRow]:
    """Read ``volumes.csv``.

    Raises:
        InputError: The file is missing, has other columns, or a line of it cannot be understood.
    """
    again = "Run `predict` again."
    try:
        lines = _csv_lines(path)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no table of volumes", got=str(error), mend=again) from error
    if not lines or tuple(lines[0]) != VOLUME_COLUMNS:
        expected = f"the columns {','.join(VOLUME_COLUMNS)}"
        raise InputError(f"{path} is no table of volumes", expected=expected, mend=again)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            case, class_name, reference_ml, prediction_ml = line
            rows.append(VolumeRow(case, class_name, float(reference_ml), float(prediction_ml)))
        except ValueError as error:
            if line:
                got = ",".join(line)
                raise InputError(f"{path} cannot be understood at row {number}", got=got, mend=again) from error
    return rows


def _csv_lines(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet saves it with a byte order mark
        return list(csv.reader(file))


def read_scores(path: Path) -> list[ScoreRow]:
    """Read ``scores.csv``.

    Raises:
        InputError: The file is missing, has other columns, or a line of it cannot be understood.
    """
    try:
        lines = _csv_lines(path)
    except OSError as error:
        raise InputError(
            f"cannot read {path}",
            got=error.strerror or str(error),
            mend="Run `medvisionllama evaluate` first.",
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no score table", got=str(error), mend=_EVALUATE_AGAIN) from error
    if not lines or tuple(lines[0]) != SCORE_COLUMNS:
        raise InputError(f"{path} is no score table", expected=f"the columns {','.join(SCORE_COLUMNS)}")
    return [_score_row(path, number, line) for number, line in enumerate(lines[1:], start=2) if line]


def _score_row(path: Path, number: int, line: list[str]) -> ScoreRow:
    try:
        case, class_name, metric, value = line
        return ScoreRow(case, class_name, metric, float(value) if value else math.nan)
    except ValueError as error:
        raise InputError(
            f"{path} cannot be understood at row {number}", got=",".join(line), mend=_EVALUATE_AGAIN
        ) from error
