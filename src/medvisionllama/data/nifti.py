"""NIfTI files to and from volumes. The only file that knows nibabel.

On disk the channels of a Decathlon image come last, ``(I,J,K,M)``; in memory they come first, ``(M,I,J,K)``.
Every fault of a file is an :class:`InputError` that names it.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medvisionllama.errors import InputError
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Affine, Array, Grid, Volume
from medvisionllama.mapped import mapped_zeros
from medvisionllama.whole_file import whole_file

ENDINGS = (".nii.gz", ".nii")
WHOLE_NUMBER_TOLERANCE = 1e-4  # what a label may lose on its way through a float or a stored slope
_SLAB_VOXELS = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b"
_SCANNER = 1  # NIfTI's xform code for "scanner anatomical"
# The fields by which a header places its voxels, beside the first four of pixdim.
_PLACING = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
_FIRST_VOXEL = 352
MOST_PROBABLE = 65535  # what stands for a probability of 1
_IMAGE_CLASSES: tuple[Any, ...] = (nib.Nifti1Image, nib.Nifti2Image)
_STORED_AS_THEY_ARE = {np.dtype(t) for t in ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")}


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder in the order of their names, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.name.endswith(ENDINGS) and not p.name.startswith("."))


def case_name(path: Path | str) -> str:
    """The file's name without ``.nii.gz`` or ``.nii``: ``hippocampus_001``."""
    name = Path(path).name
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def read_volume(path: Path | str) -> Volume:
    """Read an image as float32, scale and offset of the header applied.

    Returns:
        ``(I,J,K)``, or ``(M,I,J,K)`` where the file holds several channels. NaN and infinities are left as they are.

    Raises:
        InputError: The file is missing, damaged, not NIfTI, or not an image of numbers with three or four axes.
    """
    image = _load(Path(path))
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which `check` tells
        array = np.asarray(image.dataobj, dtype=np.float32)
    array = array.reshape(_shape(Path(path), image.header))
    if array.ndim == 4:
        array = np.moveaxis(array, -1, 0)
    return Volume(np.ascontiguousarray(array), image.affine)


def read_label_map(path: Path | str) -> Volume:
    """Read a label map ``(I,J,K)`` in the smallest integer type that holds it.

    Labels stored as floats are taken where they are whole numbers (to :data:`WHOLE_NUMBER_TOLERANCE`).

    Raises:
        InputError: As :func:`read_volume`; and where values are not whole numbers, or there are four axes.
    """
    path = Path(path)
    image = _load(path)
    shape = _shape(path, image.header)
    if len(shape) != 3:
        raise InputError(
            f"{path} has {shape[3]} channels, but a label map has one",
            got=f"shape {shape}",
            expected="three axes",
            mend="Store one number per voxel: the class.",
        )
    labels = np.empty(shape, dtype=np.uint8)
    planes = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    # Slab by slab: the file's own numbers, often 64-bit floats, are many times the size of the labels they mean.
    for first in range(0, shape[2], planes):
        slab = np.asarray(image.dataobj[:, :, first : first + planes]).reshape(*shape[:2], -1)
        slab = _smallest(_whole_numbers(path, slab) if slab.dtype.kind == "f" else slab)
        both = np.promote_types(labels.dtype, slab.dtype)  # float for uint64 and a signed type: then the file has int64
        labels = labels.astype(both if both.kind in "iu" else np.int64, copy=False)
        labels[:, :, first : first + planes] = slab
    return Volume(_smallest(labels), image.affine)


def read_grid(path: Path | str) -> tuple[Grid, int]:
    """Read the header alone: where the voxels lie, and the number of channels.

    Raises:
        InputError: The header cannot be read. Damage further on is not seen.
    """
    header = read_header(path)
    shape = _shape(Path(path), header)
    return Grid(shape[:3], header.get_best_affine()), shape[3] if len(shape) == 4 else 1


def stored_type(path: Path | str) -> str:
    """The name of the number type the file stores, such as ``int16``, whatever scale its header adds."""
    return str(read_header(path).get_data_dtype().name)


