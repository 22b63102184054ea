"""``medvisionllama reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE, FAULTS_FOUND
from medvisionllama.commands.options import add_command, add_machine, positive, teller_of


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "reproduce", "Measure a table or figure of the papers, or one of ours.")
    parser.add_argument("table", help="such as v2-T2 or does-pretraining-matter; an unknown name lists them")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, metavar="DATASET", help="the tasks' folders")
    parser.add_argument("--out", type=Path, help="folder for small results (default: results/TABLE)")
    parser.add_argument("--work", type=Path, help="folder for run folders, which may be lost (default: OUT/runs)")
    parser.add_argument("--splits", type=Path, nargs="+", default=[], metavar="FILE", help="one for each of --tasks")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--fractions", type=float, nargs="+", metavar="SHARE", help="of the training patients")
    parser.add_argument("--steps", type=positive, help="of every cell")
    parser.add_argument("--block", nargs="+", metavar="[LABEL=]NAME or FOLDER", help="language models")
    parser.add_argument("--networks", nargs="+", help="of the study: those to put middles in")
    parser.add_argument("--middles", nargs="+", help="of the study: what stands between encoder and decoder")
    parser.add_argument("--lora", nargs="+", help="of the study: both (on), none (off)")
    parser.add_argument("--limit", type=positive, help="measure at most so many cells now")
    parser.add_argument("--only", metavar="TEXT", help="measure only cells whose name holds this")
    parser.add_argument("--processes", type=positive, default=1)
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and do nothing")
    add_machine(parser)
    parser.set_defaults(run=_reproduce)


def _reproduce(options: argparse.Namespace) -> int:
    from medvisionllama.data.decathlon import read_task
    from medvisionllama.data.splits import make_splits, read_splits
    from medvisionllama.experiments.cells import splits_digest
    from medvisionllama.experiments.launchers import launch_local
    from medvisionllama.experiments.pretraining import study_cells
    from medvisionllama.experiments.suite import Work
    from medvisionllama.experiments.tables import decathlon_name

    datasets, splits, tasks = {}, {}, []
    for index, folder in enumerate(options.tasks):
        task = read_task(folder)
        names = [case.name for case in task.cases]
        of_task = read_splits(options.splits[index]) if options.splits else make_splits(names)
        of_task.verify(names)
        name = decathlon_name(task.name)
        datasets[name], splits[splits_digest(of_task)] = folder, of_task
        tasks.append((name, splits_digest(of_task)))
    asked = {"networks": options.networks, "middles": options.middles, "loras": options.lora}
    asked |= {"fractions": options.fractions, "seeds": options.seeds, "steps": options.steps}
    asked |= {"blocks": [_labelled(text) for text in options.block] if options.block else None}
    cells = study_cells(tasks, **{name: value for name, value in asked.items() if value is not None})
    cells = tuple(cell for cell in cells if not options.only or options.only in cell.name)[: options.limit]
    out = options.out or Path("results") / options.table
    work = Work(
        cells,
        datasets,
        splits,
        out / "rows",
        options.work or out / "runs",
        options.device,
        options.threads,
        options.cache,
        options.offline,
    )
    if options.dry_run:
        print("\n".join(cell.name for cell in cells))
        return DONE
    walked = launch_local(work, options.processes, teller_of())
    return FAULTS_FOUND if walked.faults else DONE


def _labelled(text: str) -> tuple[str, str]:
    label, _, source = text.rpartition("=")
    return label or source, source
