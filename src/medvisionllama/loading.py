"""From run folders back to networks that are ready to segment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvisionllama.checkpoint import load_tensors, put_model_tensors
from medvisionllama.cleanup import labels_to_clean
from medvisionllama.config import read_experiment
from medvisionllama.data.plan import read_plan
from medvisionllama.errors import InputError
from medvisionllama.language.block import BlockIdentity, verify
from medvisionllama.listener import Listener
from medvisionllama.machine import Machine
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import build_network
from medvisionllama.models.zoo import with_block
from medvisionllama.predict import MEMORY_GB, Member, Room, Segmenter, mirroring_allowed
from medvisionllama.run_folder import RunFolder


@dataclass(frozen=True)
class Inference:
    """How label maps are made; no part of a run's definition.

    Attributes:
        memory_gb: For passing results (:class:`medvisionllama.predict.Room`).
        mirror: Show every window mirrored too, along the axes that training mirrored and the plan allows; their
            probabilities are averaged.
        cleanup: Keep only the largest component of the classes for which that was found to help on validation.
        probabilities: Write those of all classes too, as ``probabilities/CASE.nii.gz`` beside the label maps.
    """

    memory_gb: float = MEMORY_GB
    mirror: bool = False
    cleanup: bool = True
    probabilities: bool = False


PLAIN = Inference()


def load_member(folder: Path, machine: Machine) -> Member:
    """A trained network and its plan from a run folder; its block is found again and its hash compared.

    Raises:
        InputError: The folder holds no finished weights, is of another version, or the block is not the same.
    """
    run = RunFolder(folder)
    run.refuse_other_version()
    experiment, plan = read_experiment(run.config), read_plan(run.plan)
    if not run.model.exists():
        raise InputError(
            f"{folder} holds no trained weights yet",
            mend=f"Finish it with `medvisionllama train {experiment.dataset} --run {folder} --resume`.",
        )
    tensors, notes = load_tensors(run.model)
    config = experiment.model
    moved = machine.block_source
    if moved is not None and isinstance(config, ModelConfig) and config.middle.kind != "none":
        config = with_block(config, moved)
    try:
        model = build_network(config, seed=experiment.seed, cache=machine.block_cache, offline=machine.offline)
    except InputError as error:
        mend = f"{error.mend} If a folder was moved, name its new place by --block."
        raise InputError(
            f"the language block of {folder} cannot be loaded: {error.fault_in_full}", mend=mend
        ) from error
    if model.block is not None:
        if not isinstance(notes.get("block"), dict):
            raise InputError(f"{run.model} was trained without the language block that {run.config} names")
        verify(model.block, BlockIdentity.from_dict(notes["block"]))
    put_model_tensors(model, tensors, model.left_out_of_files())
    return Member(model.to(machine.device).eval(), plan, precision=experiment.recipe.dtype)


def load_segmenter(folders: Sequence[Path], machine: Machine, inference: Inference = PLAIN) -> Segmenter:
    """The ensemble of one or several run folders; a folder with folds below counts as all of them.

    Raises:
        InputError: A folder cannot be used, or classes differ.
    """
    runs = [fold for folder in folders for fold in RunFolder(folder).folds()]
    members = [load_member(run.path, machine) for run in runs]
    for run, member in zip(runs, members, strict=True):
        first = members[0].plan
        if member.plan.meaning != first.meaning:
            raise InputError(
                f"{run.path} and {runs[0].path} segment different classes",
                got=f"{dict(member.plan.classes)} and {dict(first.classes)}",
                mend="Ensemble runs of one task and protocol.",
            )
    if inference.mirror:
        members = [replace(m, mirror=trained_mirrored(run)) for run, m in zip(runs, members, strict=True)]
    return Segmenter(
        members,
        machine.device,
        Room(inference.memory_gb, machine.cache / "passing"),
        labels_to_clean(runs) if inference.cleanup else frozenset(),
    )


def trained_mirrored(run: RunFolder) -> tuple[int, ...]:
    """The voxel axes along which the run's training mirrored, as far as its plan allowed.

    A network that never saw a mirror image has no answer to one worth averaging.
    """
    asked = read_experiment(run.config).recipe.augment.mirror_axes
    return tuple(axis for axis in mirroring_allowed(read_plan(run.plan))[0] if axis in asked)


def note_limits(runs: Iterable[RunFolder], inference: Inference, listener: Listener) -> None:
    """Say of which runs the weights are not the last, and which cannot be mirrored although that was asked for."""
    for run in runs:
        if not run.summary.exists():
            listener.note(f"{run.path} is not trained to its end: the best weights so far are used")
        if inference.mirror and not trained_mirrored(run):
            listener.note(f"{run.path} never saw mirror images in training: it is shown none")
