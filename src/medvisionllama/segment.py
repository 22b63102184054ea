"""From run folders to label maps: load what was trained, segment files or a part of the split, score the part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medvisionllama.checkpoint import load_tensors, put_model_tensors
from medvisionllama.cleanup import Trials, labels_to_clean, write_trials
from medvisionllama.config import Experiment, read_experiment
from medvisionllama.data.decathlon import Case, read_task
from medvisionllama.data.dicom import is_dicom_folder, read_series
from medvisionllama.data.dicom_seg import refuse_seg, write_seg
from medvisionllama.data.nifti import (
    ENDINGS,
    MOST_PROBABLE,
    case_name,
    probability_file,
    read_grid,
    read_label_map,
    read_volume,
    write_label_map,
)
from medvisionllama.data.plan import IGNORED, Plan, read_plan
from medvisionllama.data.preprocess import label_to_model_grid
from medvisionllama.data.splits import read_splits
from medvisionllama.data.way_back import Place
from medvisionllama.errors import InputError
from medvisionllama.evaluate import Target, score_volume, summarise, tolerance_of
from medvisionllama.geometry import Affine, Array, Grid, Volume, ras_grid, seen_in_ras_order
from medvisionllama.language.block import BlockIdentity, verify
from medvisionllama.largest_component import keep_largest
from medvisionllama.listener import Listener, Silent
from medvisionllama.machine import Machine, choose_device, default_cache
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import build_network
from medvisionllama.models.zoo import with_block
from medvisionllama.pictures import (
    VolumeRow,
    keep_pictures,
    labelled,
    reference_of,
    volume_rows,
    where_labelled,
    write_volumes,
)
from medvisionllama.predict import MEMORY_GB, Member, Room, Segmenter
from medvisionllama.run_folder import RunFolder, ScoreRow, read_json, write_json, write_scores
from medvisionllama.whole_file import refuse_unwritable


@dataclass(frozen=True)
class Inference:
    """How label maps are made; no part of a run's definition.

    Attributes:
        memory_gb: For passing results (:class:`medvisionllama.predict.Room`).
        mirror: Show every window mirrored too, along the axes the plan allows; their probabilities are averaged.
        cleanup: Keep only the largest component of the classes for which that was found to help on validation.
        probabilities: Write those of all classes too, as ``probabilities/CASE.nii.gz`` beside the label maps.
    """

    memory_gb: float = MEMORY_GB
    mirror: bool = False
    cleanup: bool = True
    probabilities: bool = False


PLAIN = Inference()


class Loaded:
    """Trained networks ready to segment; made by :func:`load`."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    @property
    def classes(self) -> dict[int, str]:
        """Label value to name, as in the label maps it makes."""
        plan = self.segmenter.plan
        return {1: "foreground"} if plan.merged else dict(plan.classes)

    def segment(self, image: Volume | Path | str) -> Volume:
        """The label map of an image, a NIfTI file or the folder of a DICOM series, in exactly its grid.

        Raises:
            InputError: The file cannot be read, or its channels or intensities do not fit.
        """
        if isinstance(image, Volume):
            return self.segmenter.segment(image)
        return self.segmenter.segment(_read_image(Path(image)), str(image))


def load(
    *runs: Path | str,
    device: str = "auto",
    cache: Path | None = None,
    offline: bool = False,
    inference: Inference = PLAIN,
) -> Loaded:
    """Load a run folder, or several as an ensemble: ``mvl.load(RUN).segment(PATH)``.

    Raises:
        InputError: A folder holds no finished run, or its language block cannot be found or is another.
    """
    machine = Machine(choose_device(device), cache or default_cache(), cache, offline)
    return Loaded(load_segmenter([Path(run) for run in runs], machine, inference))


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
    return Member(model.to(machine.device).eval(), plan)


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
    return Segmenter(
        [replace(member, mirror=inference.mirror) for member in members],
        machine.device,
        read_experiment(runs[0].config).recipe.dtype,
        Room(inference.memory_gb, machine.cache / "passing"),
        labels_to_clean(runs) if inference.cleanup else frozenset(),
    )


