"""From images to label maps: NIfTI files, folders of them, DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvisionllama.data.dicom import is_dicom_folder, read_series
from medvisionllama.data.dicom_seg import refuse_seg, write_seg
from medvisionllama.data.nifti import (
    ENDINGS,
    MOST_PROBABLE,
    case_name,
    nifti_files,
    probability_file,
    read_label_map,
    read_volume,
    write_label_map,
)
from medvisionllama.data.way_back import Tile
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, Volume, seen_in_ras_order
from medvisionllama.listener import Listener, Silent
from medvisionllama.loading import PLAIN, Inference, load_segmenter, note_limits
from medvisionllama.machine import Machine, choose_device, default_cache
from medvisionllama.predict import Segmenter
from medvisionllama.run_folder import RunFolder, write_json
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
    if inference.probabilities and len({case_name(target) for target in targets}) < len(targets):
        raise InputError(
            f"{source} holds a case twice, as .nii and .nii.gz: their probabilities would share a file",
            mend="Keep one of them, or leave out --probabilities.",
        )
    if dicom_seg:
        refuse_seg(source, out)
    refuse_unwritable(out)
    segmenter = load_segmenter(folders, machine, inference)
    note_limits([run for folder in folders for run in RunFolder(folder).folds()], inference, listener)
    written, faults = [], []
    for path, target in listener.track(list(zip(images, targets, strict=True)), "Segmenting"):
        try:
            image = _read_image(path)
            write_label_map(segmented(segmenter, image, path, target, inference), target, like=path)
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


def segmented(
    segmenter: Segmenter, image: Volume, source: Path, target: Path, inference: Inference, out: Path | None = None
) -> Volume:
    """The label map; with its probabilities written on the way where they are wanted.

    Args:
        segmenter: Makes it.
        image: In the grid of its file.
        source: Its file, or the folder of its series.
        target: Where the label map is to lie; its name is the case's.
        inference: Whether probabilities are wanted.
        out: Folder of ``probabilities/``; None for the one that ``target`` is in.
    """
    if not inference.probabilities:
        return segmenter.segment(image, str(source))
    folder = (out or target.parent) / "probabilities"
    plan = segmenter.plan
    names = [*(("background",) if plan.softmax else ()), *plan.targets]
    path = folder / f"{case_name(target)}.nii.gz"
    with probability_file(path, image.grid, len(names), segmenter.room.scratch, like=source) as stored:
        seen = seen_in_ras_order(stored, image.grid)

        def keep(tile: Tile, probability: Array) -> None:
            seen[(slice(None), *tile)] = np.rint(probability * MOST_PROBABLE)

        label_map = segmenter.segment(image, str(source), keep)
    write_json(folder / "channels.json", names)
    return label_map


def _images(source: Path) -> list[Path]:
    """The files to segment, or the one folder that is a DICOM series."""
    if source.is_dir():
        found = nifti_files(source)
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
