"""A task and its splits in nnU-Net v2's form, so that nnU-Net trains and is judged on the very same cases.

Sources: nnU-Net v2, documentation/dataset_format.md and manual_data_splits.md. What is written::

    OUT/nnUNet_raw/Dataset004_Hippocampus/dataset.json
                                          imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz    all folds' cases
                                          imagesTs/CASE_0000.nii.gz, labelsTs/CASE.nii.gz    our test part
    OUT/nnUNet_preprocessed/Dataset004_Hippocampus/splits_final.json                         our folds

nnU-Net never looks into ``labelsTs``; they lie there to score by.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvisionllama.data.nifti import read_header, write_volume
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
    """

    raw: Path
    splits: Path


def write_nnunet(
    task: Task, splits: Splits, out: Path, number: int, *, fraction: float = 1.0, copy: bool = False
) -> NnUNetDataset:
    """Write a task's raw folder and its splits.

    Args:
        task: Whose cases are all split.
        splits: Which are test, and which validate in each fold.
        out: Where ``nnUNet_raw`` and ``nnUNet_preprocessed`` go.
        number: The data set's, 1 to 999.
        fraction: Share of each fold's training patients, the same ones that our few-shot trainings see.
        copy: Copy files rather than link them. What has to be taken apart (several channels in one file) is written
            anew in either case.

    Raises:
        InputError: The number is none, labels are not consecutive, a label is missing, or files cannot be written.
    """
    if not 1 <= number <= 999:
        raise InputError("a number of an nnU-Net data set", got=str(number), expected="1 to 999")
    splits.verify([case.name for case in task.cases])
    name = f"Dataset{number:03d}_{_plain(task.name)}"
    raw = out / "nnUNet_raw" / name
    training = [case for fold in splits.folds for case in fold]
    description = _description(task, len(training))
    for part, names in (("Tr", training), ("Ts", splits.test)):
        for case in task.named(names):
            _write_case(task, case, raw, part, copy=copy)
    write_json(raw / DESCRIPTION, description)
    final = out / "nnUNet_preprocessed" / name / "splits_final.json"
    write_json(final, splits_final(splits, fraction))
    return NnUNetDataset(raw, final)


def splits_final(splits: Splits, fraction: float = 1.0) -> list[dict[str, list[str]]]:
    """The folds as nnU-Net reads them: one object a fold."""
    return [
        {"train": list(splits.training(fold, fraction)), "val": list(splits.validation(fold))}
        for fold in range(len(splits.folds))
    ]


def read_splits_final(content: Sequence[dict[str, Sequence[str]]], test: Sequence[str] = ()) -> Splits:
    """Splits from nnU-Net's form, which knows no test part and no patients: every case is a patient of its own.

    Raises:
        InputError: Two folds validate the same case.
    """
    folds = tuple(tuple(sorted(fold["val"])) for fold in content)
    cases = [*test, *(case for fold in folds for case in fold)]
    if len(set(cases)) < len(cases):
        raise InputError("nnU-Net's splits validate a case twice, which no folds do", mend="Make them anew.")
    return Splits(0, tuple(test), folds, {case: case for case in cases})


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
    labels |= {"ignore": task.ignored} if task.ignored is not None else {}
    regions = {"regions_class_order": list(task.region_values)} if task.regions else {}
    return {
        "channel_names": {str(channel): name for channel, name in enumerate(task.modalities)},
        "labels": labels,
        **regions,
        "numTraining": training,
        "file_ending": ENDING,
    }


def _write_case(task: Task, case: Case, raw: Path, part: str, *, copy: bool) -> None:
    targets = [raw / f"images{part}" / f"{case.name}_{channel:04d}{ENDING}" for channel in range(task.channels)]
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
    label = raw / f"labels{part}" / f"{case.name}{ENDING}"
    if case.label.name.endswith(ENDING):
        _put(case.label, label, copy=copy)
    else:
        write_volume(case.read_label(), label)


def _one_channel(path: Path) -> bool:
    """Whether a file can be taken as it is; a fourth axis of one entry would be read as a time series."""
    return path.name.endswith(ENDING) and len(read_header(path).get_data_shape()) == 3


def _put(path: Path, target: Path, *, copy: bool) -> None:
    with whole_file(target) as part:
        if copy:
            shutil.copyfile(path, part)
        else:
            part.symlink_to(path.resolve())


def _plain(name: str) -> str:
    """nnU-Net takes what follows the number as a name: letters, digits and underscores alone are safe everywhere."""
    return "".join(letter if letter.isalnum() else "_" for letter in name) or "task"
