"""One experiment from top to bottom: data, plan, network, training, segmentation, scores, all in one run folder."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from medvisionllama.checkpoint import load_tensors, model_tensors, put_model_tensors
from medvisionllama.config import Experiment, read_experiment, refuse_other, write_experiment
from medvisionllama.data.dataset import BatchSource, PreparedCase, prepare, refuse_unusable
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.plan import Plan, read_plan, write_plan
from medvisionllama.data.planning import make_plan
from medvisionllama.data.splits import Splits, make_splits, read_splits, write_splits
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.held import sole_writer
from medvisionllama.language.block import BlockIdentity, verify
from medvisionllama.language.fetch import fetch_block
from medvisionllama.language.norms import NormWatch
from medvisionllama.listener import Listener, Silent
from medvisionllama.loading import Inference, told_where
from medvisionllama.machine import Machine
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import Network, build_network
from medvisionllama.predict import MEMORY_GB, Room, look_at_volumes
from medvisionllama.processes import Processes
from medvisionllama.provenance import environment, parameters, stages
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import FORMAT_VERSION, RunFolder, read_json, write_json
from medvisionllama.score_part import predict_part
from medvisionllama.train import Outcome, Validated, seconds_per_step, train
from medvisionllama.whole_file import clear_litter, refuse_unwritable

# Of `--max-minutes`, what training itself gets; the rest is for validating, segmenting and scoring.
TRAINING_SHARE = 0.85


def train_run(
    experiment: Experiment | None,
    folder: Path,
    machine: Machine,
    *,
    splits: Splits | None = None,
    max_minutes: float | None = None,
    memory_gb: float | None = None,
    resume: bool = False,
    named: Collection[str] | None = None,
    command: Sequence[str] = (),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train, segment the validation part and score it; returns ``summary.json``.

    Args:
        experiment: What to do; None, with ``resume``, for what the folder says.
        folder: The run folder; new, or with ``resume`` one that was interrupted.
        machine: Where to compute.
        splits: Which cases train and validate; None to draw them from seed 0.
        max_minutes: Turned once into a number of steps, which is stored.
        memory_gb: Of each process's device: window and batch are planned for it, and stored; None for what any machine
            can bear.
        resume: Go on where the folder's checkpoint stands; a finished run is left as it is.
        named: With ``resume``, which of the experiment's settings must be the folder's own; None for all of them. Where
            ``memory_gb`` is given, a named ``recipe.batch_size`` stays and the window alone is planned.
        command: What the user typed, kept for the page.
        listener: Who is told of the progress.

    Raises:
        InputError: Data, settings or folder are not as they should be; nothing already written is lost.
    """
    listener = listener or Silent()
    run = RunFolder(folder)
    run.refuse_other_version()
    resume = resume and run.config.exists()
    if resume:
        setup = _stored(run, machine, experiment, named, splits)
    else:
        own_batch = "recipe.batch_size" in (named or ())
        setup = _planned(experiment, run, splits, _Memory(memory_gb, machine.processes.count, own_batch))
    if resume and run.finished:
        listener.note(f"{folder} is finished already")
        finished: dict[str, Any] = read_json(run.summary)
        return finished
    if resume and not (max_minutes is None and memory_gb is None):
        listener.note(
            f"{folder} keeps the window, batch and steps it began with: --memory-gb and --max-minutes change nothing"
        )
    going_on = resume and run.checkpoint.exists()  # killed before the first one, a run begins again from its start
    found = _stands(run)
    machine = told_where(machine, setup.experiment)
    processes = machine.processes
    first = processes.rank == 0
    if first:
        refuse_unwritable(run.path)
    with sole_writer(run.path) if first else nullcontext():
        if first:
            _refuse_meanwhile(run, found)
            clear_litter(run.path)
        with processes.first_goes_first(each_machine=True):
            _fetch_block(setup.experiment, machine, listener)
        training, validation = _prepared_cases(setup, machine, listener)
        setup = replace(setup, experiment=setup.experiment.lasting(len(training)))
        model = _built(setup.experiment, machine, listener, from_start=not going_on)
        batches = _batches(setup, training, processes)
        listener.note(
            f"window {setup.plan.window}, batch {setup.experiment.recipe.batch_size}: about "
            f"{_training_gb(setup, processes):.2g} GB to train"
        )
        if not resume:
            if max_minutes is not None:
                setup = _lasting_minutes(setup, max_minutes, model, batches, machine, listener)
            if first:
                write_plan(setup.plan, run.plan)
                write_splits(setup.splits, run.splits)
                write_experiment(setup.experiment, run.config)  # last: a folder with it can be resumed
        if first:
            write_json(run.environment, environment(machine.device, command) | {"processes": processes.count})
        outcome = _trained(setup, model, batches, validation, run, machine, listener, going_on=going_on)
        with processes.first_goes_first():
            if first:
                counts = {"training": len(training), "validation": len(validation), "test": len(setup.splits.test)}
                if resume:
                    write_experiment(setup.experiment, run.config)  # where its data lies may have changed, nothing else
                write_json(run.summary, _summary(setup, counts, outcome, model, command))
                if validation:
                    inference = Inference(_passing_gb(setup, processes))
                    predict_part(run, "validation", machine, inference=inference, listener=listener)
                else:
                    listener.note("the split has no validation part: nothing is scored, the last weights are kept")
                run.checkpoint.unlink(missing_ok=True)
                run.checkpoint_state.unlink(missing_ok=True)
            summary: dict[str, Any] = read_json(run.summary)  # written by now, whoever reads it
            return summary


