"""A folder with a DICOM series, read as a volume. Needs pydicom, which comes with the extra ``dicom``.

A series is a folder of files of one slice each. Where a slice lies is said by ImagePositionPatient,
ImageOrientationPatient and PixelSpacing (DICOM PS3.3, C.7.6.2). File names, InstanceNumber, SliceThickness and
SpacingBetweenSlices are often wrong and are not looked at.

Axes: ``I`` along a slice's rows (its columns counted), ``J`` down its columns, ``K`` from slice to slice along their
normal. World coordinates of DICOM are LPS+, those of a :class:`Volume` RAS+.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Array, Grid, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

Vector = NDArray[np.float64]

# How far a slice may lie from its place on an even line of slices, in steps of it. Scanners round positions to 0.1 mm.
EVENNESS = 0.1
# A step longer than this many usual ones is a missing slice.
GAP = 1.5
# How far that line may lean away from the slices' normal, as a tilted gantry makes it. What scanners round is below.
LEAN_DEGREES = 1.0
# Directions and pixel spacings of one series differ by their rounding only.
DIRECTION_TOLERANCE = 1e-3
SPACING_TOLERANCE = 1e-3

_MAGIC_AT, _MAGIC = 128, b"DICM"
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
_DIRECTORY = "DICOMDIR"  # a table of contents, in DICOM's own format
_LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Slice:
    """One file of a series, its pixels left on the disk.

    Attributes:
        path: The file.
        header: Everything but the pixels.
        position_mm: LPS+ place of the centre of its first pixel.
        directions: ``(2,3)``, unit vectors in LPS+: along the rows, down the columns.
        spacing_mm: Between pixels along the rows, and down the columns.
        shape: Columns and rows.
    """

    path: Path
    header: Dataset
    position_mm: Vector
    directions: Vector
    spacing_mm: Vector
    shape: tuple[int, int]


def is_dicom_folder(path: Path | str) -> bool:
    """Whether a folder holds DICOM files, whatever they are called; needs no pydicom. Folders below do not count."""
    return any(True for _ in _dicom_files(Path(path)))


def read_series(folder: Path | str) -> Volume:
    """Read the one series a folder holds, with each slice's rescale slope and intercept (or look-up table) applied.

    Files that are not DICOM are passed over.

    Returns:
        ``(I,J,K)`` float32. ``I`` and ``J`` as stored, ``K`` ascending along the cross product of their directions:
        voxel axes and affine are right-handed, and independent of the files' names and order.

    Raises:
        InputError: pydicom is not installed; the folder holds no series or several; a file is damaged, compressed in a
            way that nothing installed decodes, in colour, of several frames, or without a place in space; slices
            differ in size or direction, share a place, are missing, unevenly spaced or sheared by a tilted gantry, or
            there is only one.
    """
    slices = read_slices(Path(folder))
    grid = grid_of(slices)
    array = np.empty(grid.shape, dtype=np.float32)
    for k, one in enumerate(slices):
        array[:, :, k] = _read_pixels(one).T
    return Volume(array, grid.affine)


def read_slices(folder: Path) -> list[Slice]:
    """The slices of the folder's only series, checked against each other, ascending along their normal.

    Raises:
        InputError: As :func:`read_series`, but for faults of pixels.
    """
    headers = {path: _read_header(path) for path in _dicom_files(folder)}
    if not headers:
        raise InputError(
            f"{folder} holds no DICOM file",
            expected="the files of one series, directly within",
            mend="Name the folder of one series.",
        )
    _refuse_several_series(folder, headers)
    slices = [_slice(path, header) for path, header in headers.items()]
    _refuse_unlike(slices)
    normal = _normal(slices[0])
    slices.sort(key=lambda one: float(one.position_mm @ normal))
    _refuse_gaps(folder, slices, normal)
    _refuse_uneven(folder, slices, normal)
    return slices


def grid_of(slices: Sequence[Slice]) -> Grid:
    """Where the voxels of a series lie, RAS+, from its sorted slices."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, :2] = (first.directions * first.spacing_mm[:, None]).T
    affine[:3, 2] = (last.position_mm - first.position_mm) / (len(slices) - 1)
    affine[:3, 3] = first.position_mm
    return Grid((*first.shape, len(slices)), _LPS_TO_RAS @ affine)


