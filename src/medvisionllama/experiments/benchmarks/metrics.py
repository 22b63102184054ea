"""How fast the metrics are, as ratios to MONAI and to DeepMind's surface-distance on the same masks in one run.

Ours is everything ``evaluate`` does for a case once it is read: all eight metrics of all classes. The rivals do HD95
and NSD alone, class by class, as their documentation has it. They are timed on masks of the whole image, and once more
on masks cut to each class's surroundings beforehand, which spares them most of the image. All run on one thread; ratios
are of processor time, so that others at work on the machine count less.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvisionllama.data.nifti import read_label_map
from medvisionllama.evaluate import Target, labels_in, score_volume
from medvisionllama.experiments.benchmarks.own_process import apart, peak_gb
from medvisionllama.geometry import Shape, Volume, resize
from medvisionllama.metrics.boxes import box_of

SHIFT_MM = 3.0
TOLERANCE_MM = 2.0
LARGE_SHAPE: Shape = (512, 512, 600)
LARGE_CLASSES = 104
STRAY_CLASSES = 10

Mask = NDArray[np.bool_]
Rival = Callable[[Mask, Mask, tuple[float, float, float]], tuple[float, float]]


@dataclass(frozen=True)
class Masks:
    """A label map by name, and the classes of it that are timed."""

    name: str
    reference: Volume
    labels: Sequence[int]

    def shifted(self) -> Volume:
        """The prediction: the reference moved by about :data:`SHIFT_MM` along every axis."""
        i, j, k = (round(SHIFT_MM / s) for s in self.reference.spacing_mm)
        return self.reference.with_array(moved(self.reference.array, (i, j, k)))


def benchmark_metrics(
    data: Path | None = None, *, repeats: int = 3, classes_of_many: int = 8, with_large: bool = True
) -> dict[str, Any]:
    """Time the metrics.

    Args:
        data: The folder of real data sets: BraTS2013_2ch and TotalSeg_CT (resampled to 0.8 mm) are used. Without it
            the masks are generated bodies.
        repeats: How often ours and every rival is timed, after one small warm-up; the quickest counts.
        classes_of_many: Of TotalSeg_CT's classes so many, evenly chosen by size, are timed.
        with_large: Whether to score the generated 512x512x600 map with 104 classes too.

    Returns:
        A JSON-ready object: for every name of masks seconds, in all and per class, ratios and the largest disagreement.
        ``surface_distance`` takes its percentile over areas, so its HD95 is another number; its NSD is the same.
    """
    rivals = _rivals()
    if "monai" in rivals:
        import torch

        torch.set_num_threads(1)
    _warm_up(rivals)
    compared = [_compare(masks, rivals, repeats) for masks in _masks(data, classes_of_many)]
    result: dict[str, Any] = {"benchmark": "metrics", "shift_mm": SHIFT_MM, "tolerance_mm": TOLERANCE_MM}
    result["masks"] = compared
    result["left_out"] = [name for name in ("monai", "surface_distance") if name not in rivals]
    if with_large:
        result["large"] = apart(score_large)
    return result


def _rivals() -> dict[str, Rival]:
    known: dict[str, Rival] = {"monai": _monai, "surface_distance": _surface_distance}
    return {name: rival for name, rival in known.items() if find_spec(name)}


def _monai(prediction: Mask, reference: Mask, spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing_mm)
        nsd = compute_surface_dice(
            one, other, [TOLERANCE_MM], include_background=True, spacing=spacing_mm, use_subvoxels=True
        )
    return float(hd95), float(nsd)


def _surface_distance(prediction: Mask, reference: Mask, spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    import surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
        hd95 = surface_distance.compute_robust_hausdorff(distances, 95)
        nsd = surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
    return float(hd95), float(nsd)


def _warm_up(rivals: dict[str, Rival]) -> None:
    """Imports and first-call costs are nobody's fault: they happen before the clock."""
    small = ellipsoid((9, 9, 9), 0.8)
    score_volume(Volume(small.astype(np.uint8), np.eye(4)), Volume(small.astype(np.uint8), np.eye(4)), [], None, "")
    for rival in rivals.values():
        rival(small, small, (1.0, 1.0, 1.0))


def _masks(data: Path | None, classes_of_many: int) -> Iterator[Masks]:
    if data is None:
        bodies = Volume(_bodies((160, 160, 160), 8), np.eye(4))
        yield Masks("generated bodies", bodies, labels_in(bodies))
        return
    brats = read_label_map(data / "BraTS2013_2ch" / "labelsTr" / "brats_2013_pat0001_1.nii.gz")
    yield Masks("BraTS2013_2ch brats_2013_pat0001_1", brats, labels_in(brats))
    (path,) = sorted((data / "TotalSeg_CT" / "labelsTr").glob("ct_torso.nii*"))
    torso = read_label_map(path)
    grid = torso.grid.with_spacing((0.8, 0.8, 0.8))
    fine = Volume(resize(torso.array, grid.shape, 0), grid.affine)
    sizes = np.bincount(torso.array.ravel())
    present = sorted(labels_in(torso), key=lambda label: int(sizes[label]))
    chosen = [present[i] for i in np.linspace(0, len(present) - 1, min(classes_of_many, len(present))).astype(int)]
    yield Masks("TotalSeg_CT ct_torso at 0.8 mm", fine, chosen)


