"""``medvisionllama splits``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, positive
from medvisionllama.errors import InputError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    help_text = "Draw which cases test, train and validate; write them for nnU-Net v2 too."
    parser = add_command(commands, common, "splits", help_text)
    parser.add_argument("dataset", type=Path, help="a data set's folder")
    parser.add_argument("--splits", type=Path, help="splits.json, or nnU-Net's, to take instead of drawing")
    parser.add_argument("--seed", type=int, help="what they are drawn from (default: 0)")
    parser.add_argument("--patient", metavar="PATTERN", help="regular expression that finds the patient in a name")
    parser.add_argument("--out", type=Path, help="splits.json to write")
    parser.add_argument("--nnunet", type=Path, metavar="DIR", help="write nnUNet_raw and nnUNet_preprocessed there")
    parser.add_argument("--number", type=positive, default=500, help="of nnU-Net's data set (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=1.0, help="for nnU-Net: share of the training patients")
    parser.add_argument("--copy", action="store_true", help="for nnU-Net: copy files instead of linking them")
    parser.set_defaults(run=_splits)


def _splits(options: argparse.Namespace) -> int:
    from medvisionllama.data.decathlon import read_task
    from medvisionllama.data.nnunet_splits import write_nnunet
    from medvisionllama.data.splits import make_splits, read_splits, write_splits

    task = read_task(options.dataset)
    names = [case.name for case in task.cases]
    if options.splits:
        if options.seed is not None or options.patient is not None:
            raise InputError("splits are either read or drawn", got="--splits with --seed or --patient")
        splits = read_splits(options.splits)
        splits.verify(names)
    else:
        splits = make_splits(names, seed=options.seed or 0, patient_of=options.patient)
    if options.out:
        if options.out.exists():
            raise InputError(f"{options.out} is there already", mend="Name another file.")
        write_splits(splits, options.out)
        print(options.out)
    if options.nnunet:
        written = write_nnunet(
            task, splits, options.nnunet, options.number, fraction=options.fraction, copy=options.copy
        )
        print(written.raw)
        print(written.splits)
        for note in written.notes:
            print(f"note: {note}")
    sizes = ", ".join(str(len(fold)) for fold in splits.folds)
    print(f"{task.name}: {len(splits.test)} cases test, {len(splits.folds)} folds of {sizes}")
    return DONE
