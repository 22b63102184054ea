"""``medvisionllama predict``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import above_zero, add_command, add_machine, add_places, machine_of_run, teller_of
from medvisionllama.commands.printing import tell_scores
from medvisionllama.errors import InputError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "predict", "Segment files, or the validation or test part of a run's split.")
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN [RUN ...] [INPUT]",
        help="run folders (several are ensembled), then a NIfTI file, a folder of them, or a DICOM series",
    )
    parser.add_argument("--part", choices=("validation", "test"), help="segment and score this part of the run's split")
    parser.add_argument("--out", type=Path, help="folder for the label maps")
    parser.add_argument(
        "--dicom-seg", action="store_true", help="write a DICOM segmentation beside a series' label map"
    )
    parser.add_argument(
        "--memory-gb",
        type=above_zero,
        default=4.0,
        help="for passing results, image and networks not counted; what does not fit lies on disk "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--mirror", action="store_true", help="average over mirrored windows too, where training mirrored"
    )
    parser.add_argument(
        "--no-cleanup",
        action="store_true",
        help="keep all components, also where the largest alone was better on validation",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="write the probabilities of all classes too, in the input's grid"
    )
    add_places(parser)
    parser.add_argument("--json", action="store_true")
    add_machine(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from medvisionllama.loading import Inference
    from medvisionllama.run_folder import RunFolder, to_json
    from medvisionllama.score_part import predict_part
    from medvisionllama.segment import predict_files

    machine = machine_of_run(options)
    inference = Inference(options.memory_gb, options.mirror, not options.no_cleanup, options.probabilities)
    if options.part:
        if options.out or options.dicom_seg:
            raise InputError("--part writes into the run folder", mend="Leave out --out and --dicom-seg.")
        runs = [RunFolder(path) for path in options.paths]
        if options.part == "validation":  # each fold has its own; on the test part they are one ensemble
            runs = [fold for run in runs for fold in run.folds()]
        summaries = {
            str(run.path): predict_part(run, options.part, machine, inference=inference, listener=teller_of())
            for run in runs
        }
        tell_scores(summaries, options.part, options.json)
        return DONE
    if len(options.paths) < 2 or options.out is None:
        raise InputError(
            "predict needs runs, an input and --out, or a run and --part",
            mend="Try `medvisionllama predict RUN INPUT --out DIR`.",
        )
    *runs, source = options.paths
    written = predict_files(
        runs, source, options.out, machine, dicom_seg=options.dicom_seg, inference=inference, listener=teller_of()
    )
    print(
        to_json({"written": [str(path) for path in written]})
        if options.json
        else "\n".join(str(path) for path in written)
    )
    return DONE
