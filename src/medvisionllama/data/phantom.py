"""Generated anatomy: a Decathlon task made of nothing but a seed, for the demo and the tests.

Each case looks like the crop of a T1-weighted brain around one right hippocampus: a curved structure with a hooked
head, in two touching classes, among a temporal horn, an amygdala and gyri of much the same greys. Case differs from
case in shape, contrast, bias field, noise, intensity scale, spacing, orientation and obliquity.

Points are in RAS+ millimetres about the centre of the box: x lateral, y anterior, z superior. Left and right differ
everywhere (the horn is lateral, the cistern medial), so a flip cannot hide. None of this is a model of disease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from medvisionllama.data.nifti import write_label_map, write_volume
from medvisionllama.data.task import DESCRIPTION
from medvisionllama.errors import InputError
from medvisionllama.geometry import Affine, Grid, Volume
from medvisionllama.run_folder import write_json

Field = NDArray[np.float32]
Position = tuple[Field, Field, Field]

CLASSES = {1: "Anterior", 2: "Posterior"}
MODALITIES = ("MRI T1", "MRI T2", "MRI PD")

# Brightness of each tissue in the three modalities, white matter of T1 being 1.
_TISSUES = {
    "white": (1.00, 0.45, 0.62),
    "grey": (0.66, 0.66, 0.80),
    "deep grey": (0.76, 0.58, 0.74),
    "hippocampus": (0.68, 0.70, 0.82),
    "fluid": (0.22, 1.00, 0.92),
    "vessel": (0.10, 0.12, 0.15),
}
# The centre line from tail to uncus: x, y, z and radius in mm.
_CENTRE_LINE = (
    (-4.5, -15.0, 7.0, 2.0),
    (-2.6, -12.0, 5.4, 3.1),
    (0.2, -8.0, 2.8, 3.7),
    (1.8, -3.0, 0.4, 3.9),
    (2.2, 2.0, -1.6, 4.1),
    (1.4, 7.0, -3.0, 5.0),
    (-0.8, 11.0, -3.2, 5.3),
    (-3.8, 12.2, -2.0, 3.8),
    (-5.4, 10.2, -0.6, 2.5),
)
_HEAD_BEGINS = 0.53  # of the way along the centre line
_SEGMENTS = 14
_FLATNESS = 1.2  # the cross-section is wider than high
_CENTRE_MM = (28.0, -22.0, -14.0)  # where a right hippocampus lies from the middle of the head
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class PhantomSettings:
    """What may be varied.

    Attributes:
        box_mm: Field of view along R, A, S; each case differs by up to 6 %. The anatomy does not scale with it.
        spacing_mm: Between which values each axis draws its spacing. Coarse spacings make tiny cases for tests.
        channels: 1 to 3: T1, T2 and PD contrast of the same anatomy.
        canonical: All cases in RAS order and not oblique.
    """

    box_mm: tuple[float, float, float] = (36.0, 44.0, 36.0)
    spacing_mm: tuple[float, float] = (0.85, 1.25)
    channels: int = 1
    canonical: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= len(MODALITIES):
            raise InputError("channels of a phantom", got=str(self.channels), expected=f"1 to {len(MODALITIES)}")
        if not 0 < self.spacing_mm[0] <= self.spacing_mm[1] <= min(self.box_mm) / 4:
            raise InputError("spacings of a phantom", got=str(self.spacing_mm), expected="0 < low <= high, 4 voxels")


DEFAULT = PhantomSettings()


def write_phantom_task(
    folder: Path | str,
    cases: int = 24,
    seed: int = 0,
    settings: PhantomSettings = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a Decathlon task of generated cases and return its folder.

    A case depends on the seed, its number and the settings alone: more cases do not change the first ones.

    Args:
        folder: Made where it does not exist.
        cases: How many; about 0.4 s each.
        seed: Another seed gives other cases.
        settings: What may be varied.
        progress: Called after each case with the number done and the number in all.

    Raises:
        InputError: The folder cannot be written, or no case is asked for.
    """
    if cases < 1:
        raise InputError("a phantom task needs a case", got=str(cases), expected="1 or more")
    folder = Path(folder)
    names = [f"phantom_{index:03d}" for index in range(cases)]
    for index, name in enumerate(names):
        image, label = phantom_case(index, seed, settings)
        write_volume(image, folder / "imagesTr" / f"{name}.nii.gz")
        write_label_map(label, folder / "labelsTr" / f"{name}.nii.gz")
        if progress:
            progress(index + 1, cases)
    write_json(folder / DESCRIPTION, _description(names, seed, settings))
    return folder


