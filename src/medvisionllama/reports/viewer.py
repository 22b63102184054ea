"""The interactive viewer of the page: NiiVue and the volumes of chosen cases, beside the page, loaded when asked for.

A page opened from disk may not read files, but it may run scripts that lie beside it: so each case is a script that
hands over its volumes, as gzipped NIfTI in base64.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvisionllama.errors import InputError
from medvisionllama.reports.drawing import class_colour
from medvisionllama.reports.mosaic import PLANES, field_of_view, fullest_slice
from medvisionllama.reports.run_contents import Picture
from medvisionllama.run_folder import write_text

NIIVUE = Path(__file__).parent / "niivue"
VIEWER_FILE = "niivue.umd.js"
LICENCES_FILE = "LICENCES.txt"
MOST_VOXELS = 20_000_000


@dataclass(frozen=True)
class ViewerCase:
    """One entry of the viewer's list.

    Attributes:
        title: What the list calls it.
        file: The script beside the page that carries the volumes, without ending; empty where there is none.
        classes: Label value to name.
        has_reference: Whether there is a reference to show.
        centre: Where the crosshair begins, as shares of the volume along I, J and K: where most is labelled.
    """

    title: str
    file: str = ""
    classes: dict[int, str] = field(default_factory=dict)
    has_reference: bool = False
    centre: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def as_dict(self) -> dict[str, Any]:
        """The shape that the page's script reads."""
        return {
            "title": self.title,
            "file": self.file,
            "classes": [
                {"value": value, "name": name, "colour": class_colour(value)} for value, name in self.classes.items()
            ],
            "reference": self.has_reference,
            "centre": self.centre,
        }


def viewer_is_there(folder: Path = NIIVUE) -> bool:
    """Whether NiiVue has been put into the package."""
    return (folder / VIEWER_FILE).is_file()


def copy_viewer(out: Path, folder: Path = NIIVUE) -> None:
    """Copy NiiVue and the licences of all it bundles to ``out``.

    Raises:
        InputError: ``out`` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (VIEWER_FILE, LICENCES_FILE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
    except OSError as error:
        raise InputError(
            f"cannot write the viewer to {out}",
            got=error.strerror or str(error),
            mend="Choose a folder you may write to.",
        ) from error


def write_case(picture: Picture, title: str, classes: dict[int, str], out: Path, name: str) -> ViewerCase:
    """Write ``OUT/NAME.js`` with the picture's volumes; label values without a name are called by their number.

    Beyond twenty million voxels only the labelled voxels and 25 mm around them are written, and the title says so.
    """
    if picture.image.size > MOST_VOXELS:
        picture, title = cropped(picture), f"{title} (cropped)"
    volumes = {"image": picture.image, "prediction": picture.prediction}
    if picture.reference is not None:
        volumes["reference"] = picture.reference
    encoded = {what: _encoded(array, picture.affine) for what, array in volumes.items()}
    labels = [volumes[what] for what in ("prediction", "reference") if what in volumes]
    values = sorted({int(value) for array in labels for value in np.unique(array)} | set(classes))
    write_text(out / f"{name}.js", f"receiveCase({json.dumps(name)}, {json.dumps(encoded)});\n")
    named = {value: classes.get(value, f"{value}") for value in values if value > 0}
    return ViewerCase(title, name, named, picture.reference is not None, _fullest_place(picture))


def cropped(picture: Picture) -> Picture:
    """The labelled voxels and 25 mm around them, in the same place of the world."""
    box = field_of_view(picture)
    inside = tuple(slice(first, last) for first, last in box)
    affine = picture.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [first for first, _ in box]
    reference = None if picture.reference is None else picture.reference[inside]
    return Picture(picture.case, picture.image[inside], picture.prediction[inside], reference, affine)


def _fullest_place(picture: Picture) -> tuple[float, float, float]:
    shares = {
        plane.normal: (fullest_slice(picture, plane) + 0.5) / picture.image.shape[plane.normal] for plane in PLANES
    }
    return shares[0], shares[1], shares[2]


# From small to large, with NIfTI's number for each.
_STORED_TYPES = (("<u1", 2), ("<i2", 4), ("<i4", 8))


def nifti_bytes(array: NDArray[np.integer[Any]], affine: NDArray[np.float64]) -> bytes:
    """A single-file NIfTI-1 volume of bytes, or of wider whole numbers where it has such; the affine is its sform.

    Args:
        array: ``(I,J,K)`` of whole numbers from 0 on.
        affine: 4x4, voxel indices to RAS+ millimetres.
    """
    kind, code = next(found for found in _STORED_TYPES if array.max(initial=0) <= np.iinfo(found[0]).max)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    header = bytearray(352)  # 348 bytes of header and 4 that say: no extension
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *array.shape, 1, 1, 1, 1)  # dim
    struct.pack_into("<2h", header, 70, code, 8 * np.dtype(kind).itemsize)  # datatype, bits a voxel
    struct.pack_into("<8f", header, 76, 1, *spacing_mm, 0, 0, 0, 0)  # pixdim
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # vox_offset, scl_slope, scl_inter
    struct.pack_into("<B", header, 123, 2)  # xyzt_units: mm
    struct.pack_into("<2h", header, 252, 0, 2)  # qform_code none, sform_code aligned
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())  # srow_x, srow_y, srow_z
    struct.pack_into("<4s", header, 344, b"n+1\0")
    return bytes(header) + array.astype(kind).tobytes(order="F")


def _encoded(array: NDArray[np.integer[Any]], affine: NDArray[np.float64]) -> str:
    return base64.b64encode(gzip.compress(nifti_bytes(array, affine), mtime=0)).decode("ascii")
