"""A task and its splits in nnU-Net v2's form, so that nnU-Net trains and is judged on the very same cases.

Sources: nnU-Net v2, documentation/dataset_format.md and manual_data_splits.md. What is written::

    OUT/nnUNet_raw/Dataset004_Hippocampus/dataset.json
                                          imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz    all folds' cases
                                          imagesTs/CASE_0000.nii.gz, labelsTs/CASE.nii.gz    our test part
    OUT/nnUNet_preprocessed/Dataset004_Hippocampus/splits_final.json                         our folds

nnU-Net never looks into ``labelsTs``; they lie there to score by. It wants labels without a gap, and the ignore label
(documentation/ignore_label.md) to be the next number after the classes: where it is another, label maps are written
anew with that number. No prediction ever holds it, so that scores are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvisionllama.data.nifti import read_header, write_label_map, write_volume
from medvisionllama.data.splits import Splits
from medvisionllama.data.task import DESCRIPTION, Case, Task
from medvisionllama.errors import InputError
from medvisionllama.run_folder import write_json
from medvisionllama.whole_file import whole_file

ENDING = ".nii.gz"


@dataclass(frozen=True)
class NnUNetDataset:
    """Where it was written.

    Attributes:
        raw: The raw folder, which our own commands read too.
        splits: ``splits_final.json``.
        notes: What is not as in the task, in sentences.
    """

    raw: Path
    splits: Path
    notes: tuple[str, ...] = ()


def write_nnunet(
    task: Task, splits: Splits, out: Path, number: int, *, fraction: float = 1.0, copy: bool = False
) -> NnUNetDataset:
    """Write a task's raw folder and its splits; the same ones may be written again over themselves.

    Args:
        task: Whose cases are all split.
        splits: Which are test, and which validate in each fold.
        out: Where ``nnUNet_raw`` and ``nnUNet_preprocessed`` go.
        number: The data set's, 1 to 999.
        fraction: Share of each fold's training patients, the same ones that our few-shot trainings see.
        copy: Copy files rather than link them. What has to be taken apart (several channels in one file) is written
            anew in either case.

    Raises:
        InputError: The number is none or another data set's, labels are not consecutive, a label is missing, the
            folder holds cases of another split, or files cannot be written.
    """
    if not 1 <= number <= 999:
        raise InputError("a number of an nnU-Net data set", got=str(number), expected="1 to 999")
    splits.verify([case.name for case in task.cases])
    name = f"Dataset{number:03d}_{_plain(task.name)}"
    raw = out / "nnUNet_raw" / name
    training = [case for fold in splits.folds for case in fold]
    description = _description(task, len(training))
    _refuse_other_names(raw)
    parts = {"Tr": task.named(training), "Ts": task.named(splits.test)}
    _refuse_stale(
        raw, {path for part, cases in parts.items() for case in cases for path in _files(task, case, raw, part)}
    )
    ignore = description["labels"].get("ignore")
    renumbered = {} if ignore == task.ignored else {task.ignored: ignore}
    for part, cases in parts.items():
        for case in cases:
            _write_case(task, case, raw, part, renumbered, copy=copy)
    write_json(raw / DESCRIPTION, description)
    final = out / "nnUNet_preprocessed" / name / "splits_final.json"
    write_json(final, splits_final(splits, fraction))
    notes = [
        f"ignored voxels are {new} in the label maps written, not {old}: nnU-Net wants the number after the classes"
        for old, new in renumbered.items()
    ]
    return NnUNetDataset(raw, final, tuple(notes))


def splits_final(splits: Splits, fraction: float = 1.0) -> list[dict[str, list[str]]]:
    """The folds as nnU-Net reads them: one object a fold."""
    return [
        {"train": list(splits.training(fold, fraction)), "val": list(splits.validation(fold))}
        for fold in range(len(splits.folds))
    ]


def _description(task: Task, training: int) -> dict[str, Any]:
    values = sorted(task.classes)
    if values != list(range(1, len(values) + 1)):
        raise InputError(
            "nnU-Net needs labels without a gap",
            got=", ".join(map(str, values)),
            expected=f"1 to {len(values)}",
            mend="Renumber the label maps and dataset.json.",
        )
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: list(members) for name, members in task.regions.items()}
    labels |= {} if task.regions else {name: value for value, name in task.classes.items()}
    labels |= {"ignore": len(values) + 1} if task.ignored is not None else {}
    regions = {"regions_class_order": list(task.region_values)} if task.regions else {}
    return {
        "channel_names": {str(channel): name for channel, name in enumerate(task.modalities)},
        "labels": labels,
        **regions,
        "numTraining": training,
        "file_ending": ENDING,
    }


def _refuse_other_names(raw: Path) -> None:
    """One number names one data set."""
    number = raw.name.partition("_")[0]
    others = [path.name for path in sorted(raw.parent.glob(f"{number}_*")) if path.name != raw.name]
    if others:
        raise InputError(
            f"{raw.parent} holds a data set of this number", got=", ".join(others), mend="Choose another --number."
        )


def _refuse_stale(raw: Path, wanted: Collection[Path]) -> None:
    """What another split left there, nnU-Net would train on."""
    there = {path for folder in ("images", "labels") for path in raw.glob(f"{folder}T[rs]/*")}
    if stale := sorted(path.relative_to(raw).as_posix() for path in there - set(wanted)):
        raise InputError(
            f"{raw} holds {len(stale)} files that are not of this split",
            got=", ".join(stale[:3]) + (" and more" if len(stale) > 3 else ""),
            mend="Delete that folder, or write into another one.",
        )


def _files(task: Task, case: Case, raw: Path, part: str) -> tuple[Path, ...]:
    """A case's channels, and its label map."""
    images = [raw / f"images{part}" / f"{case.name}_{channel:04d}{ENDING}" for channel in range(task.channels)]
    return (*images, raw / f"labels{part}" / f"{case.name}{ENDING}")


