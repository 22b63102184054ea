"""Look at every file of a task before hours are spent on it: name each fault, its file and its mend.

A fault is what would stop or silently spoil training; what is merely odd is a note (:mod:`.oddities`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from medvisionllama.data.decathlon import parse_task, read_description
from medvisionllama.data.nifti import ENDINGS, case_name, read_label_map, stored_type
from medvisionllama.data.oddities import ImageFacts, LabelFacts, equal_images, faces_value, oddities, some
from medvisionllama.data.task import DESCRIPTION, Case, Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Grid, Volume

Progress = Callable[[int, int], None]
_FOLDERS = {"imagesTr": "labelsTr", "labelsTr": "imagesTr", "imagesTs": ""}  # and where each file has its partner


@dataclass(frozen=True)
class Finding:
    """A fault: of which case (empty for the whole set), in which file, what it is, how to mend it."""

    case: str
    file: str
    fault: str
    mend: str


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        cases: How many cases were looked at, labelled or not.
        errors: What must be mended before training.
        notes: What is worth knowing.
    """

    cases: int
    errors: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``check --json`` prints."""
        return asdict(self)


def check_task(folder: Path | str, *, progress: Progress | None = None) -> Report:
    """Open every image and label map of a task.

    Args:
        folder: With ``dataset.json``. One that exists but holds no readable task gives a report with that fault.
        progress: Called after each case with the number done and the number in all.

    Raises:
        InputError: There is no such folder.
    """
    folder = Path(folder)
    try:
        task = parse_task(folder)
    except InputError as error:
        if not folder.is_dir():
            raise
        description = folder / DESCRIPTION
        return Report(0, [_finding("", description if description.exists() else folder, error)])
    check = _Check(task)
    everything = (*task.cases, *task.unlabelled)
    for done, case in enumerate(everything, start=1):
        check.look_at(case, labelled=done <= len(task.cases))
        if progress:
            progress(done, len(everything))
    images = list({image.path: image for image in check.images}.values())  # one listed twice is told by its name
    errors = [*_repeated_names(task), *check.errors, *_repeated_images(images)]
    notes = [*_listing(task), *oddities(task, images, check.labels)]
    return Report(len(everything), errors, notes)


class _Check:
    """Faults and facts gathered from one case after another; no voxels are kept."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.errors: list[Finding] = []
        self.images: list[ImageFacts] = []
        self.labels: list[LabelFacts] = []

    def look_at(self, case: Case, labelled: bool) -> None:
        """Open the image, then the label where the case should have one; either fault is told."""
        grid = self._look_at_image(case)
        if not labelled:
            return
        if case.label is None:
            self._tell(case, case.image, "has no label in dataset.json", "Add its label, or move it to the test list.")
        else:
            self._look_at_label(case, case.label, grid)

    def _look_at_image(self, case: Case) -> Grid | None:
        try:
            volume = case.read_image()
        except InputError as error:
            self.errors.append(_finding(case.name, case.image, error))
            return None
        channels = volume.array.shape[0] if volume.array.ndim == 4 else 1
        if channels != self.task.channels:
            fault = f"has {channels} channels, but dataset.json names {self.task.channels}: {self._modalities()}"
            self._tell(case, case.image, fault, 'Store the channels that "modality" names, or name those stored.')
        finite = np.isfinite(volume.array)
        if not finite.all():
            fault = f"has {finite.size - np.count_nonzero(finite)} voxels that are NaN or infinite"
            self._tell(case, case.image, fault, "Give them a value, such as that of the background.")
        self.images.append(_image_facts(case, volume, finite))
        return volume.grid

    def _look_at_label(self, case: Case, path: Path, grid: Grid | None) -> None:
        try:
            volume = read_label_map(path)
        except InputError as error:
            self.errors.append(_finding(case.name, path, error))
            return
        if grid is not None:
            self._compare(case, path, volume.grid, grid)
        values, counts = np.unique(volume.array, return_counts=True)
        known = {0, self.task.ignored, *self.task.classes}
        unnamed = [int(value) for value in values if int(value) not in known]
        if unnamed:
            fault = f"has the values {some(map(str, unnamed))}, which dataset.json does not name"
            self._tell(case, path, fault, 'Name them under "labels", or set them to 0.')
        tally = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
        self.labels.append(LabelFacts(case.name, stored_type(path), tally))

    def _compare(self, case: Case, path: Path, label: Grid, image: Grid) -> None:
        if label.shape != image.shape:
            fault = f"has {_by(label)} voxels, but its image {_by(image)}"
            self._tell(case, path, fault, "Find the right label, or resample it onto the image's grid.")
        elif not label.same_as(image):
            fault = (
                f"lies up to {label.distance_mm(image):.3g} mm from its image, {AFFINE_TOLERANCE_MM:g} mm are allowed"
            )
            self._tell(case, path, fault, "Copy the image's affine if the voxels fit, else resample the label.")

    def _modalities(self) -> str:
        return some(self.task.modalities)

    def _tell(self, case: Case, path: Path, fault: str, mend: str) -> None:
        self.errors.append(Finding(case.name, str(path), fault, mend))


