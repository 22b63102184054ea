"""What is odd about a data set but no fault: properties of its cases taken together, each told in one sentence."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from medvisionllama.data.task import Task
from medvisionllama.geometry import Array

SCALE_RATIO = 100  # maxima farther apart than this are worth a word
TINY_FRACTION = 1e-3  # of the volume
THICK_RATIO = 3  # slice distance over in-plane spacing


@dataclass(frozen=True)
class ImageFacts:
    """What is remembered of an image once it is closed.

    Attributes:
        name: The case.
        path: The file.
        stored_type: Such as ``int16``.
        orientation: Such as ``RAS``.
        origin_mm: Where the first voxel lies.
        spacing_mm: Along I, J, K.
        low: The smallest finite value.
        high: The largest finite value.
        background: For each channel the value most of the volume's faces have, None where there is none such.
        slices: A digest of every slice along K that is not constant.
    """

    name: str
    path: Path
    stored_type: str
    orientation: str
    origin_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    low: float
    high: float
    background: tuple[float | None, ...]
    slices: tuple[bytes, ...]


@dataclass(frozen=True)
class LabelFacts:
    """What is remembered of a label map once it is closed: how many voxels each value has."""

    name: str
    stored_type: str
    counts: Mapping[int, int]

    @property
    def foreground(self) -> float:
        """The share of the volume that is not background."""
        return 1 - self.counts.get(0, 0) / sum(self.counts.values())


def faces_value(array: Array) -> float | None:
    """The value that more than half of the voxels on the six faces of ``(I,J,K)`` have, or None."""
    faces = [np.take(array, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()]) if 2 * counts.max() > counts.sum() else None


def equal_images(images: Iterable[ImageFacts]) -> list[list[ImageFacts]]:
    """Groups of two or more images with the same voxels; those of one value throughout are left out."""
    groups: defaultdict[tuple[bytes, ...], list[ImageFacts]] = defaultdict(list)
    for image in images:
        if image.slices:
            groups[image.slices].append(image)
    return [group for group in groups.values() if len(group) > 1]


def oddities(task: Task, images: Sequence[ImageFacts], labels: Sequence[LabelFacts]) -> list[str]:
    """Everything odd, one sentence each."""
    notes = [
        *_types("images", Counter(image.stored_type for image in images)),
        *_types("label maps", Counter(label.stored_type for label in labels)),
        *_float_labels(labels),
        *_scales(images),
        *_hounsfield(task, images),
        *_backgrounds(images),
        *_orientations(images),
        *_origins(images),
        *_thick_slices(images),
        *_shared_slices(images),
        *_case_numbers([case.name for case in task.cases]),
        *_class_numbers(task),
    ]
    return [*notes, *(_presence(task, labels) if labels else [])]


def some(names: Iterable[str], most: int = 5) -> str:
    """Names in a sentence: the first few, and how many more."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _types(what: str, types: Counter[str]) -> Iterator[str]:
    if len(types) > 1:
        yield f"{what} are stored in different types: " + _tally(types)


def _float_labels(labels: Sequence[LabelFacts]) -> Iterator[str]:
    floats = [label.name for label in labels if label.stored_type.startswith("float")]
    if floats:
        yield f"labels are stored as floats, but whole numbers, in {some(floats)}"


def _scales(images: Sequence[ImageFacts]) -> Iterator[str]:
    highs = [max(abs(image.low), abs(image.high)) for image in images]
    lit = [high for high in highs if high > 0]
    if lit and max(lit) > SCALE_RATIO * min(lit):
        yield f"intensity scales differ: maxima from {min(lit):.4g} to {max(lit):.4g}; normalise each image"
    constant = [image.name for image in images if image.low == image.high]
    if constant:
        yield f"one value throughout: {some(constant)}"


