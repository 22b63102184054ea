"""Arrays that lie in files, mapped into memory: the system may put them out of it and bring them back."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from medvisionllama.errors import InputError


@dataclass(frozen=True)
class StoredArray:
    """An array in a file of NumPy's, in C's order, which is open only while somebody looks at it.

    A map that is kept keeps a file open, and a data set has more cases than a system lets a process open.

    Attributes:
        path: The file.
        shape: Its size.
        dtype: Its number type.
        offset: Bytes before its first number.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def at(cls, path: Path) -> StoredArray:
        """What lies in a file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is no such file, shorter than it says, or in Fortran's order.
        """
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not mapped.flags.c_contiguous:
            raise ValueError("the numbers do not lie in C's order")
        return cls(path, mapped.shape, mapped.dtype, mapped.offset)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """The numbers: ``np.asarray`` maps them and reads nothing, ``np.array`` reads them."""
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # Half the time that np.memmap takes, several times for every batch.
            found: np.ndarray[Any, Any] = np.ndarray(self.shape, self.dtype, mapped, self.offset)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.path} is gone or was changed", got=str(error), mend="Start again: it is made anew."
            ) from error
        return np.array(found, dtype) if copy or (dtype is not None and np.dtype(dtype) != self.dtype) else found

    def __getitem__(self, place: Any) -> np.ndarray[Any, Any]:
        """A part of it, still mapped where NumPy can show it so."""
        part: np.ndarray[Any, Any] = np.asarray(self)[place]
        return part


def mapped_zeros(shape: Sequence[int], dtype: DTypeLike, scratch: Path | None) -> np.memmap[Any, Any]:
    """An array of zeros in a file that has no name and goes with the array.

    Args:
        shape: Its size.
        dtype: Its number type.
        scratch: The file's folder, made where missing; None for the system's own for passing files.

    Raises:
        InputError: The folder has no room, or cannot be written.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    reserves = hasattr(os, "posix_fallocate")  # at once, since a disk that is full later kills who writes to a map
    try:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as file:
            if reserves:
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+" if reserves else "w+", shape=tuple(shape))
    except OSError as error:
        raise InputError(
            f"no room for {size / 1e9:.1f} GB of passing results in {scratch or tempfile.gettempdir()}",
            got=error.strerror or str(error),
            mend="Free some, name another folder by --cache, or allow more memory by --memory-gb.",
        ) from error
