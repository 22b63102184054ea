"""The plan: what every case is turned into before a network sees it, and how its output is read.

Made from the training part alone. Axes: ``M`` modalities, ``C`` output channels, ``I J K`` voxels (RAS order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medvisionllama.data.decathlon import Case, Task
from medvisionllama.data.mirroring import Mirroring
from medvisionllama.data.nifti import read_grid
from medvisionllama.errors import InputError
from medvisionllama.geometry import Grid, Shape, ras_grid
from medvisionllama.label_reading import LabelReading
from medvisionllama.run_folder import FORMAT_VERSION, read_json, write_json

Protocol = Literal["native", "paper"]
IntensityKind = Literal["zscore", "body-zscore", "clip-zscore"]

# A token stands for 8 voxels an axis, so windows are multiples of 8.
PATCH_MULTIPLE = 8
Strides = tuple[Shape, ...]
EVEN_STRIDES: Strides = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
# nnU-Net's: an axis is thin where its voxels are more than 3 times as long as the others', and its size less than a
# third of theirs; it is then given its finest tenth's spacing, since the median would throw slices away.
THIN = 3
THIN_AXIS_PERCENTILE = 10
# nnU-Net's: an axis is not halved while its voxels are twice as long as the shortest axis's, or longer.
MOST_UNEVEN_TO_HALVE = 2
# nnU-Net's: fewer make a gradient too noisy, and a batch of a large share of all voxels is seen too often.
FEWEST_PATCHES = 2
FEWEST_TOKENS = 2  # of one alone there is nothing to attend to, nor to normalise
MOST_OF_TRAINING_PART = 0.05
# As many as the papers' 128^3 at patch 8; only windows whose thin axis is spared could exceed it.
MOST_TOKENS = 4096
# Largest window of the native protocol: what a step of four cases on a CPU can bear.
MOST_WINDOW_VOXELS = 96**3
PERCENTILES = (0.5, 99.5)
FOREGROUND_SAMPLES_PER_CASE = 10_000
# What uint8 holds beside background: prepared label maps are stored so, and the last number is for ignored voxels.
MOST_CLASSES = 255
IGNORED = 255


@dataclass(frozen=True)
class IntensityRule:
    """How one channel's intensities are normalised.

    Attributes:
        kind: ``zscore``: each case by its own mean and SD over all voxels (paper protocol). ``body-zscore``: the same
            over the voxels that differ from a constant background, which becomes 0. ``clip-zscore`` (CT): clipped
            to ``low..high``, then by the training set's foreground ``mean`` and ``sd``.
        low: Foreground percentile 0.5 of the training part, in Hounsfield units.
        high: Foreground percentile 99.5.
        mean: Foreground mean.
        sd: Foreground standard deviation.

    Raises:
        InputError: There is no such kind.
    """

    kind: IntensityKind
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(IntensityKind):
            raise InputError(
                "a rule for intensities", got=str(self.kind), expected=" or ".join(get_args(IntensityKind))
            )


@dataclass(frozen=True)
class Plan:
    """What every case is turned into, and how logits are read.

    Attributes:
        protocol: ``native`` (SPEC 5: the image's own geometry, one channel per class) or ``paper`` (every volume
            stretched to one grid, all classes merged to one sigmoid target).
        task: The task's name.
        window: Voxels along I, J, K the network is given: a sliding window, or the one grid of the paper protocol.
        spacing_mm: What cases are resampled to; None in the paper protocol.
        intensity: One rule a channel.
        classes: Label value to name, background left out, in the order of the output channels.
        training_cases: How many cases the plan was made from.
        median_shape: Their median size in voxels at ``spacing_mm`` (native) or as stored (paper).
        stem_strides: How a network's stem should go down, so that a thin axis is not pooled away; their product is
            what a token stands for.
        regions: Name to label values of overlapping sigmoid targets, in the order of the output channels; empty where
            the classes themselves are what is told apart.
        region_values: The label value written for each region, a later region's over an earlier one's.
        ignored: The label value of voxels nobody has labelled: not trained on, not scored.
        mirroring: Which axes may be mirrored, and which label values change places then.
        batch_size: Planned for a given memory (:func:`fitted_to_memory`); None to go by the recipe.

    Raises:
        InputError: There is no such protocol, there are more classes than a prepared label map can hold, or regions
            are made of other values than the classes'.
    """

    protocol: Protocol
    task: str
    window: Shape
    spacing_mm: tuple[float, float, float] | None
    intensity: tuple[IntensityRule, ...]
    classes: Mapping[int, str]
    training_cases: int
    median_shape: Shape
    stem_strides: Strides = EVEN_STRIDES
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    region_values: tuple[int, ...] = ()
    ignored: int | None = None
    mirroring: Mirroring = field(default_factory=Mirroring)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise InputError("a plan's protocol", got=str(self.protocol), expected=" or ".join(get_args(Protocol)))
        most = MOST_CLASSES if self.ignored is None else IGNORED - 1
        if not self.merged and len(self.classes) > most:
            raise InputError(
                f"{self.task} has too many classes",
                got=str(len(self.classes)),
                expected=f"{most} at most",
                mend="Merge classes, or leave some out of dataset.json and the label maps.",
            )
        values = {value for region in self.regions.values() for value in region} | set(self.region_values)
        if not values <= set(self.classes) or len(self.region_values) != len(self.regions):
            raise InputError(
                f"{self.task} has regions that are not made of its classes",
                got=f"{dict(self.regions)}, written as {self.region_values}",
                expected=f"of {', '.join(map(str, self.classes))}, one value to write for each",
            )

    @property
    def in_channels(self) -> int:
        """``M``."""
        return len(self.intensity)

    @property
    def merged(self) -> bool:
        """Whether all classes are one ``foreground``."""
        return self.protocol == "paper"

    @property
    def softmax(self) -> bool:
        """Whether the output channels are classes that exclude one another, background first; else sigmoid targets."""
        return not (self.merged or self.regions)

    @property
    def out_channels(self) -> int:
        """``C``: classes with background (softmax), or one for each sigmoid target: regions, or the merged classes."""
        if self.merged:
            return 1
        return len(self.regions) or len(self.classes) + 1

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """What is scored, by name and label values: each region or class, or all classes as ``foreground``."""
        if self.merged:
            return {"foreground": tuple(self.classes)}
        return dict(self.regions) or {name: (value,) for value, name in self.classes.items()}

    @property
    def numbered_targets(self) -> dict[str, tuple[int, ...]]:
        """:attr:`targets` by the numbers that prepared label maps hold (:meth:`number_of`)."""
        return {name: tuple(sorted({self.number_of(v) for v in values})) for name, values in self.targets.items()}

    def number_of(self, value: int) -> int:
        """What a class's label value is in prepared label maps: 1, 2, ... in order, or 1 where classes are merged."""
        return 1 if self.merged else 1 + list(self.classes).index(value)

    @property
    def meaning(self) -> tuple[object, ...]:
        """What an output says: networks whose plans agree here can be averaged."""
        return (dict(self.classes), self.merged, dict(self.regions), self.region_values)

    @property
    def written_numbers(self) -> tuple[int, ...]:
        """The class number that each sigmoid target writes where it is above one half; none for a softmax."""
        if self.merged:
            return (1,)
        return tuple(self.number_of(value) for value in self.region_values)

    @property
    def reading(self) -> LabelReading:
        """What a loss is told of prepared label maps."""
        regions = tuple(self.numbered_targets.values()) if self.regions and not self.merged else ()
        return LabelReading(regions, None if self.ignored is None else IGNORED)

    @property
    def numbered_mirroring(self) -> Mirroring:
        """:attr:`mirroring` by the numbers that prepared label maps hold; merged classes have no sides."""
        if self.merged:
            return Mirroring()
        swaps = tuple((self.number_of(one), self.number_of(other)) for one, other in self.mirroring.swaps)
        return Mirroring(self.mirroring.axes, swaps)

    @property
    def patch_size(self) -> Shape:
        """Voxels that a token should stand for."""
        return reduction(self.stem_strides)

    def to_dict(self) -> dict[str, Any]:
        """The form of ``plan.json``."""
        content = asdict(self)
        content["classes"] = {str(value): name for value, name in self.classes.items()}
        return {"format": FORMAT_VERSION} | content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "the plan") -> Plan:
        """Undo :meth:`to_dict`.

        Raises:
            InputError: It is of another version, or not a plan.
        """
        if content.get("format") != FORMAT_VERSION:
            raise InputError(
                f"{where} is of another version",
                got=f"format {content.get('format')}",
                expected=f"format {FORMAT_VERSION}",
                mend="Train again, or use the version of medvisionllama that wrote it.",
            )
        try:
            spacing = content["spacing_mm"]
            return cls(
                protocol=content["protocol"],
                task=content["task"],
                window=_shape(content["window"]),
                spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
                intensity=tuple(IntensityRule(**rule) for rule in content["intensity"]),
                classes={int(value): name for value, name in content["classes"].items()},
                training_cases=content["training_cases"],
                median_shape=_shape(content["median_shape"]),
                **_later(content),
            )
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f"{where} lacks {error}", mend="Plan or train again.") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{where} cannot be understood", got=str(error), mend="Plan or train again.") from error