def _stands(run: RunFolder) -> list[int | None]:
    """When the files that decide how a run goes on were written."""
    paths = (run.config, run.checkpoint, run.summary)
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


def _refuse_meanwhile(run: RunFolder, found: list[int | None]) -> None:
    """Make sure that nobody wrote between what was decided by the folder's files and the lock.

    Raises:
        InputError: Another process did.
    """
    if _stands(run) != found:
        raise InputError(f"another process has trained in {run.path} meanwhile", mend="Give the command again.")


def _prepared_cases(
    setup: _Setup, machine: Machine, listener: Listener
) -> tuple[Sequence[PreparedCase], Sequence[PreparedCase]]:
    """The cases that train and those that validate, on the plan's grid; a machine's first process makes the files."""
    training = setup.task.named(setup.splits.training(setup.experiment.fold, setup.experiment.fraction))
    validation = setup.task.named(setup.splits.validation(setup.experiment.fold))
    with machine.processes.first_goes_first(each_machine=True):
        everything = prepare(
            [*training, *validation],
            setup.plan,
            machine.cache / "prepared",
            lambda cases: listener.track(list(cases), "Preparing"),
            machine.workers,
        )
    return everything[: len(training)], everything[len(training) :]


def _built(experiment: Experiment, machine: Machine, listener: Listener, *, from_start: bool) -> Network:
    """The network with its language block on the device; at the start of a run with another run's weights, if asked."""
    model = build_network(
        experiment.model, seed=experiment.seed, cache=machine.block_cache, offline=machine.offline
    ).to(machine.device)
    if experiment.init_from is not None and from_start:
        listener.note(_take_over(model, Path(experiment.init_from)))
    return model


def _batches(setup: _Setup, training: Sequence[PreparedCase], processes: Processes) -> BatchSource:
    recipe, plan = setup.experiment.recipe, setup.plan
    return BatchSource(
        training,
        plan.window,
        _share(recipe, processes),
        recipe.foreground_share,
        setup.experiment.seed,
        plan.reading,
        plan.numbered_mirroring,
    )


def _lasting_minutes(
    setup: _Setup, max_minutes: float, model: Network, batches: BatchSource, machine: Machine, listener: Listener
) -> _Setup:
    """As many steps as fit, at the pace of some that are undone again."""
    recipe = setup.experiment.recipe
    pace = seconds_per_step(model, batches, recipe, machine.device, machine.processes)
    steps = max(1, int(max_minutes * 60 * TRAINING_SHARE / pace))
    listener.note(f"{pace:.3f} s a step: {steps} steps in {max_minutes:g} minutes")
    return replace(setup, experiment=replace(setup.experiment, recipe=replace(recipe, steps=steps)))


