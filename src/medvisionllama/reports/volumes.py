"""How large structures are in the reference and in the prediction, for Bland-Altman plots.

``volumes.csv`` beside ``scores.csv`` holds them for every case; where a run has none, the cases with pictures tell.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.reports.run_contents import RunContents, ScoredPart, read_picture

COLUMNS = ("case", "class", "reference_ml", "prediction_ml")
_AGAIN = "Run `predict` again."


@dataclass(frozen=True)
class StructureVolume:
    """One structure of one case, measured twice, in millilitres (1,000 cubic millimetres)."""

    case: str
    class_name: str
    reference_ml: float
    prediction_ml: float


def structure_volumes(run: RunContents, part: ScoredPart) -> list[StructureVolume]:
    """Every structure with a reference: of all cases, or of those with pictures where no ``volumes.csv`` lies there.

    Raises:
        InputError: A file is broken.
    """
    tables = [folder / "volumes.csv" for folder in part.folders if (folder / "volumes.csv").exists()]
    if tables:
        return [volume for table in tables for volume in _read_table(table)]
    found = []
    for case, path in part.pictures.items():
        picture = read_picture(path)
        if picture.reference is None:
            continue
        voxel_ml = abs(float(np.linalg.det(picture.affine[:3, :3]))) / 1000
        for value, name in run.class_names.items():
            counts = [_count(labels, value) for labels in (picture.reference, picture.prediction)]
            found.append(StructureVolume(case, name, counts[0] * voxel_ml, counts[1] * voxel_ml))
    return found


def limits_of_agreement(volumes: list[StructureVolume]) -> tuple[float, float, float]:
    """Mean difference (prediction less reference) and the limits 1.96 SD around it, in ml (Bland and Altman 1986).

    NaN limits below two cases, NaN throughout without any.
    """
    differences = np.array([volume.prediction_ml - volume.reference_ml for volume in volumes])
    if differences.size == 0:
        return (float("nan"),) * 3
    bias = float(differences.mean())
    reach = 1.96 * float(differences.std(ddof=1)) if differences.size > 1 else float("nan")
    return bias, bias - reach, bias + reach


def _count(labels: NDArray[np.integer[Any]], value: int) -> int:
    return int((labels == value).sum())


def _read_table(path: Path) -> list[StructureVolume]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet saves it with a byte order mark
            lines = list(csv.reader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no table of volumes", got=str(error), mend=_AGAIN) from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise InputError(f"{path} is no table of volumes", expected=f"the columns {','.join(COLUMNS)}", mend=_AGAIN)
    return [_volume(path, number, line) for number, line in enumerate(lines[1:], start=2) if line]


def _volume(path: Path, number: int, line: list[str]) -> StructureVolume:
    try:
        case, class_name, *millilitres = line
        reference_ml, prediction_ml = map(float, millilitres)
    except ValueError as error:
        raise InputError(f"{path} cannot be understood at row {number}", got=",".join(line), mend=_AGAIN) from error
    return StructureVolume(case, class_name, reference_ml, prediction_ml)
