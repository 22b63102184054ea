"""nnU-Net's raw layout: a file per channel, ``imagesTr/CASE_0000.nii.gz``, and ``labelsTr/CASE.nii.gz``.

Source: nnU-Net v2, documentation/dataset_format.md. Its dataset.json names channels, labels and the files' ending;
the cases are those whose files are there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvisionllama.data.nifti import ENDINGS, case_name
from medvisionllama.data.task import DESCRIPTION, Case
from medvisionllama.errors import InputError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def is_nnunet_raw(folder: Path, description: Mapping[str, Any]) -> bool:
    """Whether the description leaves the cases to the files, as nnU-Net's does."""
    return "training" not in description and "channel_names" in description and (folder / "imagesTr").is_dir()


def nnunet_cases(folder: Path, description: Mapping[str, Any], channels: int) -> tuple[Case, ...]:
    """The training cases, by name; a label without an image is a case whose image does not exist.

    Raises:
        InputError: The files are of a kind that is not read, or a channel of a case is missing.
    """
    ending = description.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise InputError(
            f"{folder / DESCRIPTION} names files that are not read", got=str(ending), expected=" or ".join(ENDINGS)
        )
    labels = {case_name(path): path for path in _visible(folder / "labelsTr", ending)}
    images = _grouped(folder / "imagesTr", ending, channels)
    cases = [Case(name, files[0], labels.get(name), files[1:]) for name, files in images.items()]
    alone = [
        Case(name, folder / "imagesTr" / f"{name}_0000{ending}", path)
        for name, path in labels.items()
        if name not in images
    ]
    return tuple(sorted([*cases, *alone], key=lambda case: case.name))


def nnunet_unlabelled(folder: Path, description: Mapping[str, Any], channels: int) -> tuple[Case, ...]:
    """The images of ``imagesTs``."""
    ending = description.get("file_ending", ENDINGS[0])
    images = _grouped(folder / "imagesTs", ending, channels)
    return tuple(Case(name, files[0], None, files[1:]) for name, files in images.items())


def _visible(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))


def _grouped(folder: Path, ending: str, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name to its files, channel 0000 first."""
    found: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for path in _visible(folder, ending):
        named = _CHANNEL.fullmatch(case_name(path))
        if named is None:
            raise InputError(
                f"{path} does not say which channel it holds",
                expected=f"a name such as {case_name(path)}_0000{ending}",
                mend="Rename it, or list the cases in dataset.json as the Decathlon does.",
            )
        found[named.group(1)][int(named.group(2))] = path
    for name, files in found.items():
        if sorted(files) != list(range(channels)):
            raise InputError(
                f"{folder} does not hold every channel of {name}",
                got=", ".join(f"{number:04d}" for number in sorted(files)),
                expected=", ".join(f"{number:04d}" for number in range(channels)),
                mend="Add the missing file, or correct channel_names in dataset.json.",
            )
    return {name: tuple(files[number] for number in range(channels)) for name, files in found.items()}