def _trained(
    setup: _Setup,
    model: Network,
    batches: BatchSource,
    validation: Sequence[PreparedCase],
    run: RunFolder,
    machine: Machine,
    listener: Listener,
    *,
    going_on: bool,
) -> Outcome:
    """Train to the end; leaves the log and the weights that count."""
    recipe, plan = setup.experiment.recipe, setup.plan
    room = Room(_passing_gb(setup, machine.processes), machine.cache / "passing")

    def validate(trained: nn.Module) -> Validated:
        look = look_at_volumes(trained, plan, validation, recipe.loss, machine.device, recipe.dtype, room)
        return Validated(look.dice, look.loss)

    identity = _identity(model)
    watch = NormWatch(model.block) if model.block is not None else None
    outcome = train(
        model,
        batches,
        recipe,
        run,
        device=machine.device,
        left_out=model.left_out_of_files(),
        notes={
            "format": FORMAT_VERSION,
            "block": identity.to_dict() if identity else None,
            "cases": _digest([*batches.cases, *validation]),
        },
        validate=validate if validation else None,
        observe=lambda: _norms(watch),
        report=lambda entry: listener.training(entry, recipe.steps),
        resume=going_on,
        checkpoint_seconds=machine.checkpoint_seconds,
        processes=machine.processes,
    )
    if watch is not None:
        watch.close()
    if model.block is not None and identity is not None and not model.block.trained:
        verify(model.block, identity)  # frozen means frozen: bit-identical after training
    return outcome


def _digest(cases: Sequence[PreparedCase]) -> str:
    """Of names and contents: data sets whose cases are merely called alike have another."""
    return sha256("\n".join(f"{case.name} {case.content}" for case in cases).encode()).hexdigest()


def _identity(model: Network) -> BlockIdentity | None:
    return model.block.identity if model.block is not None else None


def _training_gb(setup: _Setup, processes: Processes) -> float:
    """About how much each process's device needs to train."""
    recipe = replace(setup.experiment.recipe, batch_size=_share(setup.experiment.recipe, processes))
    return replace(setup.experiment, recipe=recipe).memory_gb(setup.plan.window)


def _passing_gb(setup: _Setup, processes: Processes) -> float:
    """What validating and scoring may take: of a run planned for a memory no more than its training."""
    return MEMORY_GB if setup.plan.batch_size is None else min(MEMORY_GB, _training_gb(setup, processes))


def _share(recipe: Recipe, processes: Processes) -> int:
    """How many of a batch's cases each process takes.

    Raises:
        InputError: They cannot be shared out evenly.
    """
    share, left = divmod(recipe.batch_size, processes.count)
    if left or not share:
        raise InputError(
            f"a batch of {recipe.batch_size} cannot be shared out evenly to {processes.count} processes",
            mend=f"Set --recipe.batch_size to a multiple of {processes.count}, or start another number of processes.",
        )
    return share


@dataclass(frozen=True)
class _Setup:
    """What must be known before anything is computed."""

    experiment: Experiment
    task: Task
    splits: Splits
    plan: Plan


@dataclass(frozen=True)
class _Memory:
    """What is planned for: memory of each process's device, if any, and whether the recipe's batch stays."""

    gb: float | None
    processes: int
    own_batch: bool


def _planned(experiment: Experiment | None, run: RunFolder, splits: Splits | None, memory: _Memory) -> _Setup:
    """A new run's: every case's headers are looked at, then the training part is planned."""
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
    return _Setup(experiment.fitted_to(plan), task, splits, plan)