def phantom_case(index: int, seed: int = 0, settings: PhantomSettings = DEFAULT) -> tuple[Volume, Volume]:
    """Generate one case.

    Returns:
        The image, float32 ``(I,J,K)`` or ``(M,I,J,K)``, and its label map, uint8 ``(I,J,K)`` with the values 0, 1, 2.
    """
    rng = np.random.default_rng([seed, index])
    grid = _draw_grid(rng, settings)
    points = _sample_points(grid)
    clean, label = _anatomy(points, rng, settings.channels)
    image = _acquire(_mean_over_voxel(clean, grid), grid, rng)
    label_map = _majority_over_voxel(label, grid)
    return Volume(image if settings.channels > 1 else image[0], grid.affine), Volume(label_map, grid.affine)


def _description(names: list[str], seed: int, settings: PhantomSettings) -> dict[str, object]:
    return {
        "name": "Phantom",
        "description": f"Generated anatomy, seed {seed}: no image of a person",
        "licence": "Apache-2.0",
        "tensorImageSize": "4D" if settings.channels > 1 else "3D",
        "modality": {str(number): MODALITIES[number] for number in range(settings.channels)},
        "labels": {"0": "background", **{str(value): name for value, name in CLASSES.items()}},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": [],
    }


def _draw_grid(rng: Generator, settings: PhantomSettings) -> Grid:
    """A grid about the anatomy's centre: any of the 48 axis orders and directions, every third one slightly oblique."""
    spacing = rng.uniform(*settings.spacing_mm, 3)
    extent = np.array(settings.box_mm) * rng.uniform(0.94, 1.06, 3)
    order, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
    tilt = Rotation.from_rotvec(rng.normal(size=3) * np.deg2rad(5) * (rng.random() < 1 / 3))
    offset = rng.uniform(-1.5, 1.5, 3)
    if settings.canonical:
        order, signs, tilt = np.arange(3), np.ones(3), Rotation.identity()
    shape = np.round(extent[order] / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = tilt.as_matrix() @ np.eye(3)[:, order] * signs * spacing
    affine[:3, 3] = np.array(_CENTRE_MM) + offset - affine[:3, :3] @ ((shape - 1) / 2)
    # NIfTI holds float32: so drawn, what is written is what was meant.
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine.astype(np.float32).astype(np.float64))


def _sample_points(grid: Grid) -> Field:
    """``(3,I',J',K')`` millimetres from the anatomy's centre, several points along each edge of a voxel."""
    i, j, k = (n * _SUPERSAMPLING for n in grid.shape)
    fine: Affine = grid.with_shape((i, j, k)).affine
    indices = np.indices((i, j, k), dtype=np.float32)
    points = np.tensordot(fine[:3, :3].astype(np.float32), indices, 1)
    return np.asarray(points + (fine[:3, 3] - _CENTRE_MM).astype(np.float32)[:, None, None, None], dtype=np.float32)


def _anatomy(points: Field, rng: Generator, channels: int) -> tuple[Field, NDArray[np.uint8]]:
    """Paint tissue over tissue, the hippocampus last. Returns brightness ``(M,...)`` and labels ``(...)``."""
    x, y, z = _pose(points, rng)
    fold, ripple = _noise(points, rng, 6.0), _noise(points, rng, 2.5)
    canvas = _Canvas(points.shape[1:], _contrast(rng, channels))
    _paint_gyri(canvas, (x, y, z), fold, ripple)
    _paint_medial_side(canvas, (x, y, z), ripple)
    _paint_grey_blobs(canvas, (x, y, z), ripple, rng)
    line = _centre_line(rng)
    depth, along = _tube((x, y, z), line)
    depth = depth + 0.35 * ripple
    horn, _ = _tube((x - 1.7, y - 0.6, z - 1.5), line)
    canvas.paint(depth + 1.1, "white")  # alveus and fimbria
    subiculum = np.minimum(1.8 - np.abs(z + 5.2 + 0.25 * y + 0.3 * x), np.minimum(depth + 3.5, -0.5 - x))
    canvas.paint(subiculum, "grey")  # grey upon grey: here the hippocampus has no edge to be seen
    canvas.paint(np.minimum(horn + 0.3 * ripple, 0.22 * (y + 16)), "fluid")  # temporal horn, closed behind
    canvas.paint(depth, "hippocampus")
    _paint_vessels(canvas, (x, y, z), rng)
    anterior = along + 0.012 * ripple > _HEAD_BEGINS + rng.uniform(-0.04, 0.04)
    label = np.where(depth > 0, np.where(anterior, 1, 2), 0).astype(np.uint8)
    texture = 1 + 0.035 * _noise(points, rng, 0.9) + 0.025 * ripple + 0.03 * fold
    return canvas.brightness * texture, label