def _finding(case: str, path: Path, error: InputError) -> Finding:
    """The same fault without the path, which stands in a field of its own."""
    return Finding(case, str(path), error.fault_in_full.removeprefix(f"{path} "), error.mend)


def _by(grid: Grid) -> str:
    return "x".join(map(str, grid.shape))


def _image_facts(case: Case, volume: Volume, finite: np.ndarray[Any, np.dtype[np.bool_]]) -> ImageFacts:
    array, grid = volume.array, volume.grid
    channels = array if array.ndim == 4 else array[None]
    values = array if finite.all() else array[finite]
    return ImageFacts(
        name=case.name,
        path=case.image,
        stored_type=stored_type(case.image),
        orientation=grid.orientation,
        origin_mm=tuple(float(v) for v in grid.affine[:3, 3]),
        spacing_mm=grid.spacing_mm,
        low=float(values.min()) if values.size else 0.0,
        high=float(values.max()) if values.size else 0.0,
        background=tuple(faces_value(channel) for channel in channels),
        slices=tuple(_slice_digests(channels)),
    )


def _slice_digests(channels: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """One for each slice ``(M,I,J)`` along K that holds more than one value."""
    for k in range(channels.shape[-1]):
        pixels = np.ascontiguousarray(channels[..., k])
        if pixels.min() != pixels.max():
            yield blake2b(pixels.tobytes(), digest_size=16, salt=str(pixels.shape).encode()[:16]).digest()


def _repeated_names(task: Task) -> Iterator[Finding]:
    for name, count in Counter(case.name for case in task.cases).items():
        if count > 1:
            fault = f"lists the case {name} {count} times"
            yield Finding(name, str(task.folder / DESCRIPTION), fault, "Give every case a file name of its own.")


def _repeated_images(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    for first, *others in equal_images(images):
        for image in others:
            mend = "Remove one of them: the same image must not both train and test."
            yield Finding(image.name, str(image.path), f"holds the same voxels as {first.path}", mend)


def _listing(task: Task) -> Iterator[str]:
    """What dataset.json says against what lies in the folders."""
    described = (task.folder / DESCRIPTION).exists()
    promised = read_description(task.folder).get("numTraining") if described else None
    if promised is not None and promised != len(task.cases):
        yield f"dataset.json says numTraining {promised}, but lists {len(task.cases)} cases"
    if not described:
        yield f"there is no {DESCRIPTION}: classes are called by their numbers, and no channel counts as CT"
    if not task.cases:
        yield "no case has a label, so there is nothing to train on"
    unlike = [case.name for case in task.cases if case.label and case_name(case.label) != case.name]
    if unlike:
        yield f"label files are named unlike their images: {some(unlike)}"
    yield from _unlisted(task)


def _unlisted(task: Task) -> Iterator[str]:
    listed = {path.resolve() for case in (*task.cases, *task.unlabelled) for path in case.files}
    hidden = 0
    for name, partner in _FOLDERS.items():
        found = sorted(path for path in (task.folder / name).glob("*") if path.name.endswith(ENDINGS))
        hidden += sum(path.name.startswith("._") for path in found)
        extra = [p.name for p in found if not p.name.startswith("._") and p.resolve() not in listed]
        if extra:
            alone = [name for name in extra if partner and not (task.folder / partner / name).exists()]
            what = f"{name} holds files that dataset.json does not list: {some(extra)}"
            yield f"{what}; {partner} lacks {some(alone)}" if alone else what
    if hidden:
        yield f"{hidden} files whose names begin with ._ were passed over"