def _refuse_siblings_splits(run: RunFolder, splits: Splits) -> None:
    """Make sure that all folds of a folder are parts of one split: their ensemble is judged by what none trained on.

    Raises:
        InputError: Another fold beside this run has other splits.
    """
    if not run.path.name.startswith("fold_"):
        return
    for fold in RunFolder(run.path.parent).folds():
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
    stored, plan = read_experiment(sibling.config).found_where(asked), read_plan(sibling.plan)
    refuse_other(stored, asked, [name for name in named if name != "fold"], str(sibling.config))
    if (plan.batch_size is None) != (memory_gb is None):
        raise InputError(
            f"{sibling.path} was planned {'for no' if plan.batch_size is None else 'for a'} certain memory",
            mend="Leave out --memory-gb." if plan.batch_size is None else "Give the same --memory-gb again.",
        )
    return stored.of_fold(asked.fold, plan)


def _stored(
    run: RunFolder, machine: Machine, asked: Experiment | None, named: Collection[str] | None, splits: Splits | None
) -> _Setup:
    """An interrupted run's own; what is asked for must not contradict it, but for where its data lies."""
    experiment, plan, stored = read_experiment(run.config), read_plan(run.plan), read_splits(run.splits)
    if splits is not None and splits.to_dict() != stored.to_dict():
        raise InputError(f"{run.splits} holds other splits than asked for", mend="Leave out --splits and --patient.")
    if asked is not None:
        experiment = experiment.found_where(asked)
        if named is None:
            fitted = asked.fitted_to(plan)
            asked = replace(fitted, recipe=replace(fitted.recipe, steps=asked.recipe.steps or experiment.recipe.steps))
            named = tuple(asdict(asked))
        refuse_other(experiment, asked, named, str(run.config))
    task = read_task(machine.dataset or experiment.dataset)
    stored.verify([case.name for case in task.cases])
    return _Setup(experiment, task, stored, plan)


def _take_over(model: Network, folder: Path) -> str:
    """Put another run's weights in where name and shape agree; says how many did.

    Raises:
        InputError: The folder holds no trained weights, or none that fits.
    """
    run = RunFolder(folder)
    run.refuse_other_version()
    tensors, _ = load_tensors(run.model)
    own = model_tensors(model, model.left_out_of_files())
    fitting = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    if not fitting:
        raise InputError(f"no weight of {folder} fits the network", mend="Start from a run of a similar network.")
    put_model_tensors(model, own | fitting, model.left_out_of_files())
    return f"{len(fitting)} of {len(own)} tensors start from {folder}"


def _fetch_block(experiment: Experiment, machine: Machine, listener: Listener) -> None:
    """Bring the language block here with progress, where it is not; random blocks of known models need no file."""
    if not isinstance(experiment.model, ModelConfig):
        return
    block = experiment.model.middle.block
    if (folder := experiment.folder_of_block) and not Path(folder).is_dir():
        raise InputError(
            f"the language block's folder {folder} is not there", mend="If it was moved, name its new place by --block."
        )
    if experiment.model.middle.kind in ("language", "trained") and block.init != "random":
        fetch_block(
            block.source,
            block.layers,
            cache=machine.block_cache,
            revision=block.revision,
            offline=machine.offline,
            progress=listener.bytes,
        )


def _norms(watch: NormWatch | None) -> dict[str, Any]:
    """Mean length of the tokens that enter and leave the block: a mismatch explains a block that does nothing."""
    norms = watch.read() if watch is not None else None
    return {"block_norms": asdict(norms)} if norms is not None else {}


def _summary(
    setup: _Setup, counts: dict[str, int], outcome: Outcome, model: Network, command: Sequence[str]
) -> dict[str, Any]:
    experiment, identity = setup.experiment, _identity(model)
    return {
        "format": FORMAT_VERSION,
        "task": setup.plan.task,
        "cases": counts,
        "model": experiment.model_name,
        "protocol": experiment.protocol,
        "block": identity.to_dict() if identity else None,
        "recipe": experiment.recipe_name,
        "seed": experiment.seed,
        "fold": experiment.fold,
        "fraction": experiment.fraction,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "best_step": outcome.best_step,
        "classes": {str(value): name for value, name in setup.plan.classes.items()},
        "parameters": parameters(model),
        "stages": stages(model),
        "command": shlex.join(command),
    }
