"""One experiment from top to bottom: data, plan, network, training, segmentation, scores, all in one run folder."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from medvisionllama.checkpoint import load_tensors, model_tensors, put_model_tensors
from medvisionllama.config import Experiment, write_experiment
from medvisionllama.data.dataset import BatchSource
from medvisionllama.data.plan import write_plan
from medvisionllama.data.prepare import PreparedCase, content_sha256, prepare
from medvisionllama.data.splits import Splits, write_splits
from medvisionllama.errors import InputError
from medvisionllama.held import sole_writer
from medvisionllama.language.block import BlockIdentity, verify
from medvisionllama.language.fetch import fetch_block
from medvisionllama.language.norms import NormWatch
from medvisionllama.listener import Listener, Silent
from medvisionllama.loading import Inference
from medvisionllama.machine import Machine
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import Network, build_network
from medvisionllama.predict import MEMORY_GB, Room, look_at_volumes
from medvisionllama.processes import Processes
from medvisionllama.provenance import environment, parameters, stages
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import FORMAT_VERSION, RunFolder, read_json, write_json
from medvisionllama.run_setup import (
    Memory,
    Setup,
    first_command,
    planned,
    refuse_other_block,
    refuse_other_data,
    stored,
)
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
    cleanup: bool = True,
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
        cleanup: Whether the validation part says which classes are cleaned up; where not, nothing is.
        listener: Who is told of the progress.

    Raises:
        InputError: Data, settings or folder are not as they should be; nothing already written is lost.
    """
    listener = listener or Silent()
    run = RunFolder(folder)
    found = _stands(run)
    run.refuse_other_version()
    processes = machine.processes
    if resume and run.config.exists():
        setup = stored(run, machine, experiment, named, splits)
        if run.finished:
            listener.note(f"{folder} is finished already")
            finished: dict[str, Any] = read_json(run.summary)
            return finished
        if not (max_minutes is None and memory_gb is None):
            keeps = "keeps the window, batch and steps it began with: --memory-gb and --max-minutes change nothing"
            listener.note(f"{folder} {keeps}")
    else:
        if experiment is not None:
            experiment = experiment.at_places(machine.dataset, machine.block_source)
        memory = Memory(memory_gb, processes.count, own_batch="recipe.batch_size" in (named or ()))
        setup = planned(experiment, run, splits, memory)
    going_on = setup.begun and run.checkpoint.exists()  # killed before the first one, a run begins again
    first = processes.rank == 0
    if first:
        refuse_unwritable(run.path)
    with sole_writer(run.path) if first else nullcontext():
        if first:
            _refuse_meanwhile(run, found)
            clear_litter(run.path)
        with processes.first_goes_first(each_machine=True):
            _fetch_block(setup.experiment, machine, listener)
        training, validation, data_sha256 = _prepared_cases(setup, run, machine, listener)
        setup = replace(setup, experiment=setup.experiment.lasting(len(training)))
        model = _built(setup.experiment, machine, listener, from_start=not going_on)
        block_sha256 = model.block.identity.sha256 if model.block is not None else None
        refuse_other_block(run, setup.experiment, block_sha256)
        batches = _batches(setup, training, processes)
        listener.note(
            f"window {setup.plan.window}, batch {setup.experiment.recipe.batch_size}: about "
            f"{_training_gb(setup, processes):.2g} GB to train"
        )
        if max_minutes is not None and not setup.begun:
            setup = _lasting_minutes(setup, max_minutes, model, batches, machine, listener)
        typed = first_command(run) or shlex.join(command)
        if first:
            where_from = environment(machine.device, command) | {"command": typed, "processes": processes.count}
            _write_setup(setup, run, where_from | {"data_sha256": data_sha256, "block_sha256": block_sha256})
        outcome = _trained(setup, model, batches, validation, run, machine, listener, going_on=going_on)
        with processes.first_goes_first():
            if first:
                counts = {"training": len(training), "validation": len(validation), "test": len(setup.splits.test)}
                write_json(run.summary, _summary(setup, counts, outcome, model, typed))
                if validation:
                    inference = Inference(_passing_gb(setup, processes), cleanup=cleanup)
                    predict_part(run, "validation", machine, inference=inference, listener=listener)
                else:
                    listener.note("the split has no validation part: nothing is scored, the last weights are kept")
                run.checkpoint.unlink(missing_ok=True)
                run.checkpoint_state.unlink(missing_ok=True)
            summary: dict[str, Any] = read_json(run.summary)  # written by now, whoever reads it
            return summary