class _Canvas:
    """Brightness in every modality, painted tissue by tissue with soft edges."""

    def __init__(self, shape: tuple[int, ...], contrast: dict[str, Field]) -> None:
        self.contrast = contrast
        self.brightness: Field = np.empty((len(contrast["white"]), *shape), np.float32)
        self.brightness[:] = contrast["white"].reshape(-1, 1, 1, 1)

    def paint(self, depth_mm: NDArray[np.floating], tissue: str) -> None:
        """Cover all that lies inside (``depth_mm`` above 0); the edge is 0.6 mm wide."""
        cover = np.clip(depth_mm / 0.6 + 0.5, 0, 1).astype(np.float32)
        self.brightness += cover * (self.contrast[tissue].reshape(-1, 1, 1, 1) - self.brightness)


def _contrast(rng: Generator, channels: int) -> dict[str, Field]:
    """Each tissue's brightness in this case: the scanner's contrast differs from day to day."""
    power = rng.uniform(0.75, 1.3, channels)
    return {
        tissue: np.asarray(np.array(values[:channels]) ** power * rng.normal(1, 0.02, channels), dtype=np.float32)
        for tissue, values in _TISSUES.items()
    }


def _pose(points: Field, rng: Generator) -> Field:
    """Where each point lies in the template: turned, scaled and smoothly bent."""
    turn = Rotation.from_rotvec(rng.normal(size=3) * np.deg2rad(5)).as_matrix()
    scale = rng.uniform(0.9, 1.1, 3)
    bent = points + 1.3 * np.stack([_noise(points, rng, 8.0) for _ in range(3)])
    return np.asarray(np.tensordot((turn / scale).astype(np.float32), bent, 1), dtype=np.float32)


def _centre_line(rng: Generator) -> Field:
    """``(segments+1, 4)``: points and radius along the hippocampus, each control point moved a little."""
    control = np.array(_CENTRE_LINE)
    control[:, :3] += rng.normal(0, 0.5, (len(control), 3))
    control[:, 3] *= rng.normal(1, 0.06, len(control))
    spline = CubicSpline(np.linspace(0, 1, len(control)), control)
    return np.asarray(spline(np.linspace(0, 1, _SEGMENTS + 1)), dtype=np.float32)


def _tube(position: Position, line: Field) -> tuple[Field, Field]:
    """How deep each point lies in the tube (mm, negative outside), and how far along, from 0 to 1."""
    x, y, z = position
    depth = np.full(x.shape, -np.inf, np.float32)
    along = np.zeros(x.shape, np.float32)
    for segment, (start, end) in enumerate(pairwise(line)):
        dx, dy, dz = x - start[0], y - start[1], z - start[2]
        ex, ey, ez = (end - start)[:3]
        share = np.clip((dx * ex + dy * ey + dz * ez) / (ex * ex + ey * ey + ez * ez), 0, 1)
        distance = np.sqrt((dx - share * ex) ** 2 + (dy - share * ey) ** 2 + (_FLATNESS * (dz - share * ez)) ** 2)
        here = start[3] + share * (end[3] - start[3]) - distance
        nearer = here > depth
        depth[nearer] = here[nearer]
        along[nearer] = (segment + share[nearer]) / (len(line) - 1)
    return depth, along


def _paint_gyri(canvas: _Canvas, position: Position, fold: Field, ripple: Field) -> None:
    """Folded cortex below and to the side: fluid in the sulci, grey ribbons beside it, white cores."""
    x, y, z = position
    region = 0.62 * x - 0.78 * z - 8.5 + 0.8 * ripple
    folded = np.cos((0.78 * x + 0.62 * z + 0.25 * y) * (2 * np.pi / 11) + 1.6 * fold) + 0.25 * ripple
    sulcus = 3.2 * (folded - 0.72) + np.minimum(region - 4.0, 0) * 0.5
    canvas.paint(np.minimum(region, 3.2 * folded + 1.0 + np.minimum(region - 3.0, 0)), "grey")
    canvas.paint(np.minimum(region - 2.5, sulcus), "fluid")


