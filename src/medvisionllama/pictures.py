"""What a scored part keeps for the page: small pictures of some cases, and the volume of every structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvisionllama.data.nifti import read_label_map
from medvisionllama.data.plan import Plan
from medvisionllama.data.task import Task
from medvisionllama.evaluate import Target
from medvisionllama.geometry import Array, Volume, ras_grid, to_ras
from medvisionllama.reference import read_reference
from medvisionllama.run_folder import ScoreRow, VolumeRow
from medvisionllama.whole_file import whole_file

# Spread evenly from the best to the worst, so that the page can show both ends and the middle.
RANKED_CASES = 9
# By name alone: the same for every run on the same split, so that runs can be seen side by side.
COMMON_CASES = 12


def volume_rows(prediction: Volume, reference: Volume, targets: Sequence[Target], case: str) -> list[VolumeRow]:
    """One row a target: voxels counted times the volume of a voxel."""
    voxel_ml = abs(float(np.linalg.det(reference.affine[:3, :3]))) / 1000
    return [
        VolumeRow(
            case,
            target.name,
            int(np.isin(reference.array, target.labels).sum()) * voxel_ml,
            int(np.isin(prediction.array, target.labels).sum()) * voxel_ml,
        )
        for target in targets
    ]


def keep_pictures(out: Path, task: Task, plan: Plan, rows: Sequence[ScoreRow]) -> None:
    """Keep image, reference and prediction of a few cases, best to worst, as small arrays for the page."""
    by_case: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "dice" and np.isfinite(row.value):
            by_case.setdefault(row.case, []).append(row.value)
    ordered = sorted(by_case, key=lambda name: float(np.mean(by_case[name])))
    if not ordered:
        return
    for name in {*_spread(ordered, RANKED_CASES), *_spread(sorted(ordered), COMMON_CASES)}:
        case = task.case(name)
        prediction = read_label_map(out / "predictions" / f"{name}.nii.gz")
        arrays = picture_arrays(case.read_image(), prediction, read_reference(case, plan).volume)
        with whole_file(out / "pictures" / f"{name}.npz") as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # arrays, not options


def picture_arrays(image: Volume, prediction: Volume, reference: Volume | None) -> dict[str, Array]:
    """The arrays of a picture, in RAS order: ``image`` for display, ``prediction``, ``affine``, maybe ``reference``."""
    arrays = {
        "image": _shown(to_ras(image).array),
        "prediction": to_ras(prediction).array,
        "affine": ras_grid(image.grid).affine,
    }
    return arrays if reference is None else arrays | {"reference": to_ras(reference).array}


def _spread(names: Sequence[str], count: int) -> set[str]:
    """``count`` of the names, evenly spread, both ends among them."""
    return {names[round(i)] for i in np.linspace(0, len(names) - 1, min(count, len(names)))}


def _shown(array: Array) -> Array:
    """The first channel between its 0.5 and 99.5 percentiles as grey values 0..255."""
    channel = array[0] if array.ndim == 4 else array
    low, high = np.percentile(channel, (0.5, 99.5))
    scaled: Array = np.clip((channel - low) / max(high - low, 1e-6), 0, 1)
    return (scaled * 255).astype(np.uint8)