def read_plan(path: Path) -> Plan:
    """Read ``plan.json``.

    Raises:
        InputError: It is missing, of another version, or not a plan.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a plan", mend="Make it with `medvisionllama plan`.")
    return Plan.from_dict(content, str(path))


def write_plan(plan: Plan, path: Path) -> None:
    """Write ``plan.json``."""
    write_json(path, plan.to_dict())


def make_plan(
    task: Task,
    cases: Sequence[Case],
    *,
    protocol: Protocol = "native",
    grid: int = 128,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> Plan:
    """Plan a task from the fingerprint of its training part.

    Args:
        task: What the data set says of itself.
        cases: The training part; no other case is looked at.
        protocol: Which of SPEC 5's protocols.
        grid: Edge of the paper protocol's cubic grid.
        progress: Wraps the cases as they are read.

    Raises:
        InputError: There are no cases, no classes or too many, a file cannot be read or does not fit its data set's
            description, or the grid is not a multiple of 8.
    """
    if not cases:
        raise InputError(f"{task.folder} has no training cases", mend="List labelled cases under `training`.")
    if not task.classes:
        raise InputError(f"{task.folder} names no class but background", mend="Name the classes in dataset.json.")
    if protocol == "paper" and (grid < PATCH_MULTIPLE or grid % PATCH_MULTIPLE):
        raise InputError("the paper protocol's grid", got=str(grid), expected=f"a multiple of {PATCH_MULTIPLE}")
    grids, foreground = [], []
    for case in progress(cases):
        grids.append(_planned_grid(task, case))
        if protocol == "native" and any(task.ct_channels):
            foreground.append(_foreground_sample(case, task.ignored))
    spacing, shapes = None, np.array([g.shape for g in grids])
    if protocol == "native":
        middle = np.median([g.spacing_mm for g in grids], axis=0)
        middle = _thin_axis_spared(np.array([g.spacing_mm for g in grids]), middle, np.median(shapes, axis=0))
        spacing = (float(middle[0]), float(middle[1]), float(middle[2]))
        shapes = np.array([g.with_spacing(spacing).shape for g in grids])
    median = _shape(np.round(np.median(shapes, axis=0)))
    strides = EVEN_STRIDES if spacing is None else _strides(spacing)
    return Plan(
        protocol=protocol,
        task=task.name,
        window=(grid, grid, grid) if protocol == "paper" else _window(median, reduction(strides)),
        spacing_mm=spacing,
        intensity=_intensity_rules(task, protocol, foreground),
        classes=dict(task.classes),
        training_cases=len(cases),
        median_shape=median,
        stem_strides=strides,
        regions=dict(task.regions),
        region_values=task.region_values,
        ignored=task.ignored,
        mirroring=task.sides,
    )


def fitted_to_memory(plan: Plan, memory_gb: float, needed_gb: Callable[[Shape, int], float]) -> Plan:
    """The plan with the largest window, and then the largest batch, that a training in ``memory_gb`` can bear.

    As nnU-Net plans (Isensee et al. 2021): from the whole median case, with batches of 2, the longest axis is shortened
    until it fits; what is left goes to the batch, which never holds more than 5 % of the training part's voxels. The
    paper protocol's grid is given, so only its batch is planned, from 1 on.

    Args:
        plan: What was planned without regard to memory.
        memory_gb: Gigabytes (1e9 bytes) of the device.
        needed_gb: Window and batch to gigabytes, for the network to be trained.

    Raises:
        InputError: Not even the smallest window fits.
    """
    window, smallest = plan.window, 1 if plan.merged else FEWEST_PATCHES
    if not plan.merged:
        window = whole_patches(plan.median_shape, plan.patch_size)
    while (needed := needed_gb(window, smallest)) > memory_gb:
        if plan.merged or math.prod(window) <= FEWEST_TOKENS * math.prod(plan.patch_size):
            raise InputError(
                f"a window of {window} does not fit",
                got=f"about {needed:.3g} GB for a batch of {smallest}",
                expected=f"{memory_gb:g} GB",
                mend="Choose a smaller network, or more memory by --memory-gb.",
            )
        window = shrunk(window, plan.patch_size)
    all_voxels = plan.training_cases * math.prod(plan.median_shape)
    most = max(smallest, int(MOST_OF_TRAINING_PART * all_voxels / math.prod(window)))
    each = needed_gb(window, smallest + 1) - needed
    batch_size = min(most, smallest + int((memory_gb - needed) / each) if each > 0 else most)
    return replace(plan, window=window, batch_size=batch_size)


def reduction(strides: Strides) -> Shape:
    """By how much strides make an image smaller, axis by axis."""
    return _shape(np.prod(strides, axis=0))


def _thin_axis_spared(
    spacings_mm: NDArray[np.float64], median_mm: NDArray[np.float64], median_shape: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The spacing to resample to: the median, but where one axis is thin its finest tenth's (nnU-Net's rule).

    Never finer than the coarser of the other two axes.
    """
    thin = int(median_mm.argmax())
    others = [axis for axis in range(3) if axis != thin]
    coarsest = median_mm[others].max()
    if not (median_mm[thin] > THIN * coarsest and median_shape[thin] * THIN < median_shape[others].min()):
        return median_mm
    spared = median_mm.copy()
    spared[thin] = max(coarsest, np.percentile(spacings_mm[:, thin], THIN_AXIS_PERCENTILE))
    return spared