def _hounsfield(task: Task, images: Sequence[ImageFacts]) -> Iterator[str]:
    positive = [image.name for image in images if task.is_ct and image.low >= 0]
    if positive:
        yield f"CT without negative values, so perhaps not in Hounsfield units: {some(positive)}"


def _backgrounds(images: Sequence[ImageFacts]) -> Iterator[str]:
    found = [(image.name, value) for image in images for value in image.background if value]
    if found:
        low, high = min(value for _, value in found), max(value for _, value in found)
        names = dict.fromkeys(name for name, _ in found)
        value = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        yield f"the background is constant but not 0 ({value}) in {some(names)}"


def _orientations(images: Sequence[ImageFacts]) -> Iterator[str]:
    found = Counter(image.orientation for image in images)
    if len(found) > 1:
        yield "orientations differ: " + _tally(found)
    elif images and "RAS" not in found:
        yield f"all images are in {images[0].orientation} order, not RAS"


def _origins(images: Sequence[ImageFacts]) -> Iterator[str]:
    """Scanners give every scan an origin of its own; shared ones were written by a program."""
    found = Counter(tuple(round(value, 2) + 0.0 for value in image.origin_mm) for image in images)
    shared = {f"({', '.join(f'{v:g}' for v in origin)})": n for origin, n in found.items() if n > 1}
    if shared and len(images) > 2:
        yield "origins are shared, so they are no patient positions: " + _tally(Counter(shared))


def _thick_slices(images: Sequence[ImageFacts]) -> Iterator[str]:
    thick = [image.name for image in images if max(image.spacing_mm) > THICK_RATIO * min(image.spacing_mm)]
    if thick:
        yield f"slices are over {THICK_RATIO} times as far apart as voxels within them in {some(thick)}"


def _shared_slices(images: Sequence[ImageFacts]) -> Iterator[str]:
    """Two images with equal slices stem from one scan; wholly equal images are a fault, told elsewhere."""
    holders: defaultdict[bytes, set[int]] = defaultdict(set)
    for number, image in enumerate(images):
        for digest in image.slices:
            holders[digest].add(number)
    pairs = Counter(pair for numbers in holders.values() for pair in combinations(sorted(numbers), 2))
    for (first, second), count in pairs.items():
        a, b = images[first], images[second]
        if a.slices != b.slices:
            yield f"{a.name} and {b.name} share {count} slices: keep them in the same part of a split"


def _case_numbers(names: Sequence[str]) -> Iterator[str]:
    matches = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    numbers = sorted(int(match.group(2)) for match in matches if match)
    prefixes = {match.group(1) for match in matches if match}
    if len(numbers) == len(names) > 1 and len(prefixes) == 1 and numbers[-1] - numbers[0] >= len(set(numbers)):
        yield f"case numbers have gaps: {len(numbers)} cases from {numbers[0]} to {numbers[-1]}"


def _class_numbers(task: Task) -> Iterator[str]:
    if list(task.classes) != list(range(1, len(task.classes) + 1)):
        yield f"class numbers have gaps: {some(map(str, task.classes), 12)}"


def _presence(task: Task, labels: Sequence[LabelFacts]) -> Iterator[str]:
    absent = [name for value, name in task.classes.items() if not any(value in label.counts for label in labels)]
    if absent:
        yield f"{len(absent)} of {len(task.classes)} classes never occur: {some(absent)}"
    empty = _where(labels, lambda label: label.foreground == 0)
    if empty:
        yield f"label maps without any foreground: {some(empty)}"
    tiny = _where(labels, lambda label: 0 < label.foreground < TINY_FRACTION)
    if tiny:
        yield f"the foreground is under {TINY_FRACTION:.1%} of the volume in {some(tiny)}"


def _where(labels: Sequence[LabelFacts], holds: Callable[[LabelFacts], bool]) -> list[str]:
    return [label.name for label in labels if holds(label)]


def _tally(counts: Counter[str]) -> str:
    return some(f"{what} in {count}" for what, count in counts.most_common())
