"""A data set's folder to a Task and its Cases, by the Medical Segmentation Decathlon's ``dataset.json``.

Source: Antonelli et al., The Medical Segmentation Decathlon, Nat. Commun. 13:4128 (2022). A task is a folder with
``dataset.json``, ``imagesTr/``, ``labelsTr/`` and ``imagesTs/``; image and label of a case share their file name.
nnU-Net's raw layout and plain folders of images and labels give the same Task (:mod:`.nnunet_raw`,
:mod:`.plain_folders`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvisionllama.data.labels import misread, read_labels, whole_number
from medvisionllama.data.nifti import case_name
from medvisionllama.data.nnunet_raw import is_nnunet_raw, nnunet_cases, nnunet_unlabelled
from medvisionllama.data.plain_folders import folders_of, read_plain_folders
from medvisionllama.data.task import DESCRIPTION, Case, Task
from medvisionllama.errors import InputError

__all__ = ["DESCRIPTION", "Case", "Task", "parse_task", "read_description", "read_task"]

_LAYOUT = "Name the folder of a Decathlon task: dataset.json beside imagesTr and labelsTr."


def read_task(folder: Path | str) -> Task:
    """Read a task that can be trained on: every case of ``cases`` has a label path and a name of its own.

    The files themselves are not opened; :func:`medvisionllama.data.check.check_task` does that.

    Raises:
        InputError: There is no folder or dataset.json, it is not understood, or a case lacks a label or a name of
            its own.
    """
    task = parse_task(folder)
    path = task.folder / DESCRIPTION
    where = path if path.exists() else task.folder
    without = [case.name for case in task.cases if case.label is None]
    if without:
        raise InputError(f"{where} names no label for {_some(without)}", mend="Add the label or remove the case.")
    twice = [name for name, count in Counter(case.name for case in task.cases).items() if count > 1]
    if twice:
        raise InputError(f"{where} lists {_some(twice)} more than once", mend="Give every case a file name of its own.")
    return task


def parse_task(folder: Path | str) -> Task:
    """What the data set says of itself, taken as it is: a case may lack a label or share its name with another.

    Raises:
        InputError: There is no folder or dataset.json, or it is not understood.
    """
    folder = Path(folder)
    pair = folders_of(folder)
    if pair and not (folder / DESCRIPTION).exists():
        return read_plain_folders(folder, *pair)
    description = read_description(folder)
    modalities = _modalities(folder, description)
    if is_nnunet_raw(folder, description):
        cases = nnunet_cases(folder, description, len(modalities))
        unlabelled = nnunet_unlabelled(folder, description, len(modalities))
    else:
        cases = _cases(folder, description, "training")
        unlabelled = tuple(replace(case, label=None) for case in _cases(folder, description, "test"))
    name = str(description.get("name") or folder.resolve().name)
    labels = read_labels(folder, description)
    return Task(
        name,
        folder,
        modalities,
        labels.classes,
        cases,
        unlabelled,
        labels.regions,
        labels.region_values,
        labels.ignored,
        labels.mirroring,
    )


def read_description(folder: Path) -> dict[str, Any]:
    """The object in ``dataset.json``.

    Raises:
        InputError: There is no such folder or file, or it holds no JSON object.
    """
    path = folder / DESCRIPTION
    if not folder.exists():
        raise InputError(f"{folder} does not exist", mend=_LAYOUT)
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a data set's folder", mend=_LAYOUT)
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        empty = not any(folder.iterdir())
        raise InputError(f"{folder} {'is empty' if empty else f'holds no {DESCRIPTION}'}", mend=_LAYOUT) from error
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON", got=str(error), mend="Restore the file or mend that place.") from error
    if not isinstance(description, dict):
        raise misread(path, "one JSON object", description)
    return description


def _modalities(folder: Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    path = folder / DESCRIPTION
    named = description.get("modality", description.get("channel_names"))
    if isinstance(named, list):
        named = dict(enumerate(named))
    if not isinstance(named, dict) or not named:
        raise misread(path, '"modality", such as {"0": "MRI"}', named)
    numbers = {whole_number(path, number): str(name) for number, name in named.items()}
    if sorted(numbers) != list(range(len(numbers))):
        raise misread(path, "modalities numbered from 0 without a gap", sorted(numbers))
    return tuple(numbers[number] for number in sorted(numbers))


def _cases(folder: Path, description: Mapping[str, Any], part: str) -> tuple[Case, ...]:
    path = folder / DESCRIPTION
    entries = description.get(part, [])
    if not isinstance(entries, list):
        raise misread(path, f'"{part}" to be a list', entries)
    cases = (_case(folder, entry) for entry in entries)
    # macOS leaves ._ companions beside every file it packs; the Decathlon's archives hold them.
    return tuple(case for case in cases if not case.image.name.startswith("._"))


def _case(folder: Path, entry: object) -> Case:
    image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
    if not isinstance(image, str) or not isinstance(label, str | None) or not image or label == "":
        expected = '{"image": "./imagesTr/NAME.nii.gz", "label": "./labelsTr/NAME.nii.gz"} for every case'
        raise misread(folder / DESCRIPTION, expected, entry)
    return Case(case_name(image), folder / image, None if label is None else folder / label)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