def _strides(spacing_mm: tuple[float, float, float]) -> Strides:
    """Three halvings, each sparing the axes along which voxels are already as long as two of the shortest."""
    lengths, strides = np.array(spacing_mm), []
    for _ in EVEN_STRIDES:
        halved = lengths < MOST_UNEVEN_TO_HALVE * lengths.min()
        strides.append(_shape(np.where(halved, 2, 1)))
        lengths = lengths * strides[-1]
    return tuple(strides)


def _later(content: Mapping[str, Any]) -> dict[str, Any]:
    """What plans written before regions and sides were known do not hold: they have Plan's defaults."""
    found: dict[str, Any] = {}
    if "stem_strides" in content:
        found["stem_strides"] = tuple(_shape(stage) for stage in content["stem_strides"])
    if "regions" in content:
        found["regions"] = {name: tuple(int(v) for v in values) for name, values in content["regions"].items()}
        found["region_values"] = tuple(int(value) for value in content["region_values"])
    if content.get("ignored") is not None:
        found["ignored"] = int(content["ignored"])
    if content.get("batch_size") is not None:
        found["batch_size"] = int(content["batch_size"])
    if "mirroring" in content:
        axes, swaps = content["mirroring"]["axes"], content["mirroring"]["swaps"]
        pairs = tuple((int(one), int(other)) for one, other in swaps)
        found["mirroring"] = Mirroring(tuple(int(axis) for axis in axes), pairs)
    return found