def import_extra(module: str) -> Any:
    """A module of the extra ``dicom``, imported when first needed.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"DICOM needs {module.partition('.')[0]}, which is not installed",
            mend="Run `pip install 'medvisionllama[dicom]'`.",
        ) from error


def _dicom_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name[0] != "." and path.name != _DIRECTORY and _has_magic(path):
            yield path


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    except OSError as error:
        raise InputError(
            f"{path} cannot be read", got=error.strerror or str(error), mend="Restore the file."
        ) from error


def _read_header(path: Path) -> Dataset:
    with _damage_told(path):
        return cast("Dataset", import_extra("pydicom").dcmread(path, stop_before_pixels=True))


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises over a file into an error that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # bytes from outside: what pydicom raises over them has no common base
        told = str(error) or type(error).__name__
        raise InputError(f"{path} is damaged", got=told, mend="Obtain the file again.") from error


def _refuse_several_series(folder: Path, headers: Mapping[Path, Dataset]) -> None:
    series: dict[str, list[str]] = defaultdict(list)
    for path, header in headers.items():
        with _damage_told(path):
            told = f"{header.get('Modality') or 'no modality'} '{header.get('SeriesDescription') or 'no description'}'"
            series[str(header.get("SeriesInstanceUID"))].append(told)
    if len(series) > 1:
        counts = [f"{len(files)} of {files[0]}" for files in series.values()]
        raise InputError(
            f"{folder} holds {len(series)} series",
            got=f"files: {', '.join(counts[:5])}{', ...' if len(counts) > 5 else ''}",
            mend="Put each series into a folder of its own.",
        )


def _slice(path: Path, header: Dataset) -> Slice:
    with _damage_told(path):
        frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
        if frames != 1 or samples != 1:
            raise InputError(
                f"{path} is no slice of grey values",
                got=f"{frames} frame(s) with {samples} value(s) per pixel",
                expected="one frame with one value per pixel",
                mend="Convert it to .nii.gz, for example with dcm2niix.",
            )
        found = [header.get(keyword) for keyword in _PLACE]
        if not all(found):
            raise InputError(
                f"{path} does not say where it lies",
                expected=", ".join(_PLACE),
                mend="Remove it where it is a report or a screenshot; else export the series again.",
            )
        position_mm, directions, spacing_mm = (np.array(value, dtype=np.float64) for value in found[:3])
        return Slice(
            path,
            header,
            _finite(path, position_mm.reshape(3)),
            _unit_vectors(path, directions.reshape(2, 3)),
            _positive(path, spacing_mm.reshape(2)[::-1]),  # stored as down, along
            (int(header["Columns"].value), int(header["Rows"].value)),
        )


def _finite(path: Path, position_mm: Vector) -> Vector:
    if not np.isfinite(position_mm).all():
        raise InputError(f"{path} lies nowhere", got=f"ImagePositionPatient {position_mm.tolist()}")
    return position_mm


def _unit_vectors(path: Path, directions: Vector) -> Vector:
    lengths = np.linalg.norm(directions, axis=1)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=DIRECTION_TOLERANCE):
        raise InputError(
            f"the directions of {path} are not at right angles, or not of length 1",
            got=f"ImageOrientationPatient {np.round(directions, 4).ravel().tolist()}",
            mend="Export the series again.",
        )
    unit: Vector = directions / lengths[:, None]
    return unit


def _positive(path: Path, spacing_mm: Vector) -> Vector:
    if not (np.isfinite(spacing_mm).all() and (spacing_mm > 0).all()):
        raise InputError(f"the pixels of {path} have no size", got=f"PixelSpacing {spacing_mm[::-1].tolist()}")
    return spacing_mm


def _normal(one: Slice) -> Vector:
    normal: Vector = np.cross(one.directions[0], one.directions[1])
    return normal


def _refuse_unlike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for one in slices[1:]:
        for what, mine, others, tolerance in (
            ("columns and rows", one.shape, first.shape, 0),
            ("directions", one.directions, first.directions, DIRECTION_TOLERANCE),
            ("pixel spacing in mm", one.spacing_mm, first.spacing_mm, SPACING_TOLERANCE * first.spacing_mm.min()),
        ):
            if not np.allclose(mine, others, rtol=0, atol=tolerance):
                raise InputError(
                    f"{one.path} and {first.path} differ in their {what}",
                    got=f"{np.round(mine, 4).tolist()} and {np.round(others, 4).tolist()}",
                    mend="Remove what does not belong to the stack of slices, such as a localizer.",
                )


def _refuse_gaps(folder: Path, slices: Sequence[Slice], normal: Vector) -> None:
    """Refuse slices (sorted) that share a place, or between which one is missing."""
    if len(slices) == 1:
        raise InputError(f"{folder} holds one slice only", mend="Name the folder that holds the whole series.")
    steps_mm = np.diff([one.position_mm @ normal for one in slices])
    names = [one.path.name for one in slices]
    shared = np.flatnonzero(steps_mm <= AFFINE_TOLERANCE_MM)
    if shared.size:
        raise InputError(
            f"{folder} holds several slices of one place",
            got=f"{shared.size} such pair(s), the first {names[shared[0]]} and {names[shared[0] + 1]}",
            mend="Remove copies; put the phases or echoes of one series into folders of their own.",
        )
    usual = float(np.sort(steps_mm)[(len(steps_mm) - 1) // 2])
    gaps = np.flatnonzero(steps_mm > GAP * usual)
    if gaps.size:
        at = gaps[0]
        raise InputError(
            f"{folder} lacks slices",
            got=f"{gaps.size} gap(s), the first of {steps_mm[at]:.4g} mm between {names[at]} and {names[at + 1]}",
            expected=f"a slice every {usual:.4g} mm",
            mend="Export the whole series.",
        )


def _refuse_uneven(folder: Path, slices: Sequence[Slice], normal: Vector) -> None:
    """Refuse slices (sorted) that are not even steps along their normal."""
    positions = np.array([one.position_mm for one in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    step_mm = float(np.linalg.norm(step))
    lean = float(np.degrees(np.arccos(np.clip(step @ normal / step_mm, -1, 1))))
    if lean > LEAN_DEGREES:
        raise InputError(
            f"the slices of {folder} are sheared against each other",
            got=f"{lean:.1f} degrees, as by a tilted gantry",
            mend="Straighten the series, for example with dcm2niix, and segment its .nii.gz.",
        )
    off_mm = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max()
    if off_mm > EVENNESS * step_mm:
        raise InputError(
            f"the slices of {folder} are unevenly spaced",
            got=f"slices up to {off_mm:.3g} mm out of place",
            expected=f"a slice every {step_mm:.4g} mm, give or take {EVENNESS:.0%}",
            mend="Resample the series to even steps, and segment the result as .nii.gz.",
        )


def _read_pixels(one: Slice) -> Array:
    """``(J,I)``: rows of a slice, in the unit the header turns stored values into."""
    with _damage_told(one.path):
        dataset = import_extra("pydicom").dcmread(one.path)
        try:
            stored = dataset.pixel_array
        except RuntimeError as error:  # there is no decoder, or none that could
            raise InputError(
                f"{one.path} is compressed as {dataset.file_meta.TransferSyntaxUID.name} and cannot be decoded",
                got=" ".join(str(error).split()),
                mend="Run `pip install python-gdcm`, or decompress the series, for example with `gdcmconv --raw`.",
            ) from error
        pixels: Array = import_extra("pydicom.pixels").apply_modality_lut(stored, dataset)
    return pixels