def _paint_medial_side(canvas: _Canvas, position: Position, ripple: Field) -> None:
    """Parahippocampal gyrus below, the ambient cistern beside it, the midbrain beyond."""
    x, y, z = position
    gyrus = 4.6 - np.hypot(x + 3.5 + 0.05 * y, 0.9 * (z + 8.5 + 0.12 * y)) + 0.5 * ripple
    canvas.paint(gyrus, "grey")
    canvas.paint(gyrus - 2.3, "white")
    cistern = -10.0 - x + 0.10 * (z + 2) ** 2 * 0.35 + 0.7 * ripple
    canvas.paint(np.minimum(cistern, 9 - 0.6 * np.abs(z + 2)), "fluid")
    canvas.paint(cistern - 3.2, "deep grey")


def _paint_grey_blobs(canvas: _Canvas, position: Position, ripple: Field, rng: Generator) -> None:
    """Amygdala, thalamus, the putamen's edge, and a few that are nowhere twice the same."""
    blobs: list[tuple[Sequence[float], Sequence[float], str]] = [
        ((-1.5, 15.5, 5.5), (6.0, 5.0, 4.6), "grey"),
        ((-8.0, -5.0, 13.5), (7.5, 10.0, 6.0), "deep grey"),
        ((7.5, 8.0, 13.0), (4.0, 9.0, 5.0), "deep grey"),
    ]
    for _ in range(4):
        blobs.append((rng.uniform((5, -18, 4), (15, 14, 14)).tolist(), rng.uniform(1.2, 2.6, 3).tolist(), "grey"))
    for centre, radii, tissue in blobs:
        moved = np.add(centre, rng.normal(0, 0.6, 3)).astype(np.float32)
        squares = [((p - c) / np.float32(r)) ** 2 for p, c, r in zip(position, moved, radii, strict=True)]
        canvas.paint(min(radii) * (1 - np.sqrt(squares[0] + squares[1] + squares[2])) + 0.5 * ripple, tissue)


def _paint_vessels(canvas: _Canvas, position: Position, rng: Generator) -> None:
    """Two arteries in the cistern that run from front to back."""
    x, y, z = position
    for height in (-4.0, 3.0):
        phase = rng.uniform(0, 2 * np.pi)
        side = x + 11.7 + 0.8 * np.sin(y / 4 + phase)
        level = z - height - 0.12 * y - 0.8 * np.cos(y / 5 + phase)
        canvas.paint(0.75 - np.hypot(side, level), "vessel")


def _noise(points: Field, rng: Generator, length_mm: float) -> Field:
    """Smooth noise of unit variance at the points; it varies over about ``length_mm``."""
    step = length_mm / 2
    reach = float(np.abs(points).max()) + 3 * length_mm
    size = int(np.ceil(2 * reach / step)) + 1
    lattice = gaussian_filter(rng.standard_normal((size,) * 3, dtype=np.float32), 1.4)
    lattice /= lattice.std()
    where = (points + np.float32(reach)) / np.float32(step)
    return np.asarray(map_coordinates(lattice, where, order=1, mode="nearest", output=np.float32))


def _mean_over_voxel(fine: Field, grid: Grid) -> Field:
    """Partial volume: the mean of all samples within a voxel, ``(M,I,J,K)``."""
    i, j, k = grid.shape
    s = _SUPERSAMPLING
    return np.asarray(fine.reshape(-1, i, s, j, s, k, s).mean((2, 4, 6)), dtype=np.float32)


def _majority_over_voxel(fine: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """The label most samples within a voxel have; of two as frequent, the lower."""
    counts = np.stack([_mean_over_voxel((fine == value).astype(np.float32), grid)[0] for value in (0, *CLASSES)])
    return np.asarray(counts.argmax(0), dtype=np.uint8)


def _acquire(clean: Field, grid: Grid, rng: Generator) -> Field:
    """Bias field, Rician noise and a scale of its own, over four orders of magnitude as in the Decathlon's Task04."""
    voxels = np.indices(grid.shape, dtype=np.float32)
    points = np.asarray(np.tensordot(grid.affine[:3, :3].astype(np.float32), voxels, 1), dtype=np.float32)
    points -= points.mean((1, 2, 3), keepdims=True)
    bias = np.exp(rng.uniform(0.08, 0.2) * _noise(points, rng, 18.0))
    sigma = rng.uniform(0.02, 0.05)
    real, imaginary = rng.normal(0, sigma, (2, *clean.shape))
    scale = 10 ** rng.uniform(2, 6)
    return np.asarray(scale * np.hypot(clean * bias + real, imaginary), dtype=np.float32)
