"""From run folders to label maps: load what was trained, segment files or a part of the split, score the part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvisionllama.checkpoint import load_tensors, put_model_tensors
from medvisionllama.config import read_experiment
from medvisionllama.data.decathlon import Case, read_task
from medvisionllama.data.dicom import is_dicom_folder, read_series
from medvisionllama.data.dicom_seg import refuse_seg, write_seg
from medvisionllama.data.nifti import ENDINGS, case_name, read_label_map, read_volume, write_label_map
from medvisionllama.data.plan import IGNORED, Plan, read_plan
from medvisionllama.data.preprocess import label_to_model_grid
from medvisionllama.data.splits import read_splits
from medvisionllama.errors import InputError
from medvisionllama.evaluate import Target, score_volume, summarise, tolerance_of
from medvisionllama.geometry import Volume, ras_grid
from medvisionllama.language.block import BlockIdentity, verify
from medvisionllama.listener import Listener, Silent
from medvisionllama.machine import Machine, choose_device, default_cache
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import build_network
from medvisionllama.models.zoo import with_block
from medvisionllama.pictures import VolumeRow, keep_pictures, reference_of, volume_rows, where_labelled, write_volumes
from medvisionllama.predict import Member, Segmenter
from medvisionllama.run_folder import RunFolder, ScoreRow, read_json, write_json, write_scores
from medvisionllama.whole_file import refuse_unwritable


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


def load(*runs: Path | str, device: str = "auto", cache: Path | None = None, offline: bool = False) -> Loaded:
    """Load a run folder, or several as an ensemble: ``mvl.load(RUN).segment(PATH)``.

    Raises:
        InputError: A folder holds no finished run, or its language block cannot be found or is another.
    """
    machine = Machine(choose_device(device), cache or default_cache(), cache, offline)
    return Loaded(load_segmenter([Path(run) for run in runs], machine))


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


def load_segmenter(folders: Sequence[Path], machine: Machine) -> Segmenter:
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
    return Segmenter(members, machine.device, read_experiment(runs[0].config).recipe.dtype)


def predict_files(
    folders: Sequence[Path],
    source: Path,
    out: Path,
    machine: Machine,
    *,
    dicom_seg: bool = False,
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
    segmenter = load_segmenter(folders, machine)
    _note_unfinished([run for folder in folders for run in RunFolder(folder).folds()], listener)
    written, faults = [], []
    for path, target in listener.track(list(zip(images, targets, strict=True)), "Segmenting"):
        try:
            write_label_map(segmenter.segment(_read_image(path), str(path)), target)
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


def predict_part(run: RunFolder, part: str, machine: Machine, *, listener: Listener | None = None) -> dict[str, Any]:
    """Segment and score ``validation`` or ``test`` of the run's own split; returns the run's summary with the part.

    Raises:
        InputError: The run is not finished, its data set is gone, or the part is empty.
    """
    listener = listener or Silent()
    run.refuse_other_version()
    experiment, plan, splits = read_experiment(run.config), read_plan(run.plan), read_splits(run.splits)
    _note_unfinished([run], listener)
    task = read_task(machine.dataset or experiment.dataset)
    names = splits.test if part == "test" else splits.validation(experiment.fold)
    if not names:
        raise InputError(f"the run's split has no {part} part", mend="Add cases, or ask for the other part.")
    segmenter = load_segmenter([run.path], machine)
    grids = ("native", "model") if plan.protocol == "paper" else (None,)
    scored: dict[str | None, list[ScoreRow]] = {grid: [] for grid in grids}
    volumes: dict[str | None, list[VolumeRow]] = {grid: [] for grid in grids}
    tolerance = tolerance_of(task) if experiment.tolerance_mm is None else experiment.tolerance_mm
    for case in listener.track(task.named(names), f"Segmenting {part}"):
        image, reference = case.read_image(), reference_of(case, plan)
        for grid in grids:
            if grid == "model":
                predicted, compared = _on_model_grid(segmenter, case, image, plan)
            else:
                predicted, compared = segmenter.segment(image, str(case.image)), reference
            out = run.part(part, grid)
            write_label_map(predicted, out / "predictions" / f"{case.name}.nii.gz")
            judged = predicted if grid == "model" else where_labelled(predicted, case, plan)
            scored[grid] += score_volume(judged, compared, _targets(plan), tolerance, case.name)
            volumes[grid] += volume_rows(judged, compared, _targets(plan), case.name)
    summaries = {}
    for grid, rows in scored.items():
        out = run.part(part, grid)
        write_scores(out / "scores.csv", rows)
        write_volumes(out / "volumes.csv", volumes[grid])
        summaries[grid] = summarise(rows, tolerance, grid or "native")
        write_json(out / "summary.json", summaries[grid])
        if grid != "model":
            keep_pictures(out, task, plan, rows)
    summary: dict[str, Any] = read_json(run.summary) if run.summary.exists() else {}
    summary[part] = _in_short(summaries[grids[0]], scored[grids[0]])
    if "model" in summaries:
        summary[part]["model_grid"] = _in_short(summaries["model"], scored["model"])
    write_json(run.summary, summary)
    return summary


def _note_unfinished(runs: Iterable[RunFolder], listener: Listener) -> None:
    for run in runs:
        if not run.summary.exists():
            listener.note(f"{run.path} is not trained to its end: the best weights so far are used")


def _targets(plan: Plan) -> list[Target]:
    if plan.merged:
        return [Target("foreground", (1,))]
    return [Target(name, labels) for name, labels in plan.targets.items()]


def _on_model_grid(segmenter: Segmenter, case: Case, image: Volume, plan: Plan) -> tuple[Volume, Volume]:
    """Prediction and reference on the paper protocol's grid, as the papers must have scored; 0 where ignored."""
    assert case.label is not None
    affine = ras_grid(image.grid).with_shape(plan.window).affine
    predicted = segmenter.label_map_on_model_grid(image, str(case.image))
    reference = Volume(read_label_map(case.label).array, image.affine)  # one affine, as in Case.read_pair
    compared = label_to_model_grid(reference, plan, str(case.label))
    labelled = compared != IGNORED
    return Volume(predicted * labelled, affine), Volume(compared * labelled, affine)


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
