"""``medvisionllama reproduce``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvisionllama.commands import DONE, FAULTS_FOUND, INTERRUPTED
from medvisionllama.commands.options import add_command, add_machine, positive, teller_of
from medvisionllama.errors import InputError

if TYPE_CHECKING:
    from medvisionllama.experiments.request import Request


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "reproduce", "Measure a table or figure of the papers, or one of ours.")
    parser.epilog = "Finished cells are skipped, interrupted ones go on; several launches at once share the work."
    parser.add_argument("table", help="such as v2-T2, v2-F4 or does-pretraining-matter; an unknown name lists them")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, metavar="DATASET", help="the tasks' folders")
    parser.add_argument("--out", type=Path, default=Path("results"), help="small results (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="run folders, which may be lost (default: OUT/runs)")
    parser.add_argument("--splits", type=Path, nargs="+", default=[], metavar="FILE", help="one for each of --tasks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="SEED")
    parser.add_argument("--folds", type=int, nargs="+", default=[], metavar="FOLD", help="of the papers' tables")
    parser.add_argument("--fractions", type=float, nargs="+", default=[], metavar="SHARE", help="of the training part")
    parser.add_argument("--steps", type=positive, help="of every cell (default: as the recipe has it)")
    parser.add_argument("--grid", type=positive, help="edge of the papers' grid (default: 128)")
    parser.add_argument("--recipe", default="", help="for the papers' tables (default: their version's)")
    parser.add_argument(
        "--block",
        nargs="+",
        default=[],
        metavar="[LABEL=]SOURCE",
        help="language models: a name, hub id or folder; of the papers' tables LABEL says in whose place, of the study "
        "it is any name for them (default: the folder's, or the hub id's)",
    )
    parser.add_argument("--networks", nargs="+", default=[], help="of the study: those to put middles in")
    parser.add_argument("--middles", nargs="+", default=[], help="of the study: what stands in the middle")
    parser.add_argument("--lora", nargs="+", default=[], help="of the study: both (on), none (off)")
    parser.add_argument(
        "--predictions", nargs="+", default=[], metavar="NAME=DIR", help="another program's label maps, as a row"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only cells whose name holds this")
    parser.add_argument(
        "--limit",
        type=int,
        help="measure at most so many more cells; 0 writes the table alone",
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm", "slurm-local", "slurm-script", "ray"),
        default="local",
        help="slurm: submitit; slurm-local: submitit without a cluster; slurm-script: writes OUT/TABLE.sbatch",
    )
    parser.add_argument("--processes", type=positive, default=1, help="workers: processes or jobs")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # set by the script for sbatch
    parser.add_argument("--workers", type=positive, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=positive, default=1440, help="of a cluster's job (default: %(default)s)")
    parser.add_argument("--memory-gb", type=positive, default=16, help="of a cluster's job (default: %(default)s)")
    parser.add_argument("--partition", default="", help="of the cluster")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do and what it takes")
    add_machine(parser)
    parser.set_defaults(run=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    from medvisionllama.experiments.launchers import Job, write_slurm_script
    from medvisionllama.experiments.reproduction import Reproduction

    reproduction = Reproduction(_request(options), may_lack_tasks=options.dry_run)
    if options.dry_run:
        print("\n".join(reproduction.forecast().lines()))
        return DONE
    job = Job(options.minutes, options.memory_gb, options.partition)
    if options.launcher == "slurm-script":
        script = write_slurm_script(
            _worker_command(options.typed[1:]),
            options.out / f"{options.table}.sbatch",
            options.processes,
            job,
            threads=options.threads or 1,
            gpu=options.device != "cpu",
        )
        print(script)
        return DONE
    share = (options.worker, options.workers or 1) if options.worker is not None else None
    if share is not None and not 0 <= share[0] < share[1]:
        raise InputError(
            f"--worker {share[0]} of --workers {share[1]}", expected="a number from 0 on, below that of the workers"
        )
    try:
        walked = reproduction.measure(options.launcher, options.processes, job=job, listener=teller_of(), share=share)
    except KeyboardInterrupt:
        print("medvisionllama: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    for name, fault in walked.faults.items():
        print(f"failed  {name}: {fault}")
    if held := reproduction.held(walked):
        print(f"{held} {'cell' if held == 1 else 'cells'} held by another: the matrix is not finished")
    for path in reproduction.write():
        print(path)
    return FAULTS_FOUND if walked.faults or walked.lost else DONE


def _request(options: argparse.Namespace) -> Request:
    from medvisionllama.experiments.request import Request

    return Request(
        table=options.table,
        tasks=tuple(options.tasks),
        out=options.out,
        work=options.work or options.out / "runs",
        splits=tuple(options.splits),
        seeds=tuple(options.seeds),
        fractions=tuple(options.fractions),
        folds=tuple(options.folds),
        steps=options.steps,
        grid=options.grid,
        recipe=options.recipe,
        blocks=tuple(_labelled(text) for text in options.block),
        networks=tuple(options.networks),
        middles=tuple(options.middles),
        loras=tuple(options.lora),
        predictions=tuple(_named_folder(text) for text in options.predictions),
        only=options.only,
        limit=options.limit,
        device=options.device,
        threads=options.threads,
        cache=options.cache,
        offline=options.offline,
    )


def _labelled(text: str) -> tuple[str, str]:
    label, _, source = text.partition("=") if "=" in text else (text, "", text)
    return label, source


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise InputError(f"--predictions {text}", expected="NAME=FOLDER")
    return name, Path(folder)


def _worker_command(typed: list[str]) -> list[str]:
    """The command as typed, but measured here and by one process."""
    kept, skip = [], False
    for word in typed:
        if skip:
            skip = False
        elif word in ("--launcher", "--processes", "--minutes", "--memory-gb", "--partition"):
            skip = True
        elif not word.startswith(("--launcher=", "--processes=", "--minutes=", "--memory-gb=", "--partition=")):
            kept.append(word)
    return kept
