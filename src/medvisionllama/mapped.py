"""Arrays that lie in nameless files, mapped into memory: the system may put them out of it and bring them back."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from medvisionllama.errors import InputError


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