def _planned_grid(task: Task, case: Case) -> Grid:
    """The case's grid in RAS order, from headers alone."""
    headers = [read_grid(path) for path in (case.image, *case.more_channels)]
    channels = sum(number for _, number in headers)
    if channels != task.channels:
        raise InputError(
            f"{case.image} has another number of channels than its data set names",
            got=str(channels),
            expected=f"{task.channels} ({', '.join(task.modalities)})",
            mend="Correct the modalities in dataset.json, or leave the case out.",
        )
    return ras_grid(headers[0][0])


def _window(median: Shape, patch: Shape) -> Shape:
    """The median size rounded up to whole patches, then shrunk along its longest axis until it can be borne.

    Images of one patch alone are given a second one: a batch of single tokens could not be normalised.
    """
    window = whole_patches(median, patch)
    while math.prod(window) > min(MOST_WINDOW_VOXELS, MOST_TOKENS * math.prod(patch)):
        window = shrunk(window, patch)
    if math.prod(window) < FEWEST_TOKENS * math.prod(patch):
        finest = patch.index(min(patch))  # images are padded, here by as little as can be
        window = _shape(edge * FEWEST_TOKENS if axis == finest else edge for axis, edge in enumerate(window))
    return window


def whole_patches(size: Shape, patch: Shape) -> Shape:
    """The next larger size of whole patches."""
    return _shape(-(-edge // p) * p for edge, p in zip(size, patch, strict=True))


def shrunk(window: Shape, patch: Shape) -> Shape:
    """One patch less along the longest axis that has two or more."""
    longest = max((edge, -axis) for axis, edge in enumerate(window) if edge > patch[axis])
    return _shape(edge - patch[axis] if axis == -longest[1] else edge for axis, edge in enumerate(window))


def _intensity_rules(
    task: Task, protocol: Protocol, foreground_Mn: Sequence[NDArray[np.float32]]
) -> tuple[IntensityRule, ...]:
    """One rule a channel; ``foreground_Mn`` holds each case's sample where there is CT."""
    if protocol == "paper":
        return tuple(IntensityRule("zscore") for _ in task.modalities)
    if not foreground_Mn:
        return tuple(IntensityRule("body-zscore") for _ in task.modalities)
    pooled = np.concatenate(foreground_Mn, axis=1).astype(np.float64)
    if not pooled.size:
        raise InputError(
            f"no label map of {task.folder}'s training part holds foreground",
            mend="CT is normalised by its foreground: label some.",
        )
    rules = []
    for is_ct, values in zip(task.ct_channels, pooled, strict=True):
        if not is_ct:
            rules.append(IntensityRule("body-zscore"))
            continue
        low, high = (float(v) for v in np.percentile(values, PERCENTILES))
        sd = float(values.std())
        rules.append(IntensityRule("clip-zscore", low, high, float(values.mean()), sd if sd > 0 else 1.0))
    return tuple(rules)


def _foreground_sample(case: Case, ignored: int | None) -> NDArray[np.float32]:
    """``(M,n)`` intensities at foreground voxels, evenly thinned to a bounded number so that no case outweighs."""
    image, label = case.read_pair()
    inside = np.flatnonzero((label.array != 0) & (label.array != (0 if ignored is None else ignored)))
    inside = inside[:: max(1, -(-len(inside) // FOREGROUND_SAMPLES_PER_CASE))]
    sample: NDArray[np.float32] = image.array.reshape(-1, label.array.size)[:, inside]
    if not np.isfinite(sample).all():
        raise InputError(f"{case.image} holds NaN or infinite intensities", mend="Replace them before training.")
    return sample


def _shape(sizes: Iterable[Any]) -> Shape:
    i, j, k = (int(size) for size in sizes)
    return (i, j, k)
