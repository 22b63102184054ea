"""``medvisionllama train``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import (
    above_zero,
    add_command,
    add_machine,
    add_memory,
    machine_of,
    positive,
    teller_of,
    usual_processes,
    whole,
)
from medvisionllama.commands.printing import tell_scores
from medvisionllama.errors import InputError

if TYPE_CHECKING:
    from medvisionllama.machine import Machine
    from medvisionllama.recorders import Recording
    from medvisionllama.run_folder import RunFolder


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "train", "Train a network and score its validation part.")
    parser.epilog = "Any setting: --model.depth 4, --model.middle.rank 4, --recipe.learning_rate 1e-3 ..."
    parser.add_argument("dataset", type=Path, help="a Decathlon task's folder")
    parser.add_argument("--run", dest="folder", type=Path, required=True, help="run folder to write")
    parser.add_argument("--model", default="medvisionllama-u", help="see `models list` (default: %(default)s)")
    parser.add_argument("--block", help="language block: a name of `blocks list`, a hub id, or a folder")
    parser.add_argument("--protocol", choices=("native", "paper"), default="native")
    parser.add_argument("--grid", type=positive, default=128, help="edge of the paper protocol's grid")
    parser.add_argument(
        "--recipe", help="native, native-long, nnunet, paper-v1, paper-v2, or a YAML file (default: by protocol)"
    )
    parser.add_argument("--splits", type=Path, help="splits.json, or nnU-Net's (default: drawn with seed 0)")
    parser.add_argument(
        "--patient", metavar="PATTERN", help="regular expression that finds the patient in a case's name"
    )
    parser.add_argument("--fold", default="0", help="which part validates: 0 to 4, or all (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training patients (few-shot)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance-mm", type=float, help="for NSD (default: the Decathlon's for its tasks)")
    parser.add_argument("--init-from", type=Path, metavar="RUN", help="start from another run's weights where they fit")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive)
    length.add_argument("--epochs", type=positive)
    length.add_argument("--max-minutes", type=above_zero)
    parser.add_argument(
        "--log",
        action="append",
        choices=("tensorboard", "wandb"),
        default=[],
        help="keep the curves there too; wandb stays offline (log.jsonl is always written; may be given twice)",
    )
    add_memory(parser)
    parser.add_argument(
        "--processes", type=positive, default=usual_processes(), help="that prepare cases (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run, by its own settings")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    add_machine(parser)
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from medvisionllama.processes import started_by_torchrun

    processes = started_by_torchrun(options.device)
    if processes.device is not None:
        options.device = str(processes.device)
    try:
        summaries = _train_folds(options, replace(machine_of(options), processes=processes, workers=options.processes))
    finally:
        processes.part()
    if processes.rank == 0:
        tell_scores(summaries, "validation", options.json)
    return DONE


def _train_folds(options: argparse.Namespace, machine: Machine) -> dict[str, dict[str, Any]]:
    """Each run's summary by its folder's name."""
    from medvisionllama.config import make_experiment
    from medvisionllama.data.decathlon import read_task
    from medvisionllama.data.splits import make_splits, read_splits
    from medvisionllama.run import train_run
    from medvisionllama.run_setup import like_sibling

    if options.splits and options.patient is not None:
        raise InputError("splits are either read or drawn", got="--splits with --patient")
    names = [case.name for case in read_task(options.dataset).cases]
    splits = read_splits(options.splits) if options.splits else make_splits(names, patient_of=options.patient)
    named = _named_settings(options)
    asked_splits = bool(options.splits or options.patient)
    sibling = _begun(options.folder) if options.resume and options.fold == "all" else None
    if sibling is not None and not asked_splits:
        splits = read_splits(sibling.splits)
    folds = range(len(splits.folds)) if options.fold == "all" else [whole(options.fold, "--fold")]
    summaries: dict[str, dict[str, Any]] = {}
    for fold in folds:
        folder = options.folder / f"fold_{fold}" if options.fold == "all" else options.folder
        experiment = make_experiment(
            options.dataset,
            model=options.model,
            block=options.block,
            recipe=options.recipe,
            protocol=options.protocol,
            grid=options.grid,
            fold=fold,
            fraction=options.fraction,
            seed=options.seed,
            tolerance_mm=options.tolerance_mm,
            init_from=options.init_from,
            steps=options.steps,
            epochs=options.epochs,
            overrides=options.dotted,
        )
        listener = _listener(options, folder, machine)
        fresh = not (options.resume and (folder / "config.yaml").exists())
        try:
            if sibling is not None and fresh:
                experiment = like_sibling(sibling, experiment, named, options.memory_gb)
            summaries[folder.name] = train_run(
                experiment,
                folder,
                machine,
                splits=splits if fresh or asked_splits else None,
                max_minutes=options.max_minutes,
                memory_gb=options.memory_gb,
                resume=options.resume,
                named=named,
                command=options.typed,
                listener=listener,
            )
        finally:
            listener.close()
    return summaries


def _begun(folder: Path) -> RunFolder | None:
    """The first fold that an interrupted command began: those it did not come to are to be like it."""
    from medvisionllama.run_folder import RunFolder

    return next((run for run in RunFolder(folder).folds() if run.config.exists()), None)


def _listener(options: argparse.Namespace, folder: Path, machine: Machine) -> Recording:
    """Who is told of one run's progress: of several processes the first alone tells and records."""
    from medvisionllama.listener import Silent
    from medvisionllama.recorders import Recording, open_recorder

    if machine.processes.rank:
        return Recording(Silent(), [])
    names = sorted(set(options.log))
    return Recording(
        teller_of(folder.name if options.fold == "all" else ""), [open_recorder(name, folder) for name in names]
    )


# The setting of an experiment that each option of `train` names.
SETTINGS = {
    "--model": "model_name",
    "--block": "model.middle.block.source",
    "--protocol": "protocol",
    "--grid": "grid",
    "--recipe": "recipe_name",
    "--fold": "fold",
    "--fraction": "fraction",
    "--seed": "seed",
    "--tolerance-mm": "tolerance_mm",
    "--init-from": "init_from",
    "--steps": "recipe.steps",
    "--epochs": "recipe.epochs",
}


def _named_settings(options: argparse.Namespace) -> list[str]:
    """Which settings were typed: a resumed run must agree with these, and keeps its own for the others."""
    typed = [word.split("=")[0] for word in options.typed if word.startswith("--")]
    dotted = [word.split("=")[0].removeprefix("--") for word in options.dotted if word.startswith("--")]
    return ["dataset", *(SETTINGS[word] for word in typed if word in SETTINGS), *dotted]