def predict_files(
    folders: Sequence[Path],
    source: Path,
    out: Path,
    machine: Machine,
    *,
    dicom_seg: bool = False,
    inference: Inference = PLAIN,
    listener: Listener | None = None,
) -> list[Path]:
    """Segment a NIfTI file, all NIfTI files of a folder, or the DICOM series of a folder; returns what was written.

    Label maps are called as their images, that of a series as its folder; ``dicom_seg`` adds a DICOM segmentation.
    A file that cannot be segmented does not stop the others: all faults are told at the end.

    Raises:
        InputError: There is nothing to segment, or some files could not be, or ``dicom_seg`` without a series.
    """
    listener = listener or Silent()
    images = _images(source)
    targets = [out / (path.name if path.name.endswith(ENDINGS) else f"{path.name}.nii.gz") for path in images]
    inputs = {path.resolve() for path in images}
    for target in targets:
        if target.resolve() in inputs:
            raise InputError(
                f"{target} would be overwritten by its own label map", mend="Name another folder by --out."
            )
    if dicom_seg:
        refuse_seg(source, out)
    refuse_unwritable(out)
    segmenter = load_segmenter(folders, machine, inference)
    _note_unfinished([run for folder in folders for run in RunFolder(folder).folds()], listener)
    written, faults = [], []
    for path, target in listener.track(list(zip(images, targets, strict=True)), "Segmenting"):
        try:
            image = _read_image(path)
            write_label_map(_segmented(segmenter, image, path, target, inference), target, like=path)
            written.append(target)
        except InputError as error:
            faults.append(str(error))
    if faults:
        done = f" The other {len(written)} are written." if written else ""
        raise InputError(f"{len(faults)} of {len(images)} files were not segmented: " + " ".join(faults) + done)
    if dicom_seg:
        segmentation = out / f"{case_name(written[0])}.dcm"
        write_seg(read_label_map(written[0]), source, Loaded(segmenter).classes, segmentation)
        written.append(segmentation)
    return written


