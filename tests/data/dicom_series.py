"""Generated DICOM series for the tests, in any orientation, and the places of their voxels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvisionllama.geometry import Affine, Array, Volume

pydicom = pytest.importorskip("pydicom")

SHAPE = (7, 6, 5)
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


def affine_of(axes: Array, spacing_mm: tuple[float, float, float], origin: tuple[float, float, float]) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = origin
    return affine


def turned(degrees: tuple[float, float, float]) -> Array:
    """A rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        result = turn @ result
    return result


# Columns: where I, J and K point, RAS. Both handednesses: slices may be counted up or down.
AXES = {
    "axial": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
    "axial, counted downwards": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "axial, feet first": np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "sagittal": np.array([[0, 0, -1], [-1, 0, 0], [0, -1, 0]]),
    "sagittal, from the left": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": turned((17.0, -31.0, 8.0)) @ np.diag((-1, -1, 1)),
    "oblique, counted downwards": turned((-40.0, 12.0, 65.0)) @ np.diag((-1, -1, -1)),
}
AFFINES = {name: affine_of(axes, (0.7, 0.9, 2.5), (31.25, -48.5, 12.75)) for name, axes in AXES.items()}


def picture(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Array:
    """Every voxel another value, so that none can be taken for another."""
    values: Array = np.random.default_rng(seed).permutation(int(np.prod(shape))).astype(np.int16).reshape(shape)
    return values


def write_series(
    folder: Path, image: Volume, change: Callable[[int, Any], None] = lambda number, file: None, seed: int = 0
) -> Path:
    """One file a slice, under names in shuffled order, with InstanceNumber and SliceThickness that lie."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing, lps = image.spacing_mm, LPS_TO_RAS @ image.affine
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    order = np.random.default_rng(seed).permutation(image.array.shape[2])
    for k, name in enumerate(order):
        file = pydicom.Dataset()
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file.SOPClassUID = pydicom.uid.MRImageStorage
        file.SOPInstanceUID = pydicom.uid.generate_uid()
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, frame
        file.Modality, file.SeriesDescription, file.Manufacturer = "MR", "generated", ""
        file.InstanceNumber, file.SliceThickness, file.SpacingBetweenSlices = int(name) + 1, 99, 77
        file.Columns, file.Rows = image.array.shape[:2]
        file.PixelSpacing = [spacing[1], spacing[0]]
        file.ImagePositionPatient = [round(float(x), 6) for x in (lps @ (0, 0, k, 1))[:3]]
        directions = lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)
        file.ImageOrientationPatient = [round(float(x), 9) for x in directions.T.ravel()]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation = 15, 1
        file.PixelData = image.array[:, :, k].T.astype("<i2").tobytes()
        change(k, file)
        file.save_as(folder / f"IM{name:04d}", enforce_file_format=True)
    return folder


def moved(by: Callable[[int], tuple[float, float, float]]) -> Callable[[int, Any], None]:
    def change(k: int, file: Any) -> None:
        file.ImagePositionPatient = [x + d for x, d in zip(file.ImagePositionPatient, by(k), strict=True)]

    return change


def only(slice_number: int, **tags: Any) -> Callable[[int, Any], None]:
    """Change one slice's tags; None removes one."""

    def change(k: int, file: Any) -> None:
        for keyword, value in tags.items() if k == slice_number else ():
            if value is None:
                delattr(file, keyword)
            else:
                setattr(file, keyword, value)

    return change


def looked_up(volume: Volume, places_mm: Array) -> Array:
    """Values at RAS places ``(N,3)`` that are voxel centres."""
    indices = np.linalg.inv(volume.affine) @ np.vstack([places_mm.T, np.ones(len(places_mm))])
    i, j, k = np.rint(indices[:3]).astype(int)
    assert np.abs(indices[:3] - (i, j, k)).max() < 1e-3, "these are voxel centres"
    values: Array = volume.array[i, j, k]
    return values


def centres_mm(volume: Volume) -> Array:
    indices = np.indices(volume.array.shape).reshape(3, -1)
    places: Array = (volume.affine @ np.vstack([indices, np.ones(indices.shape[1])]))[:3].T
    return places
