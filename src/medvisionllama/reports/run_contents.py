"""What a run left behind, read once for everything that draws it; what is missing is said, never guessed.

A run that stopped early, was never scored or has no pictures is still a run: each gap becomes one sentence in
``RunContents.missing`` and all else is read as usual.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.reports.unfinished import told_so_far
from medvisionllama.run_folder import GRIDS, PARTS, RunFolder, ScoreRow, read_json, read_scores

# What NumPy raises for a file of arrays that is missing, torn, or lacks an array.
BROKEN_ARRAYS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Picture:
    """One case as ``predict`` keeps it for the page.

    Attributes:
        case: The case's name.
        image: ``(I,J,K)`` uint8, windowed for display; axes run to the patient's right, front and head (RAS).
        prediction: ``(I,J,K)`` label map, of as many bytes as its values need.
        reference: The same shape, or None where the case has no reference.
        affine: 4x4, voxel indices to RAS+ millimetres.
    """

    case: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.integer[Any]]
    reference: NDArray[np.integer[Any]] | None
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along I, J and K."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))


@dataclass(frozen=True)
class Maps:
    """What the stages of one model made of one case.

    Attributes:
        picture: The case, its axes as in :class:`Picture`.
        stages: Stage name to its map ``(I,J,K)`` on the picture's grid, in the order of the model; an attention map,
            where there is one, is a stage like the others.
    """

    picture: Picture
    stages: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ScoredPart:
    """The scores of one part of the split on one grid; the folds of a run are taken together.

    Attributes:
        part: ``validation`` or ``test``.
        grid: ``native``, ``model``, or empty where the protocol knows one grid only.
        rows: One row per case, class and metric, of all folds.
        summaries: ``summary.json`` of ``evaluate``: one per fold, or one.
        pictures: Case name to the file that holds its arrays.
        folders: Where the scores were found: one per fold, or one.
    """

    part: str
    grid: str
    rows: tuple[ScoreRow, ...]
    summaries: tuple[dict[str, Any], ...] = ()
    pictures: dict[str, Path] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """Such as ``validation`` or ``test, native grid``."""
        return f"{self.part}, {self.grid} grid" if self.grid else self.part

    @property
    def classes(self) -> list[str]:
        """Class names in the order in which the scores name them."""
        return list(dict.fromkeys(row.class_name for row in self.rows))

    @property
    def cases(self) -> list[str]:
        """Case names in the order in which the scores name them."""
        return list(dict.fromkeys(row.case for row in self.rows))

    @property
    def metrics(self) -> list[str]:
        """Metrics that any case has a value of, in the order in which the scores name them; Dice in any case."""
        known = {row.metric for row in self.rows if not math.isnan(row.value)} | {"dice"}
        return [metric for metric in dict.fromkeys(row.metric for row in self.rows) if metric in known]

    @property
    def tolerance_mm(self) -> float | None:
        """The tolerance of NSD, where the folds agree on one."""
        found = {summary.get("tolerance_mm") for summary in self.summaries}
        return found.pop() if len(found) == 1 else None

    @property
    def regions(self) -> list[str]:
        """Unions of classes that are scored besides them and left out of means over classes."""
        return [name for summary in self.summaries[:1] for name in summary.get("regions") or ()]

    def values(self, metric: str, class_name: str | None = None) -> dict[str, float]:
        """Case to its value; without a class, the mean over the classes that have one (NaN where none has)."""
        found: dict[str, list[float]] = defaultdict(list)
        wanted = {class_name} if class_name is not None else set(self.classes) - set(self.regions)
        for row in self.rows:
            if row.metric == metric and row.class_name in wanted:
                found[row.case].append(row.value)
        return {case: _mean(values) for case, values in found.items()}

    def count(self, kind: str, class_name: str) -> int | None:
        """How many cases were ``missed``, ``false_alarms`` or ``absent``; None where no summary tells."""
        entries = [summary.get("classes", {}).get(class_name, {}).get(kind) for summary in self.summaries]
        counts = [int(entry) for entry in entries if entry is not None]
        return sum(counts) if counts else None


@dataclass(frozen=True)
class RunContents:
    """All that a page or a figure draws of one run.

    Attributes:
        path: The run folder.
        label: Its short name among the runs shown together.
        summary: ``summary.json`` (of the first fold where the run has folds only); where missing, as much of it as
            other files tell (:func:`~medvisionllama.reports.unfinished.told_so_far`), with ``planned_steps``.
        environment: ``environment.json``; empty where missing.
        logs: Fold name (empty for a run without folds) to its log entries.
        parts: The scored parts, validation first.
        missing: One sentence for everything that is not there.
    """

    path: Path
    label: str
    summary: dict[str, Any]
    environment: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]]
    parts: tuple[ScoredPart, ...]
    missing: tuple[str, ...] = ()

    @property
    def is_unfinished(self) -> bool:
        """Whether the training did not reach the step it was meant to, as far as the run tells."""
        steps, planned = self.summary.get("steps"), self.summary.get("planned_steps")
        return steps is not None and planned is not None and steps < planned

    @property
    def best_validation_dice(self) -> float | None:
        """The Dice for which the weights were kept; None where no validation chose them, or nothing tells."""
        best = self.summary.get("best_step")
        found = [
            entry.get("validation_dice") for log in self.logs.values() for entry in log if entry.get("step") == best
        ]
        return next((value for value in found if value is not None), None)

    @property
    def class_names(self) -> dict[int, str]:
        """Label value to class name, as far as the run names them."""
        return {int(value): str(name) for value, name in (self.summary.get("classes") or {}).items()}

    def part(self, title: str) -> ScoredPart | None:
        """The scored part of that title."""
        return next((part for part in self.parts if part.title == title), None)


def read_runs(paths: Sequence[Path]) -> list[RunContents]:
    """Read every run and give each a label of its own.

    Raises:
        InputError: No path was given, or one is not a folder.
    """
    if not paths:
        raise InputError("no run to report on", mend="Name at least one run folder.")
    runs = [read_run(path) for path in paths]
    return [
        RunContents(run.path, label, run.summary, run.environment, run.logs, run.parts, run.missing)
        for run, label in zip(runs, distinct_labels(runs), strict=True)
    ]


def read_run(path: Path) -> RunContents:
    """Read one run folder, folds below it included.

    Raises:
        InputError: ``path`` is not a folder, no run's, or one of another version.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a run folder", mend="Name a folder that `medvisionllama train` has made.")
    folder = RunFolder(path)
    members = folder.folds()
    if not any(member.left_anything for member in members):
        raise InputError(
            f"{path} is not a run folder",
            got="none of a run's files",
            mend="Name the folder that `medvisionllama train` has made, not a part of it.",
        )
    for member in members:
        member.refuse_other_version(torn=False)
    missing: list[str] = []
    summary = _read_first([folder.summary, *(member.summary for member in members)], "training summary", missing)
    environment = _read_first(
        [folder.environment, *(member.environment for member in members)], "record of the machine", missing
    )
    logs = {member.path.name if member.path != path else "": member.read_log() for member in members}
    trained = bool(summary) and not any(member.checkpoint.exists() for member in members)
    summary = summary or told_so_far(members[0], environment, next(iter(logs.values())))
    missing += _gaps_in_training(members, logs, summary.get("planned_steps"))
    parts = _read_parts(folder, members, missing)
    if not parts and trained:
        missing.append("No scores: run `medvisionllama predict RUN --part validation`, then make this page again.")
    elif not parts:
        missing.append("No scores: the training has not ended.")
    return RunContents(path, path.name, summary, environment, logs, parts, tuple(missing))