def predict_part(
    run: RunFolder,
    part: str,
    machine: Machine,
    *,
    inference: Inference = PLAIN,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Segment and score ``validation`` or ``test`` of the run's own split; returns the run's summary with the part.

    A folder with folds is one ensemble, whose test part alone can be asked for. Scoring the validation part also
    finds out which classes to clean up, and applies it there as everywhere else.

    Raises:
        InputError: The run is not finished, its data set is gone, the part is empty, or it is a fold's own.
    """
    listener = listener or Silent()
    run.refuse_other_version()
    folds = run.folds()
    experiment, plan, names = _asked_for(run, folds, part)
    _note_unfinished(folds, listener)
    task = read_task(machine.dataset or experiment.dataset)
    cases = task.named(names)
    trying = part == "validation" and inference.cleanup
    segmenter = load_segmenter([run.path], machine, replace(inference, cleanup=inference.cleanup and not trying))
    grids: tuple[str | None, ...] = ("native", "model") if plan.protocol == "paper" else (None,)
    trials = Trials(plan)
    for case in listener.track(cases, f"Segmenting {part}"):
        image = case.read_image()
        for grid in grids:
            target = run.part(part, grid) / "predictions" / f"{case.name}.nii.gz"
            if grid == "model":
                write_label_map(_on_model_grid(segmenter, case, image), target)
                continue
            predicted = _segmented(segmenter, image, case.image, target, inference, run.part(part, grid))
            write_label_map(predicted, target, like=case.image)
            if trying:
                trials.add(predicted.array, reference_of(case, plan).array, labelled(case, plan))
    clean: frozenset[int] = frozenset()
    if trying:
        write_trials(run, trials.results())
        clean = labels_to_clean([run])
    tolerance = tolerance_of(task) if experiment.tolerance_mm is None else experiment.tolerance_mm
    summary = _summary_so_far(run, folds)
    for grid in grids:
        out = run.part(part, grid)
        rows: list[ScoreRow] = []
        volumes: list[VolumeRow] = []
        for case in cases:
            predicted = _cleaned(out / "predictions" / f"{case.name}.nii.gz", clean)
            compared = _reference_on_model_grid(case, plan) if grid == "model" else reference_of(case, plan)
            judged = predicted if grid == "model" else where_labelled(predicted, case, plan)
            rows += score_volume(judged, compared, _targets(plan), tolerance, case.name)
            volumes += volume_rows(judged, compared, _targets(plan), case.name)
        write_scores(out / "scores.csv", rows)
        write_volumes(out / "volumes.csv", volumes)
        scores = summarise(rows, tolerance, grid or "native")
        write_json(out / "summary.json", scores)
        if grid == "model":
            summary[part]["model_grid"] = _in_short(scores, rows)
        else:
            keep_pictures(out, task, plan, rows)
            summary[part] = _in_short(scores, rows)
    write_json(run.summary, summary)
    return summary


def _asked_for(run: RunFolder, folds: Sequence[RunFolder], part: str) -> tuple[Experiment, Plan, Sequence[str]]:
    """Experiment and plan (the first fold's) and the names of the part's cases."""
    experiment, plan, splits = (
        read_experiment(folds[0].config),
        read_plan(folds[0].plan),
        read_splits(folds[0].splits),
    )
    names = splits.test if part == "test" else splits.validation(experiment.fold)
    if len(folds) > 1:
        if part != "test":
            raise InputError(
                f"{run.path} holds folds, each with a {part} part of its own",
                mend=f"Name one of them, such as {folds[0].path}, or ask for the test part.",
            )
        if any(set(read_splits(fold.splits).test) != set(names) for fold in folds):
            raise InputError(f"the folds of {run.path} have different test parts", mend="Train them from one split.")
    if not names:
        raise InputError(f"the run's split has no {part} part", mend="Add cases, or ask for the other part.")
    return experiment, plan, names


# What a fold's summary says of itself alone; the rest holds for the ensemble of all folds too.
_OF_ONE_FOLD = ("fold", "steps", "seconds", "best_step", "cases", "command", "validation", "test")


def _summary_so_far(run: RunFolder, folds: Sequence[RunFolder]) -> dict[str, Any]:
    """The run's own summary; for folds together, before it is first written, what their first says of all."""
    if run.summary.exists():
        known: dict[str, Any] = read_json(run.summary)
        return known
    if len(folds) == 1 or not folds[0].summary.exists():
        return {}
    first = read_json(folds[0].summary)
    return {key: value for key, value in first.items() if key not in _OF_ONE_FOLD} | {
        "ensemble": [fold.path.name for fold in folds]
    }


def _segmented(
    segmenter: Segmenter, image: Volume, source: Path, target: Path, inference: Inference, out: Path | None = None
) -> Volume:
    """The label map; with its probabilities written on the way where they are wanted."""
    if not inference.probabilities:
        return segmenter.segment(image, str(source))
    folder = (out or target.parent) / "probabilities"
    plan = segmenter.plan
    names = [*(("background",) if plan.softmax else ()), *plan.targets]
    path = folder / f"{case_name(target)}.nii.gz"
    with probability_file(path, image.grid, len(names), segmenter.room.scratch, like=source) as stored:
        seen = seen_in_ras_order(stored, image.grid)

        def keep(place: Place, probability: Array) -> None:
            seen[(slice(None), *place)] = np.rint(probability * MOST_PROBABLE)

        label_map = segmenter.segment(image, str(source), keep)
    write_json(folder / "channels.json", names)
    return label_map


def _cleaned(path: Path, labels: frozenset[int]) -> Volume:
    """The label map of a file, of some labels the largest component alone, which then is put into the file too."""
    found = read_label_map(path)
    kept = found.with_array(keep_largest(found.array, labels))
    if kept.array is not found.array:
        write_label_map(kept, path, like=path)
    return kept


def _note_unfinished(runs: Iterable[RunFolder], listener: Listener) -> None:
    for run in runs:
        if not run.summary.exists():
            listener.note(f"{run.path} is not trained to its end: the best weights so far are used")


def _targets(plan: Plan) -> list[Target]:
    if plan.merged:
        return [Target("foreground", (1,))]
    return [Target(name, labels) for name, labels in plan.targets.items()]


def _on_model_grid(segmenter: Segmenter, case: Case, image: Volume) -> Volume:
    """The prediction on the paper protocol's grid, as the papers must have scored; 0 where ignored."""
    predicted = segmenter.label_map_on_model_grid(image, str(case.image))
    ignored = _numbers_on_model_grid(case, segmenter.plan).array == IGNORED
    return Volume(np.where(ignored, 0, predicted).astype(np.uint8), _model_affine(image.grid, segmenter.plan))


def _reference_on_model_grid(case: Case, plan: Plan) -> Volume:
    numbers = _numbers_on_model_grid(case, plan)
    return numbers.with_array(np.where(numbers.array == IGNORED, 0, numbers.array))


def _numbers_on_model_grid(case: Case, plan: Plan) -> Volume:
    assert case.label is not None
    grid, _ = read_grid(case.image)
    reference = Volume(read_label_map(case.label).array, grid.affine)  # one affine, as in Case.read_pair
    return Volume(label_to_model_grid(reference, plan, str(case.label)), _model_affine(grid, plan))


def _model_affine(grid: Grid, plan: Plan) -> Affine:
    return ras_grid(grid).with_shape(plan.window).affine


def _in_short(summary: dict[str, Any], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """What a run's own summary says of a part: means over classes of means over cases."""
    classes = summary["classes"]

    def mean(metric: str) -> float:
        values = [content[metric]["mean"] for content in classes.values()]
        known = [v for v in values if v is not None and np.isfinite(v)]
        return float(np.mean(known)) if known else float("nan")

    return {
        "dice_mean": mean("dice"),
        "hd95_mm_mean": mean("hd95_mm"),
        "nsd_mean": mean("nsd"),
        "dice": {name: content["dice"]["mean"] for name, content in classes.items()},
        "cases": len({row.case for row in rows}),
    }


def _images(source: Path) -> list[Path]:
    """The files to segment, or the one folder that is a DICOM series."""
    if source.is_dir():
        found = sorted(p for p in source.iterdir() if p.name.endswith((".nii", ".nii.gz")) and p.name[0] != ".")
        series = is_dicom_folder(source)
        if found and series:
            raise InputError(f"{source} holds NIfTI and DICOM files", mend="Name a file, or keep them apart.")
        if not found and not series:
            raise InputError(
                f"{source} holds no NIfTI file and no DICOM series",
                expected="files ending in .nii.gz or .nii, or the files of one series",
            )
        return found or [source if source.name not in ("", "..") else source.resolve()]
    if not source.exists():
        raise InputError(f"{source} does not exist", mend="Name a NIfTI file, a folder of them, or a DICOM series.")
    return [source]


def _read_image(path: Path) -> Volume:
    return read_series(path) if path.is_dir() else read_volume(path)