def _write_case(
    task: Task, case: Case, raw: Path, part: str, renumbered: Mapping[int | None, int], *, copy: bool
) -> None:
    *targets, label = _files(task, case, raw, part)
    files = (case.image, *case.more_channels)
    if len(files) == len(targets) and all(_one_channel(path) for path in files):
        for path, target in zip(files, targets, strict=True):
            _put(path, target, copy=copy)
    else:
        volume = case.read_image()
        for channel, target in enumerate(targets):
            array = volume.array if volume.array.ndim == 3 else volume.array[channel]
            write_volume(volume.with_array(array), target)
    if case.label is None:
        raise InputError(f"the case {case.name} has no label", mend="Add one, or leave the case out.")
    if case.label.name.endswith(ENDING) and not renumbered:
        _put(case.label, label, copy=copy)
        return
    volume = case.read_label()
    array = volume.array.copy()
    for old, new in renumbered.items():
        array[volume.array == old] = new
    write_label_map(volume.with_array(array), label, like=case.label)


def _one_channel(path: Path) -> bool:
    """Whether a file can be taken as it is; a fourth axis of one entry would be read as a time series."""
    return path.name.endswith(ENDING) and len(read_header(path).get_data_shape()) == 3


def _put(path: Path, target: Path, *, copy: bool) -> None:
    """Copy or link a file.

    Raises:
        InputError: It is not there, or the target cannot be written.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist", mend="Restore it, or leave its case out.")
    with whole_file(target) as part:
        if copy:
            shutil.copyfile(path, part)
        else:
            part.symlink_to(path.resolve())


def _plain(name: str) -> str:
    """nnU-Net takes what follows the number as a name: letters, digits and underscores alone are safe everywhere."""
    return "".join(letter if letter.isalnum() else "_" for letter in name) or "task"