def distinct_labels(runs: Sequence[RunContents]) -> list[str]:
    """The shortest names that tell the runs apart: the model, with what differs between runs of one model.

    Where even that leaves two alike, the ends of their paths, as short as will do; of one run named twice, a number.
    """
    models = [str(run.summary.get("model") or run.path.name) for run in runs]
    labels = list(models)
    for tell in (_task, _block_name, _share, _fold, _steps, _seed):
        told = [tell(run) for run in runs]
        if any(len({t for m, t in zip(models, told, strict=True) if m == model}) > 1 for model in models):
            labels = [f"{label}, {t}" if t else label for label, t in zip(labels, told, strict=True)]
    parts = [run.path.absolute().parts for run in runs]
    tails = [["/".join(of_run[-length:]) for of_run in parts] for length in range(1, max(map(len, parts)))]
    for kind in (labels, *tails):
        if len(set(kind)) == len(runs):
            return kind
    return [f"{label}, {place}" for place, label in enumerate(labels, start=1)]


def read_picture(path: Path) -> Picture:
    """Read ``pictures/CASE.npz``.

    Raises:
        InputError: The file is missing, broken, or holds arrays of different shapes.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, prediction, affine = arrays["image"], arrays["prediction"], arrays["affine"]
            reference = arrays.get("reference")
    except BROKEN_ARRAYS as error:
        raise InputError(f"cannot read the picture {path}", got=str(error), mend="Run `predict` again.") from error
    others = [prediction] if reference is None else [prediction, reference]
    if image.ndim != 3 or any(other.shape != image.shape for other in others):
        raise InputError(f"the arrays of {path} do not fit together", mend="Run `predict` again.")
    return Picture(path.stem, image, prediction, reference, affine)


def read_maps(path: Path) -> Maps:
    """Read ``maps/CASE.npz``: the arrays of a picture, ``stages`` (names) and ``maps`` ``(stages,I,J,K)``.

    Raises:
        InputError: The file is missing, broken, or holds arrays of different shapes.
    """
    picture = read_picture(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, maps = [str(name) for name in arrays["stages"]], arrays["maps"]
    except BROKEN_ARRAYS as error:
        raise InputError(f"cannot read the maps {path}", got=str(error), mend="Run `explain` again.") from error
    if maps.shape != (len(names), *picture.image.shape):
        raise InputError(f"the maps of {path} do not fit its image", mend="Run `explain` again.")
    return Maps(picture, dict(zip(names, maps.astype(np.float32), strict=True)))


def _task(run: RunContents) -> str:
    return str(run.summary.get("task") or "")


def _block_name(run: RunContents) -> str:
    block = run.summary.get("block")
    return f"{block.get('id')} {block.get('init', '')}".strip() if block else "no block"


def _share(run: RunContents) -> str:
    fraction = run.summary.get("fraction")
    return f"{100 * fraction:g}% of the data" if isinstance(fraction, int | float) else ""


def _fold(run: RunContents) -> str:
    return f"fold {run.summary['fold']}" if run.summary.get("fold") is not None else ""


def _steps(run: RunContents) -> str:
    return f"{run.summary['steps']} steps" if run.summary.get("steps") is not None else ""


def _seed(run: RunContents) -> str:
    return f"seed {run.summary['seed']}" if run.summary.get("seed") is not None else ""


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _read_first(paths: Sequence[Path], what: str, missing: list[str]) -> dict[str, Any]:
    """The first of these files that is there and whole; a torn one is named."""
    faults = []
    for path in dict.fromkeys(paths):
        if not path.exists():
            continue
        try:
            found = read_json(path)
        except InputError as error:
            faults.append(str(error))
            continue
        if isinstance(found, dict):
            return found
    why = faults[0] if faults else "the run was stopped early?"
    missing.append(f"No {what} ({paths[0].name}): {why}")
    return {}


def _gaps_in_training(
    members: Sequence[RunFolder], logs: dict[str, list[dict[str, Any]]], planned: int | None
) -> list[str]:
    gaps = []
    for member, (name, entries) in zip(members, logs.items(), strict=True):
        where = f"{name}: " if name else ""
        if not entries:
            gaps.append(f"{where}No training log (log.jsonl): learning curves cannot be drawn.")
        if member.checkpoint.exists():
            step = entries[-1].get("step") if entries else None
            of = f" of {planned}" if planned else ""
            reached = f" at step {step}{of}" if step is not None else ""
            gaps.append(f"{where}Training was interrupted{reached} and can be resumed with `train --resume`.")
    return gaps


def _read_parts(folder: RunFolder, members: Sequence[RunFolder], missing: list[str]) -> tuple[ScoredPart, ...]:
    """Every part on every grid: the run's own where it has one (an ensemble's), else that of its folds together."""
    parts = []
    for part in PARTS:
        for grid in ("", *GRIDS):
            own = [folder.part(part, grid or None)]
            places = own if (own[0] / "scores.csv").exists() else [m.part(part, grid or None) for m in members]
            found = _read_part(part, grid, [p for p in places if (p / "scores.csv").exists()], missing)
            if found is None:
                continue
            if len(places) > 1 and len(found.summaries) < len(places):
                missing.append(f"Scores of the {part} part were found in fewer than all {len(places)} folds.")
            parts.append(found)
    return tuple(parts)


def _read_part(part: str, grid: str, places: Sequence[Path], missing: list[str]) -> ScoredPart | None:
    rows: list[ScoreRow] = []
    summaries: list[dict[str, Any]] = []
    pictures: dict[str, Path] = {}
    for place in places:
        try:
            rows += read_scores(place / "scores.csv")
            summaries.append(read_json(place / "summary.json"))
        except (InputError, ValueError) as error:
            missing.append(str(error))
        pictures |= {path.stem: path for path in sorted((place / "pictures").glob("*.npz"))}
    return ScoredPart(part, grid, tuple(rows), tuple(summaries), pictures, tuple(places)) if rows else None
