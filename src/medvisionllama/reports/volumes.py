"""How large structures are in the reference and in the prediction, for Bland-Altman plots.

``volumes.csv`` beside ``scores.csv`` holds them for every case; where a run has none, the cases with pictures tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvisionllama.reports.run_contents import RunContents, ScoredPart, read_picture
from medvisionllama.run_folder import VolumeRow, read_volumes


def structure_volumes(run: RunContents, part: ScoredPart) -> list[VolumeRow]:
    """Every structure with a reference: of all cases, or of those with pictures where no ``volumes.csv`` lies there.

    Raises:
        InputError: A file is broken.
    """
    tables = [folder / "volumes.csv" for folder in part.folders if (folder / "volumes.csv").exists()]
    if tables:
        return [volume for table in tables for volume in read_volumes(table)]
    found = []
    for case, path in part.pictures.items():
        picture = read_picture(path)
        if picture.reference is None:
            continue
        voxel_ml = abs(float(np.linalg.det(picture.affine[:3, :3]))) / 1000
        for value, name in run.class_names.items():
            counts = [_count(labels, value) for labels in (picture.reference, picture.prediction)]
            found.append(VolumeRow(case, name, counts[0] * voxel_ml, counts[1] * voxel_ml))
    return found


def limits_of_agreement(volumes: list[VolumeRow]) -> tuple[float, float, float]:
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