def _stands(run: RunFolder) -> list[int | None]:
    """When the files that decide how a run goes on were written."""
    found: list[int | None] = []
    for path in (run.config, run.checkpoint, run.summary):
        try:
            found.append(path.stat().st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            found.append(None)
    return found


def _refuse_meanwhile(run: RunFolder, found: list[int | None]) -> None:
    """Make sure that nobody wrote between what was decided by the folder's files and the lock.

    Raises:
        InputError: Another process did.
    """
    if _stands(run) != found:
        raise InputError(f"another process has trained in {run.path} meanwhile", mend="Give the command again.")


def _write_setup(setup: Setup, run: RunFolder, where_from: dict[str, Any]) -> None:
    """What the folder says of the run; of one that goes on, only where its data lies and where it is computed now."""
    write_json(run.environment, where_from)
    if not setup.begun:
        write_plan(setup.plan, run.plan)
        write_splits(setup.splits, run.splits)
    write_experiment(setup.experiment, run.config)  # last: a folder with it can be resumed


def _prepared_cases(
    setup: Setup, run: RunFolder, machine: Machine, listener: Listener
) -> tuple[Sequence[PreparedCase], Sequence[PreparedCase], str]:
    """The cases that train and those that validate, on the plan's grid, and their files' hash.

    A machine's first process makes the prepared files. Before that the cases are known to be those the run began with.
    """
    folder, fraction = machine.cache / "prepared", setup.experiment.fraction
    training = setup.task.named(setup.splits.training(setup.experiment.fold, fraction))
    validation = setup.task.named(setup.splits.validation(setup.experiment.fold))
    with machine.processes.first_goes_first(each_machine=True):
        data_sha256 = content_sha256([*training, *validation], folder)
        refuse_other_data(run, data_sha256, fraction)
        everything = prepare(
            [*training, *validation],
            setup.plan,
            folder,
            lambda cases: listener.track(list(cases), "Preparing"),
            machine.workers,
        )
    return everything[: len(training)], everything[len(training) :], data_sha256


def _built(experiment: Experiment, machine: Machine, listener: Listener, *, from_start: bool) -> Network:
    """The network with its language block on the device; at the start of a run with another run's weights, if asked."""
    model = build_network(
        experiment.model, seed=experiment.seed, cache=machine.block_cache, offline=machine.offline
    ).to(machine.device)
    if experiment.init_from is not None and from_start:
        listener.note(_take_over(model, Path(experiment.init_from)))
    return model


def _batches(setup: Setup, training: Sequence[PreparedCase], processes: Processes) -> BatchSource:
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
    setup: Setup, max_minutes: float, model: Network, batches: BatchSource, machine: Machine, listener: Listener
) -> Setup:
    """As many steps as fit, at the pace of some that are undone again."""
    recipe = setup.experiment.recipe
    pace = seconds_per_step(model, batches, recipe, machine.device, machine.processes)
    steps = max(1, int(max_minutes * 60 * TRAINING_SHARE / pace))
    listener.note(f"{pace:.3f} s a step: {steps} steps in {max_minutes:g} minutes")
    return replace(setup, experiment=replace(setup.experiment, recipe=replace(recipe, steps=steps)))


def _trained(
    setup: Setup,
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
        notes={"format": FORMAT_VERSION, "block": identity.to_dict() if identity else None},
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


def _identity(model: Network) -> BlockIdentity | None:
    return model.block.identity if model.block is not None else None


def _training_gb(setup: Setup, processes: Processes) -> float:
    """About how much each process's device needs to train."""
    recipe = replace(setup.experiment.recipe, batch_size=_share(setup.experiment.recipe, processes))
    return replace(setup.experiment, recipe=recipe).memory_gb(setup.plan.window)


def _passing_gb(setup: Setup, processes: Processes) -> float:
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


def _summary(setup: Setup, counts: dict[str, int], outcome: Outcome, model: Network, command: str) -> dict[str, Any]:
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
        "command": command,
    }
