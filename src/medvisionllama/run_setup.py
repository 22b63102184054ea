"""What a run is to do, decided before anything is computed: a new one, or one that was begun and goes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from medvisionllama.config import Experiment, read_experiment, refuse_other
from medvisionllama.data.dataset import refuse_unusable
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.plan import Plan, read_plan
from medvisionllama.data.planning import make_plan
from medvisionllama.data.splits import Splits, make_splits, read_splits
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.machine import Machine
from medvisionllama.run_folder import RunFolder, read_json


@dataclass(frozen=True)
class Setup:
    """What must be known before anything is computed.

    Attributes:
        experiment: What is done, fitted to the plan.
        task: On which data.
        splits: Which cases train, validate and test.
        plan: How they are prepared.
        begun: Whether the folder holds a run that goes on.
    """

    experiment: Experiment
    task: Task
    splits: Splits
    plan: Plan
    begun: bool


@dataclass(frozen=True)
class Memory:
    """What is planned for: memory of each process's device, if any, and whether the recipe's batch stays."""

    gb: float | None
    processes: int
    own_batch: bool


def planned(experiment: Experiment | None, run: RunFolder, splits: Splits | None, memory: Memory) -> Setup:
    """A new run's: every case's headers are looked at, then the training part is planned.

    Args:
        experiment: What was asked for; None is refused.
        run: Its folder, without a run.
        splits: Which cases train and validate; None to draw them from seed 0.
        memory: What window and batch are planned for.

    Raises:
        InputError: The folder holds a run, or data, splits and experiment do not go together.
    """
    if run.config.exists():
        unfinished = not run.finished
        raise InputError(
            f"{run.path} already holds {'an unfinished' if unfinished else 'a'} run",
            mend="Go on with --resume, or name another folder." if unfinished else "Name another folder.",
        )
    if experiment is None:
        raise InputError(f"{run.path} holds no run to go on with", mend="Leave out --resume.")
    task = read_task(experiment.dataset)
    refuse_unusable(task.cases)
    names = [case.name for case in task.cases]
    splits = splits or make_splits(names)
    splits.verify(names)
    _refuse_siblings_splits(run, splits)
    training = task.named(splits.training(experiment.fold, experiment.fraction))
    plan = make_plan(task, training, protocol=experiment.protocol, grid=experiment.grid)
    if memory.gb is not None:
        plan = experiment.within(memory.gb, plan, memory.processes, own_batch=memory.own_batch)
    return Setup(experiment.fitted_to(plan), task, splits, plan, begun=False)


def _refuse_siblings_splits(run: RunFolder, splits: Splits) -> None:
    """Make sure that all folds of a folder are parts of one split: their ensemble is judged by what none trained on.

    Raises:
        InputError: Another fold beside this run has other splits.
    """
    for fold in _siblings(run):
        if fold.splits.exists() and read_splits(fold.splits).to_dict() != splits.to_dict():
            raise InputError(
                f"{fold.splits} holds other splits than {run.path.name} is to have",
                mend="Give it that file by --splits, or name another folder.",
            )


def like_sibling(
    sibling: RunFolder, asked: Experiment, named: Collection[str], memory_gb: float | None = None
) -> Experiment:
    """The experiment of a fold that is begun, for another that is not.

    Args:
        sibling: The fold that is begun.
        asked: What was asked for, for the fold that is to begin.
        named: Which of its settings must be the sibling's own (see :func:`refuse_other`).
        memory_gb: What it is to be planned for.

    Raises:
        InputError: A setting that was named differs, the sibling is not understood, or one of the two alone is
            planned for a memory.
    """
    sibling.refuse_other_version()
    own, plan = read_experiment(sibling.config).found_where(asked), read_plan(sibling.plan)
    refuse_other(own, asked, [name for name in named if name != "fold"], str(sibling.config))
    if (plan.batch_size is None) != (memory_gb is None):
        raise InputError(
            f"{sibling.path} was planned {'for no' if plan.batch_size is None else 'for a'} certain memory",
            mend="Leave out --memory-gb." if plan.batch_size is None else "Give the same --memory-gb again.",
        )
    return own.of_fold(asked.fold, plan)


def stored(
    run: RunFolder, machine: Machine, asked: Experiment | None, named: Collection[str] | None, splits: Splits | None
) -> Setup:
    """A begun run's own; what is asked for must not contradict it, but for where its data and its block lie.

    Args:
        run: Its folder.
        machine: May know where its data and its block lie now.
        machine: May know where data set and block lie now.
        asked: What was asked for; None for what the folder says.
        named: Which settings must be the folder's own; None for all of them.
        splits: Likewise.

    Raises:
        InputError: Something was asked for otherwise, or the folder or its data set is not understood.
    """
    experiment, plan, own = read_experiment(run.config), read_plan(run.plan), read_splits(run.splits)
    if splits is not None and splits.to_dict() != own.to_dict():
        raise InputError(f"{run.splits} holds other splits than asked for", mend="Leave out --splits and --patient.")
    if asked is not None:
        experiment = experiment.found_where(asked)
        if named is None:
            fitted = asked.fitted_to(plan)
            asked = replace(fitted, recipe=replace(fitted.recipe, steps=asked.recipe.steps or experiment.recipe.steps))
            named = tuple(asdict(asked))
        refuse_other(experiment, asked, named, str(run.config))
    experiment = experiment.at_places(machine.dataset, machine.block_source)
    task = read_task(experiment.dataset)
    own.verify([case.name for case in task.cases])
    return Setup(experiment, task, own, plan, begun=True)


def _siblings(run: RunFolder) -> list[RunFolder]:
    """The folds beside a fold, itself among them; none where the run is no fold."""
    return RunFolder(run.path.parent).folds() if run.path.name.startswith("fold_") else []


def refuse_other_data(run: RunFolder, data_sha256: str, fraction: float) -> None:
    """Make sure that a begun run, and the folds beside it, trained on the same files under the cases' names.

    Args:
        run: A run that goes on, or a new one.
        data_sha256: Of the cases that train and validate.
        fraction: Share of the training part's patients; folds of a smaller share have each its own cases.

    Raises:
        InputError: Their files are others.
    """
    for other in [run, *(_siblings(run) if fraction == 1 else [])]:
        known = _beginning(other).get("data_sha256")
        if known not in (None, data_sha256) and read_experiment(other.config).fraction == fraction:
            raise InputError(
                f"the cases have the names, but not the files, of those that {other.path} began with",
                mend="Name the data set it began with, or train in another folder.",
            )


def refuse_other_block(run: RunFolder, experiment: Experiment, block_sha256: str | None) -> None:
    """Make sure that a begun run, and folds of the same network beside it, had the same language block.

    Args:
        run: A run that goes on, or a new one.
        experiment: What it does.
        block_sha256: Of the block's weights; None without a block.

    Raises:
        InputError: The weights are others.
    """
    for other in [run, *_siblings(run)]:
        known = _beginning(other).get("block_sha256")
        if known in (None, block_sha256):
            continue
        if read_experiment(other.config).found_where(experiment).model == experiment.model:
            raise InputError(
                f"the language block is not the one that {other.path} began with",
                got=f"sha256 {block_sha256}",
                expected=known,
                mend="Name the folder it lies in now by --block.",
            )


def first_command(run: RunFolder) -> str | None:
    """What was typed when a run was begun; None for a new one, or where nobody noted it."""
    command = _beginning(run).get("command")
    return command if isinstance(command, str) else None


def _beginning(run: RunFolder) -> dict[str, Any]:
    """What ``environment.json`` of a begun run says; nothing where it is missing or torn."""
    try:
        found = read_json(run.environment) if run.config.exists() else {}
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}
