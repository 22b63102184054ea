"""``medvisionllama plan``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, add_memory, positive


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "plan", "Plan a task from its training part.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="plan.json to write")
    parser.add_argument("--splits", type=Path, help="splits.json, or nnU-Net's (default: drawn with seed 0)")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--protocol", choices=("native", "paper"), default="native")
    parser.add_argument("--grid", type=positive, default=128, help="edge of the paper protocol's grid")
    parser.add_argument("--model", default="medvisionllama-u", help="whose memory is estimated (default: %(default)s)")
    parser.add_argument("--recipe", help="whose batch and precision count (default: by protocol)")
    add_memory(parser)
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from medvisionllama.config import make_experiment
    from medvisionllama.data.dataset import refuse_unusable
    from medvisionllama.data.decathlon import read_task
    from medvisionllama.data.plan import read_plan, write_plan
    from medvisionllama.data.planning import make_plan
    from medvisionllama.data.splits import make_splits, read_splits

    task = read_task(options.dataset)
    splits = read_splits(options.splits) if options.splits else make_splits([case.name for case in task.cases])
    splits.verify([case.name for case in task.cases])
    refuse_unusable(task.cases)
    if options.out.exists():
        read_plan(options.out)  # what is there is replaced only if it is a plan
    cases = [task.case(name) for name in splits.training(options.fold)]
    plan = make_plan(task, cases, protocol=options.protocol, grid=options.grid)
    experiment = make_experiment(
        options.dataset, model=options.model, recipe=options.recipe, protocol=options.protocol, grid=options.grid
    )
    if options.memory_gb is not None:
        plan = experiment.within(options.memory_gb, plan)
    fitted = experiment.fitted_to(plan)
    write_plan(plan, options.out)
    print(f"{plan.task}: {plan.training_cases} training cases, window {plan.window}, spacing {plan.spacing_mm} mm")
    print(plan.numbered_mirroring)
    batch, about = fitted.recipe.batch_size, fitted.memory_gb(plan.window)
    print(f"{options.model}: batches of {batch}, about {about:.2g} GB to train")
    return DONE