def write_label_map(volume: Volume, path: Path | str, like: Path | str | None = None) -> None:
    """Write integers or booleans ``(I,J,K)`` in the smallest integer type; whole file or nothing.

    Args:
        volume: The label map.
        path: The file.
        like: The image it was made from: where that is a NIfTI file on the same grid, its header's qform, sform and
            their codes are kept, so that every reader places both alike, whichever of the two it goes by.

    Raises:
        InputError: The path cannot be written or does not end in ``.nii.gz`` or ``.nii``.
    """
    if volume.array.ndim != 3 or volume.array.dtype.kind not in "iub":
        raise ValueError(f"a label map is integers (I,J,K), not {volume.array.dtype} {volume.array.shape}")
    labels = _smallest(volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array)
    _write(labels, volume, Path(path), _placed_as(volume.grid, like))


def write_volume(volume: Volume, path: Path | str) -> None:
    """Write an image, channels last on disk; whole file or nothing.

    Types every reader knows are kept, others become float32. A lone channel ``(1,I,J,K)`` comes back as ``(I,J,K)``.
    The affine comes back exactly as far as NIfTI-1 can hold it: to float32.

    Raises:
        InputError: The path cannot be written or does not end in ``.nii.gz`` or ``.nii``.
    """
    array = volume.array if volume.array.dtype in _STORED_AS_THEY_ARE else volume.array.astype(np.float32)
    _write(np.moveaxis(array, 0, -1) if array.ndim == 4 else array, volume, Path(path))


def read_header(path: Path | str) -> Any:
    """The header of the file as nibabel has it, checked; an affine that places no voxel is refused."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if start == _GZIP_MAGIC else file
            beginning = stream.read(540)
        header_class = _image_class(path, beginning).header_class
        return _checked(path, header_class(beginning[: header_class.template_dtype.itemsize]))
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error


_READ_FAULTS = (
    OSError,
    EOFError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.spatialimages.HeaderTypeError,
)


def _load(path: Path) -> Any:
    """The image, from bytes wholly read, so that gzip's checksum is looked at and no file stays open."""
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP_MAGIC):  # by content: files are misnamed often enough
            content = gzip.decompress(content)
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error
    image_class = _image_class(path, content)
    try:
        image = image_class.from_bytes(content)
    except (*_READ_FAULTS, ValueError, OverflowError) as error:  # such as an offset that is NaN or infinite
        raise _unreadable(path, error) from error
    _checked(path, image.header)
    stored = image.dataobj  # its offset: the header's own is reset on loading
    needed = stored.offset + math.prod(stored.shape) * stored.dtype.itemsize
    if len(content) < needed:
        raise InputError(
            f"{path} is cut short",
            got=f"{len(content)} bytes",
            expected=f"{needed} bytes, as its header says",
            mend="Obtain the file again.",
        )
    return image


def _image_class(path: Path, content: bytes) -> Any:
    for image_class in _IMAGE_CLASSES:
        if image_class.header_class.may_contain_header(content):
            return image_class
    raise InputError(f"{path} is not a NIfTI file", mend="Convert it to .nii.gz, for example with dcm2niix.")


def _checked(path: Path, header: Any) -> Any:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(f"{path} does not hold one number per voxel", got=f"type {dtype}", mend="Convert it to grey.")
    try:
        Grid(_shape(path, header)[:3], header.get_best_affine())
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} does not say where its voxels lie", got=str(error), mend="Mend its affine."
        ) from error
    return header


