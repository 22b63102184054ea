"""Two folders of files with the same names, and nothing said of them: ``images/`` and ``labels/``.

What dataset.json would say is looked up: the classes are the values that occur, the channels those of the first
image, none of them CT. A dataset.json gives them names and spares the looking.

``imagesTr`` without a dataset.json is not taken for such a folder: there the description has been lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvisionllama.data.nifti import case_name, nifti_files, read_grid, read_label_map
from medvisionllama.data.task import BACKGROUND, Case, Task
from medvisionllama.errors import InputError

FOLDERS = (("images", "labels"), ("images", "masks"))


def folders_of(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and labels, where there are such."""
    for images, labels in FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    return None


def read_plain_folders(folder: Path, images: Path, labels: Path) -> Task:
    """The task that two folders make; files belong together by name.

    An image without a label is a case without one; a label without an image is a case whose image does not exist.
    Label maps that cannot be read are passed over here: reading the case tells.

    Raises:
        InputError: There is no image at all, or the first cannot be read.
    """
    found = {case_name(path): path for path in nifti_files(images)}
    labelled = {case_name(path): path for path in nifti_files(labels)}
    if not found:
        raise InputError(f"{images} holds no NIfTI file", mend="Put images there, named as their labels.")
    cases = tuple(
        Case(name, found.get(name) or images / labelled[name].name, labelled.get(name))
        for name in sorted({*found, *labelled})
    )
    _, channels = read_grid(next(iter(found.values())))
    return Task(
        name=folder.resolve().name,
        folder=folder,
        modalities=tuple(f"channel {number}" for number in range(channels)),
        classes={value: str(value) for value in _values(list(labelled.values()))},
        cases=cases,
    )


def _values(paths: Sequence[Path]) -> list[int]:
    found: set[int] = set()
    for path in paths:
        try:
            found.update(int(value) for value in np.unique(read_label_map(path).array))
        except InputError:
            continue
    return sorted(value for value in found if value > BACKGROUND)