def _compare(masks: Masks, rivals: dict[str, Rival], repeats: int) -> dict[str, Any]:
    reference, prediction = masks.reference, masks.shifted()
    targets = [Target(str(label), (label,)) for label in masks.labels]
    time, rows = _quickest(lambda: score_volume(prediction, reference, targets, TOLERANCE_MM, ""), repeats)
    ours = np.array([[r.value for r in rows if r.metric == metric] for metric in ("hd95_mm", "nsd")]).T
    result: dict[str, Any] = {
        "name": masks.name,
        "shape": list(reference.array.shape),
        "labels": list(masks.labels),
        "ours": time.as_dict(classes=len(masks.labels)),
    }
    pairs = [(prediction.array == label, reference.array == label) for label in masks.labels]
    cut_pairs = [_cut(*pair) for pair in pairs]
    for name, rival in rivals.items():
        result[name] = _against(rival, pairs, reference.spacing_mm, ours, time, repeats)
        result[f"{name}_on_cut_masks"] = _against(rival, cut_pairs, reference.spacing_mm, ours, time, repeats)
    return result


def _against(
    rival: Rival,
    pairs: Sequence[tuple[Mask, Mask]],
    spacing_mm: tuple[float, float, float],
    ours: NDArray[np.float64],
    our_time: Time,
    repeats: int,
) -> dict[str, float]:
    time, theirs = _quickest(lambda: [rival(*pair, spacing_mm) for pair in pairs], repeats)
    hd95_apart, nsd_apart = np.abs(np.array(theirs) - ours).max(axis=0)
    return {
        **time.as_dict(classes=len(pairs)),
        "ratio": time.processor_s / our_time.processor_s,
        "hd95_mm_apart": float(hd95_apart),
        "nsd_apart": float(nsd_apart),
    }


@dataclass(frozen=True)
class Time:
    """Seconds of the processor and of the clock."""

    processor_s: float
    wall_s: float

    def as_dict(self, classes: int) -> dict[str, float]:
        """For JSON, and the processor's seconds for one of so many classes."""
        return asdict(self) | {"processor_s_per_class": self.processor_s / classes}


def _timed(act: Callable[[], Any]) -> tuple[Time, Any]:
    wall, processor = perf_counter(), process_time()
    result = act()
    return Time(process_time() - processor, perf_counter() - wall), result


def _quickest(act: Callable[[], Any], repeats: int) -> tuple[Time, Any]:
    """Of several times the one in which least else went on."""
    return min((_timed(act) for _ in range(repeats)), key=lambda timed: timed[0].processor_s)


def moved(labels: NDArray[Any], steps: Shape) -> NDArray[Any]:
    """The same voxels so many steps on along each axis; what leaves the image is lost, and background comes in."""
    result = np.zeros_like(labels)
    arrives = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(steps, labels.shape, strict=True))
    leaves = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(steps, labels.shape, strict=True))
    result[arrives] = labels[leaves]
    return result


def _cut(prediction: Mask, reference: Mask) -> tuple[Mask, Mask]:
    """Both masks in their common box and one voxel around it, as far as there is one."""
    inner = box_of(prediction | reference)
    box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in inner or ())
    return np.ascontiguousarray(prediction[box]), np.ascontiguousarray(reference[box])


def ellipsoid(shape: Shape, filled: float) -> Mask:
    """An ellipsoid in the middle of a box, its half-axes ``filled`` times the box's."""
    axes = [np.square((np.arange(n) - (n - 1) / 2) / (n / 2 * filled)) for n in shape]
    inside: Mask = axes[0][:, None, None] + axes[1][:, None] + axes[2] <= 1
    return inside


def _bodies(shape: Shape, count: int, filled: float = 0.9, seed: int = 0) -> NDArray[np.uint8]:
    """Ellipsoids of random size on a lattice of cells, each its own label; every fourth one is hollow."""
    generator = np.random.default_rng(seed)
    per_axis = int(np.ceil(count ** (1 / 3)))
    i, j, k = (n // per_axis for n in shape)
    labels = np.zeros(shape, dtype=np.uint8)
    for label, cell in enumerate(list(np.ndindex(per_axis, per_axis, per_axis))[:count], start=1):
        body = ellipsoid((i, j, k), filled * generator.uniform(0.9, 1.0))
        if label % 4 == 0:
            body &= ~ellipsoid((i, j, k), filled / 2)
        place = tuple(slice(c * n, (c + 1) * n) for c, n in zip(cell, (i, j, k), strict=True))
        labels[place][body] = label
    return labels


def score_large() -> dict[str, Any]:
    """Score a generated CT: 104 classes, about a quarter of the voxels, shifted, ten classes with stray voxels."""
    reference = _bodies(LARGE_SHAPE, LARGE_CLASSES)
    prediction = moved(reference, (3, 2, 2))
    generator = np.random.default_rng(1)
    for label in range(1, STRAY_CLASSES + 1):
        prediction[tuple(generator.integers(0, n, 5) for n in LARGE_SHAPE)] = label
    affine = np.diag([0.75, 0.75, 1.0, 1.0])
    targets = [Target(str(label), (label,)) for label in range(1, LARGE_CLASSES + 1)]
    before = peak_gb()
    time, rows = _timed(
        lambda: score_volume(Volume(prediction, affine), Volume(reference, affine), targets, TOLERANCE_MM, "")
    )
    return {
        "shape": list(LARGE_SHAPE),
        "classes": LARGE_CLASSES,
        "filled": float(np.count_nonzero(reference) / reference.size),
        **time.as_dict(classes=LARGE_CLASSES),
        "peak_gb": peak_gb(),
        "peak_gb_before_scoring": before,
        "mean_dice": float(np.mean([row.value for row in rows if row.metric == "dice"])),
    }