def _shape(path: Path, header: Any) -> Any:
    """``(I,J,K)`` or ``(I,J,K,M)``: trailing axes of one voxel, as some programs write them, are dropped."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise InputError(
            f"{path} is no volume",
            got=f"shape {shape}",
            expected="three axes, or four with the channels last",
            mend="Stack slices into one volume first.",
        )
    return shape


def _unreadable(path: Path, error: BaseException) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist", mend="Correct the path or restore the file.")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{path} is a folder, not a NIfTI file", mend="Name a .nii.gz file.")
    if isinstance(error, PermissionError):
        return InputError(f"{path} may not be read", mend="Give yourself the right to read it.")
    return InputError(f"{path} is damaged", got=str(error) or type(error).__name__, mend="Obtain the file again.")


def _whole_numbers(path: Path, array: Array) -> Array:
    if not np.isfinite(array).all():
        raise InputError(f"{path} has NaN or infinite labels", mend="Give every voxel a class, 0 for background.")
    whole = np.rint(array)
    broken = (np.abs(array - whole) > WHOLE_NUMBER_TOLERANCE) | (np.abs(whole) > np.iinfo(np.int32).max)
    if broken.any():
        examples = ", ".join(f"{value:g}" for value in np.unique(array[broken])[:5])
        raise InputError(
            f"{path} has labels that are no class numbers",
            got=examples,
            expected="one whole number per voxel",
            mend="Resample label maps by nearest neighbour, or threshold the probabilities.",
        )
    return whole.astype(np.int64)


def _smallest(array: Array) -> Array:
    """Unsigned where nothing is negative."""
    low, high = int(array.min()), int(array.max())
    dtype = np.min_scalar_type(high) if low >= 0 else np.min_scalar_type(min(low, -high - 1))
    return array.astype(dtype, copy=False)


@contextmanager
def probability_file(
    path: Path, grid: Grid, channels: int, scratch: Path | None, like: Path | str | None = None
) -> Iterator[Array]:
    """An array ``(C,I,J,K)`` of uint16 on ``grid`` to be filled in any order; what is in it at the end is written.

    The file is NIfTI, channels last, a value ``v`` meaning the probability ``v / 65535``, as its header's slope says:
    every reader gives floats, exact to 8e-6, in half the room of 32-bit ones. The array lies in a nameless file, since
    a whole body's probabilities fill no memory.

    Args:
        path: The file; whole or not at all.
        grid: The image's.
        channels: ``C``.
        scratch: Folder for the passing file; None for the system's own.
        like: As in :func:`write_label_map`.

    Raises:
        InputError: There is no room, or the path cannot be written or does not end in ``.nii.gz`` or ``.nii``.
    """
    _refuse_other_ending(path)
    i, j, k = grid.shape
    stored = mapped_zeros((channels, k, j, i), np.uint16, scratch)  # as on disk: I runs fastest
    yield stored.transpose(0, 3, 2, 1)
    header = _image(np.broadcast_to(np.uint16(0), (i, j, k, channels)), grid.affine, _placed_as(grid, like)).header
    header.set_slope_inter(1 / MOST_PROBABLE, 0)
    header["vox_offset"] = _FIRST_VOXEL
    with whole_file(path) as part, _stream(part, packed=path.name.endswith(".gz")) as file:
        file.write(header.binaryblock.ljust(_FIRST_VOXEL, b"\0"))
        for channel in stored:
            for plane in channel:
                file.write(plane.tobytes())


@contextmanager
def _stream(path: Path, *, packed: bool) -> Iterator[Any]:
    with path.open("wb") as file:
        if packed:
            with gzip.GzipFile(
                "", "wb", 1, file, mtime=0
            ) as stream:  # no name, no date: the same voxels, the same bytes
                yield stream
        else:
            yield file


def _refuse_other_ending(path: Path) -> None:
    if not path.name.endswith(ENDINGS):
        raise InputError(f"{path} is no name for a NIfTI file", expected=".nii.gz or .nii at its end")


def _placed_as(grid: Grid, like: Path | str | None) -> Any:
    """The header of the file ``like``, if it is a NIfTI file that places its voxels as ``grid`` does."""
    if like is None or not str(like).lower().endswith(ENDINGS):
        return None
    header = read_header(like)
    placed = Grid(_shape(Path(like), header)[:3], header.get_best_affine())
    return header if placed.same_as(grid) else None


def _write(array: Array, volume: Volume, path: Path, placed_as: Any = None) -> None:
    _refuse_other_ending(path)
    content = _image(array, volume.affine, placed_as).to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=5, mtime=0)  # no date: the same voxels give the same bytes
    with whole_file(path) as part:
        part.write_bytes(content)


def _image(array: Array, affine: Affine, placed_as: Any = None) -> Any:
    image = _IMAGE_CLASSES[0](array, affine)
    image.header.set_xyzt_units("mm")
    if placed_as is not None:
        for key in _PLACING:
            image.header[key] = placed_as[key]
        image.header["pixdim"][:4] = placed_as["pixdim"][:4]
        return image
    image.set_sform(affine, code=_SCANNER)
    image.set_qform(affine, code=_SCANNER)
    # A quaternion cannot shear: where it would lie to readers that prefer it, the sform stands alone.
    if not Grid(array.shape[:3], affine).same_as(Grid(array.shape[:3], image.get_qform()), AFFINE_TOLERANCE_MM):
        image.set_qform(None, code=0)
    return image
